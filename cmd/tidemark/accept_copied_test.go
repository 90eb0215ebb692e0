//go:build linux

package main_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A copy of an image is made while that is served, and served too, by the same host. It
// has the same number of a redo ring in its header, and neither uses the other's: what
// was completed in each is there when both servers have been killed.
func TestCopyOfAServedImage(t *testing.T) {
	dirs := [2]string{workspace(t), workspace(t)}
	var images [2]string
	for i, dir := range dirs {
		images[i] = filepath.Join(dir, "disk.qcow2")
	}
	ok(t, "create", images[0], "1G")
	write := func(s *server, at int64, b byte) {
		require.NoError(t, s.dial().WriteAt(t.Context(), bytes.Repeat([]byte{b}, 64<<10), at*mib, 0))
	}
	read := func(s *server, at int64, b byte) {
		got := make([]byte, 64<<10)
		require.NoError(t, s.dial().ReadAt(t.Context(), got, at*mib, 0))
		require.True(t, bytes.Equal(bytes.Repeat([]byte{b}, 64<<10), got), "at %d MiB: begins with %d, expected %d", at, got[0], b)
	}
	first := serve(t, dirs[0], images[0])
	write(first, 1, 1)
	p, err := os.ReadFile(images[0])
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(images[1], p, 0o600))
	write(first, 2, 2)
	second := serve(t, dirs[1], images[1])
	write(second, 700, 3)
	write(second, 2, 4)
	write(first, 700, 5)
	first.proc.Kill()
	second.proc.Kill()
	first.start()
	read(first, 1, 1)
	read(first, 2, 2)
	read(first, 700, 5)
	second.start()
	read(second, 2, 4)
	read(second, 700, 3)
	first.stop()
	second.stop()
	for _, image := range images {
		require.Contains(t, []int{0, 3}, imageState(t, image).ExitCode)
	}
}
