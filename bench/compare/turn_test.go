package main

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/bench/load"
	"tidemark/internal/testenv"
)

// TestTurns: an arm of each kind has a turn with a small cell, and what it leaves is
// judged: the image, and that its blocks hold what was written there.
func TestTurns(t *testing.T) {
	for _, tool := range []string{"qemu-img", "qemu-io", "qemu-nbd", "nbdkit"} {
		testenv.Tool(t, tool)
	}
	program := filepath.Join(t.TempDir(), "tidemark")
	out, err := exec.CommandContext(t.Context(), testenv.Tool(t, "go"), "build", "-o", program, "tidemark/cmd/tidemark").CombinedOutput()
	require.NoError(t, err, "%s", out)
	list, missing := arms(program)
	c := cell{name: "4K overwrite, QD32, 16 MiB", image: imageKind{size: 64 * mib, full: 4 * mib}}
	c.job.Block, c.job.Set, c.job.Depth = int(4*kib), 4*mib, 8
	dir := t.TempDir()
	m := &bench{stable: stable{dir}, work: dir, duration: 50 * time.Millisecond, seed: 7}
	turns := 0
	reads := c
	reads.job.Op, reads.image.full = load.Read, 64*mib
	for _, a := range list {
		if !c.has(a) || a.name != ours && a.name != "qemu-nbd, threads" && a.name != "nbdkit, raw file, 4 threads" && !a.bare {
			continue
		}
		s, err := m.measure(t.Context(), c, a, 0)
		require.NoError(t, err, a.name)
		require.Empty(t, s.Void, a.name)
		require.Positive(t, s.IOPS, a.name)
		require.Positive(t, s.Checked, a.name)
		turns++
		if a.bare {
			continue // it only writes
		}
		s, err = m.measure(t.Context(), reads, a, 0)
		require.NoError(t, err, a.name)
		require.Empty(t, s.Void, a.name)
		require.Positive(t, s.Checked, a.name)
	}
	require.Equal(t, 4, turns, "%q", missing)
}
