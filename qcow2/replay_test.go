package qcow2_test

import (
	"bytes"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/redo"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestRingThatDoesNotFit: a ring with a record that cannot be of this image, because
// somebody has put another version of it in its place, is not replayed, and the image
// opens without it. What it would name holds metadata, or is not the image's.
func TestRingThatDoesNotFit(t *testing.T) {
	const cs, entry, table = 4096, 1 << 56, 2 << 56
	ctx := t.Context()
	for name, r := range map[string]redo.Record{
		"unknown kind":                 {A: 3 << 56},
		"table for no L1 entry":        {A: table | 1<<20, B: 5},
		"table in the header":          {A: table | 1, B: 0},
		"table in the refcount table":  {A: table | 1, B: 1},
		"table in a refcount block":    {A: table | 1, B: 2},
		"table before the file":        {A: table | 1, B: 1<<64 - 5000},
		"table behind the file":        {A: table | 1, B: 1 << 40},
		"entry behind the disk":        {A: entry | 1<<40},
		"compressed entry":             {A: entry | 3, B: 1<<62 | 5*cs},
		"data in the refcount table":   {A: entry | 3, B: 1<<63 | 1*cs},
		"data in a refcount block":     {A: entry | 3, B: 1<<63 | 2*cs},
		"data behind the file":         {A: entry | 3, B: 1<<63 | 1<<40},
		"data of an unaligned cluster": {A: entry | 3, B: 1<<63 | 5*cs + 512},
		"under a table that is not":    {A: entry | 1000, B: 1<<63 | 5*cs},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t, qcow2.CreateOptions{Size: 4 << 20, ClusterSize: cs})
			o := qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()}
			im, err := qcow2.Open(ctx, d, o)
			require.NoError(t, err)
			flushed := bytes.Repeat([]byte{1}, cs)
			require.NoError(t, im.WriteAt(ctx, flushed, 0, 0))
			require.NoError(t, im.Flush(ctx))
			im.WaitIdle() // the process dies
			d = d.Crash(simdisk.KeepAll)
			appendRecord(t, o.RedoDir, r)

			im, err = qcow2.Open(ctx, d, o)
			require.NoError(t, err)
			requireRead(t, im, flushed, 0)
			<-im.Settled()
			require.NoError(t, im.WriteAt(ctx, flushed, 2<<20, 0))
			require.NoError(t, im.Close())
			requireClean(t, d)
		})
	}
}

// appendRecord appends to the ring in dir, which no process has.
func appendRecord(t *testing.T, dir string, rec redo.Record) {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	id, err := strconv.ParseUint(filepath.Base(files[0]), 16, 64)
	require.NoError(t, err)
	r, _, err := redo.Open(dir, id)
	require.NoError(t, err)
	require.True(t, r.Reserve(1))
	r.Append(rec)
	require.NoError(t, r.Close())
}
