//go:build linux

package main_test

import (
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A server that is stopped keeps nobody from being told of its image and of others, but
// for whether it is served.
func TestServerHangs(t *testing.T) {
	h := newVDSMHost(t)
	domain := h.newDomains(h.newDir("a"))[0]
	image := uuid.NewString()
	h.run("createVolume", h.newVolume(domain, image, uuid.NewString(), storySize, nil))
	h.prepare(domain, image)
	var r struct {
		Info struct {
			PID int `json:"pid"`
		} `json:"info"`
	}
	require.NoError(t, h.ask("prepareImage", h.at(domain, image, ""), &r))
	require.NoError(t, syscall.Kill(r.Info.PID, syscall.SIGSTOP))
	defer syscall.Kill(r.Info.PID, syscall.SIGCONT) //nolint:errcheck // it may have ended
	out, err := program(t, "image", "list", "--spm", h.socket).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "unknown")
	err = h.ask("prepareImage", h.at(domain, image, ""), nil)
	require.ErrorContains(t, err, "does not answer")
	require.NoError(t, syscall.Kill(r.Info.PID, syscall.SIGCONT))
	h.teardown(domain, image)
}
