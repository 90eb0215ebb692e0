//go:build linux

package main_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A server that is stopped keeps nobody from being told of its image and of others, but
// for whether it is served.
func TestServerHangs(t *testing.T) {
	h := newVDSMHost(t)
	domains := h.newDomains(h.newDir("a"), h.newDir("b"), h.newDir("c"))
	var domain, image string
	var pids []int
	for _, d := range domains {
		image = uuid.NewString()
		h.run("createVolume", h.newVolume(d, image, uuid.NewString(), storySize, nil))
		h.prepare(d, image)
		var r struct {
			Info struct {
				PID int `json:"pid"`
			} `json:"info"`
		}
		require.NoError(t, h.ask("prepareImage", h.at(d, image, ""), &r))
		require.NoError(t, syscall.Kill(r.Info.PID, syscall.SIGSTOP))
		pids, domain = append(pids, r.Info.PID), d
	}
	defer func() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}()
	began := time.Now()
	out, err := program(t, "image", "list", "--spm", h.socket).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Equal(t, len(domains), strings.Count(string(out), "unknown"), "%s", out)
	require.Less(t, time.Since(began), 5*time.Second, "three times as long as one of them is waited for")
	err = h.ask("prepareImage", h.at(domain, image, ""), nil)
	require.ErrorContains(t, err, "does not answer")
	for _, pid := range pids {
		require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	}
	h.teardown(domain, image)
}
