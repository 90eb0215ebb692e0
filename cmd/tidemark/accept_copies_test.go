//go:build linux

package main_test

import (
	"encoding/json"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm"
)

// A template that has been copied to a second domain serves those who are based on it in
// both, and they are extended: a server asks for the volumes of its domain.
func TestTemplateInTwoDomains(t *testing.T) {
	h := newVDSMHost(t)
	domains := h.newDomains(h.newDir("a"), h.newDir("b"))
	seed, template := [2]string{uuid.NewString(), uuid.NewString()}, [2]string{uuid.NewString(), uuid.NewString()}
	h.run("createVolume", h.newVolume(domains[0], seed[0], seed[1], storySize, nil))
	h.run("copyImage", arguments{"sdUUID": domains[0], "spUUID": h.pool, "vmUUID": "", "srcImgUUID": seed[0], "srcVolUUID": seed[1],
		"dstImgUUID": template[0], "dstVolUUID": template[1]})
	h.run("moveImage", arguments{"spUUID": h.pool, "srcDomUUID": domains[0], "dstDomUUID": domains[1], "imgUUID": template[0], "vmUUID": "", "op": 1})

	for _, domain := range domains {
		image, leaf := uuid.NewString(), uuid.NewString()
		h.run("createVolume", h.newVolume(domain, image, leaf, 0, arguments{"srcImgUUID": template[0], "srcVolUUID": template[1], "size": "1073741824"}))
		uri, _ := h.prepare(domain, image)
		runQEMUIO(t, uri, "raw", "write -P 7 0 200M", "flush", "read -P 7 100M 64k")
		h.teardown(domain, image)
	}

	info := func(name string) ([]byte, error) {
		return program(t, "volume", "info", name, "--spm", h.socket, "--output=json").CombinedOutput()
	}
	out, err := info(template[1])
	require.Error(t, err)
	require.Contains(t, string(out), "name the domain as well")
	out, err = info("domain 1/" + template[1])
	require.NoError(t, err, "%s", out)
	var v spm.Volume
	require.NoError(t, json.Unmarshal(out, &v))
	require.Equal(t, domains[1], v.DomainUUID)
}
