package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/spm"
)

// What waits is shown as it happens, to people and to programs.
func TestVolumeWatch(t *testing.T) {
	p, socket := testPool(t, 256<<20)
	watch := startProcess(t, "volume", "watch", "--spm", socket, "--output=json")
	volumeVerb(t, "create", "--spm", socket, "--size", "1G", "a")
	volumeVerb(t, "create", "--spm", socket, "--size", "1G", "b")
	awaitOutput(t, watch, spm.EventTight)
	done := make(chan error, 1)
	go func() {
		_, err := p.ExtendVolume(t.Context(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "a"}, Need: 200 << 20, WaitMS: 60000})
		done <- err
	}()
	awaitOutput(t, watch, `"kind":"waits"`)
	list := volumeVerb(t, "list", "--spm", socket, "--output=json")
	var volumes []spm.Volume
	require.NoError(t, json.Unmarshal([]byte(list), &volumes))
	require.EqualValues(t, 72<<20, volumes[0].Waiting.Bytes)
	volumeVerb(t, "remove", "--spm", socket, "b")
	require.NoError(t, <-done)
	awaitOutput(t, watch, `"granted":true`)
	text := volumeVerb(t, "watch", "--once", "--spm", socket)
	for _, want := range []string{"the pool is tight, 0 B are free", "a waits for 72 MiB", "a has its space, after "} {
		require.Contains(t, text, want)
	}
	require.NoError(t, watch.Signal(os.Interrupt))
	require.NoError(t, watch.Wait(t, serveLimit))
	require.Equal(t, strings.Count(watch.Output(), "\n"), strings.Count(watch.Output(), `"number":`))
}
