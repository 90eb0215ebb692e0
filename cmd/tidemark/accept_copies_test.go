//go:build linux

package main_test

import (
	"encoding/json"
	"maps"
	"strings"
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
	image := uuid.NewString() // based on it, and served when it is copied
	h.run("createVolume", h.newVolume(domains[0], image, uuid.NewString(), 0, arguments{"srcImgUUID": template[0], "srcVolUUID": template[1]}))
	h.prepare(domains[0], image)
	move := arguments{"spUUID": h.pool, "srcDomUUID": domains[0], "dstDomUUID": domains[1], "imgUUID": image, "vmUUID": "", "op": "COPY"}
	copied := maps.Clone(move)
	copied["imgUUID"] = template[0]
	h.run("moveImage", copied)
	require.Equal(t, spm.CodeInUse, spm.CodeOf(h.ask("moveImage", move, nil)), "the leaf is written to")
	h.teardown(domains[0], image)
	h.run("moveImage", move)

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

// A raw, sparse image moves to a volume group, which holds it with all of its space, and
// back; what was never written is zero there, and a description that is too long is cut.
func TestRawImageMovesToAGroup(t *testing.T) {
	g := newGroup(t, 1, 2*gib)
	h := newVDSMHost(t, g.paths()...)
	domains := h.newDomains(h.newDir("a"), g)
	image, id := uuid.NewString(), uuid.NewString()
	h.run("createVolume", h.newVolume(domains[0], image, id, 256<<20, arguments{"volFormat": "RAW", "desc": strings.Repeat("long ", 100)}))
	uri, _ := h.prepare(domains[0], image)
	runQEMUIO(t, uri, "raw", "write -P 7 64M 1M", "flush")
	h.teardown(domains[0], image)

	move := func(from, to int, alloc string) {
		t.Helper()
		h.run("moveImage", arguments{"spUUID": h.pool, "srcDomUUID": domains[from], "dstDomUUID": domains[to], "imgUUID": image, "vmUUID": "", "op": 2})
		require.Empty(t, h.volumes(domains[from]))
		v := h.volumes(domains[to])[0]
		require.Equal(t, []string{id, "RAW", alloc, "LEGAL", "268435456"}, []string{v.ID, v.Format, v.Alloc, v.Legality, v.Capacity})
		uri, _ := h.prepare(domains[to], image)
		runQEMUIO(t, uri, "raw", "read -P 0 0 64M", "read -P 7 64M 1M", "read -P 0 65M 191M")
		h.teardown(domains[to], image)
	}
	move(0, 1, "PREALLOCATED")
	move(1, 0, "PREALLOCATED")
}
