//go:build linux

package redo_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/redo"
)

func TestRing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rings")
	_, _, err := redo.Open(dir, 7)
	require.ErrorIs(t, err, redo.ErrNone)
	r, err := redo.Create(dir, 7, 8)
	require.NoError(t, err)
	_, err = redo.Create(dir, 7, 8)
	require.ErrorIs(t, err, os.ErrExist)
	require.False(t, r.Reserve(9))
	require.True(t, r.Reserve(8))
	require.False(t, r.Reserve(1))
	for i := range uint64(6) {
		r.Append(redo.Record{A: i, B: i * 2, C: i * 3})
	}
	r.Release(2)
	r.Trim(4)
	require.True(t, r.Reserve(6), "two records are left")
	require.False(t, r.Reserve(1))
	for i := range uint64(6) {
		r.Append(redo.Record{A: 6 + i})
	}
	// The process dies: nothing is closed.
	again, records, err := redo.Open(dir, 7)
	require.NoError(t, err)
	require.Len(t, records, 8)
	for i, rec := range records {
		require.Equal(t, uint64(4+i), rec.A)
	}
	require.False(t, again.Distrusted())
	again.Distrust()
	require.False(t, again.Reserve(1), "all slots are in use")
	again.Trim(again.Head())
	require.True(t, again.Reserve(8))
	require.NoError(t, again.Close())
	again, records, err = redo.Open(dir, 7)
	require.NoError(t, err)
	require.Empty(t, records)
	require.True(t, again.Distrusted())
	require.NoError(t, again.Remove())
	_, _, err = redo.Open(dir, 7)
	require.ErrorIs(t, err, redo.ErrNone)
}

// TestOtherBoot: a ring that another boot made says nothing.
func TestOtherBoot(t *testing.T) {
	dir := t.TempDir()
	r, err := redo.Create(dir, 1, 4)
	require.NoError(t, err)
	require.True(t, r.Reserve(1))
	r.Append(redo.Record{A: 1})
	require.NoError(t, r.Close())
	path := filepath.Join(dir, "0000000000000001")
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	b[8] ^= 1
	require.NoError(t, os.WriteFile(path, b, 0o600))
	_, _, err = redo.Open(dir, 1)
	require.ErrorIs(t, err, redo.ErrNone)
	require.NoFileExists(t, path)
}

// TestBadFiles: whatever is in the file, opening it ends with an error or a ring.
func TestBadFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0000000000000001")
	for _, n := range []int{0, 1, 63, 64, 95, 96, 4096} {
		require.NoError(t, os.WriteFile(path, make([]byte, n), 0o600))
		_, _, err := redo.Open(dir, 1)
		require.Error(t, err, "%d bytes", n)
	}
	require.NoError(t, os.RemoveAll(path))
	require.NoError(t, os.Symlink("/dev/zero", path))
	_, _, err := redo.Open(dir, 1)
	require.Error(t, err)
}

func TestConcurrentAppend(t *testing.T) {
	r, err := redo.Create(t.TempDir(), 1, 64)
	require.NoError(t, err)
	var mu sync.Mutex
	appended := 0
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 1000 {
				if !r.Reserve(3) {
					mu.Lock()
					r.Trim(r.Head())
					mu.Unlock()
					continue
				}
				r.Append(redo.Record{A: 1})
				r.Append(redo.Record{A: 2})
				r.Release(1)
				mu.Lock()
				appended += 2
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	require.Equal(t, uint64(appended), r.Head())
	r.Trim(r.Head())
	require.True(t, r.Reserve(64))
	require.NoError(t, r.Remove())
}

// TestMark: it lasts as long as the host is up, for the storage that it names.
func TestMark(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "rings")
	marked := func(name string) bool {
		found, err := redo.Marked(dir, name)
		require.NoError(t, err)
		return found
	}
	require.False(t, marked("file 1:2"))
	require.NoError(t, redo.Mark(dir, "file 1:2"))
	require.NoError(t, redo.Mark(dir, "file 1:2"))
	require.True(t, marked("file 1:2"))
	require.False(t, marked("file 1:3"))
	require.NoError(t, redo.Unmark(dir, "file 1:2"))
	require.NoError(t, redo.Unmark(dir, "file 1:2"))
	require.False(t, marked("file 1:2"))

	require.NoError(t, redo.Mark(dir, "file 1:2"))
	marks, err := filepath.Glob(filepath.Join(dir, "distrust-*"))
	require.NoError(t, err)
	require.Len(t, marks, 1)
	require.NoError(t, os.WriteFile(marks[0], make([]byte, 16), 0o600))
	require.False(t, marked("file 1:2"), "it is of another boot")
}
