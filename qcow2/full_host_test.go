package qcow2_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// A sparseFile is a file in a file system that can be full: what Grow adds, and what
// Discard takes away, is a hole, and the first bytes that are written into a page of a
// hole need space. Zeroes that are asked for set space aside.
type sparseFile struct {
	*simdisk.Disk
	before func() // called before every write

	mu        sync.Mutex
	allocated map[int64]bool // by page
	full      bool
}

const hostPage = 4096

func newSparseFile() *sparseFile {
	return &sparseFile{Disk: simdisk.New(0, simdisk.Options{}), before: func() {}, allocated: map[int64]bool{}}
}

func (s *sparseFile) take(off, n int64) error {
	s.before()
	s.mu.Lock()
	defer s.mu.Unlock()
	for page := off / hostPage; page*hostPage < off+n; page++ {
		if s.full && !s.allocated[page] {
			return fmt.Errorf("write at %d: the host's file system: %w", off, block.ErrNoSpace)
		}
		s.allocated[page] = true
	}
	return nil
}

func (s *sparseFile) setFull(full bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = full
}

func (s *sparseFile) WriteAt(p []byte, off int64) (int, error) {
	if err := s.take(off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.Disk.WriteAt(p, off)
}

func (s *sparseFile) WriteAtSync(p []byte, off int64) (int, error) {
	if err := s.take(off, int64(len(p))); err != nil {
		return 0, err
	}
	return s.Disk.WriteAtSync(p, off)
}

func (s *sparseFile) WriteZeroes(off, n int64) error {
	if err := s.take(off, n); err != nil {
		return err
	}
	return s.Disk.WriteZeroes(off, n)
}

func (s *sparseFile) Discard(off, n int64) error {
	s.mu.Lock()
	for page := (off + hostPage - 1) / hostPage; (page+1)*hostPage <= off+n; page++ {
		delete(s.allocated, page)
	}
	s.mu.Unlock()
	return s.Disk.Discard(off, n)
}

// forgetZeroes makes holes of the pages that read zero, as copying a file does.
func (s *sparseFile) forgetZeroes(t *testing.T) {
	p := make([]byte, s.Size())
	_, err := s.ReadAt(p, 0)
	require.NoError(t, err)
	for at := 0; at < len(p); at += hostPage {
		if page := p[at:min(at+hostPage, len(p))]; bytes.Equal(page, make([]byte, len(page))) {
			delete(s.allocated, int64(at)/hostPage)
		}
	}
}

// TestHostFullDuringACommit (design review 2.14): the host's file system becomes full
// between two writes into the file, for every such moment. What the guest has written
// can be flushed, for a commit allocates nothing in the host either; a write that needs
// space waits, reads go on, and when there is space it is done. Nothing is poisoned.
// That goes for an image too whose empty tables are holes, because it was copied.
func TestHostFullDuringACommit(t *testing.T) {
	for _, copied := range []bool{false, true} {
		t.Run(fmt.Sprintf("copied %v", copied), func(t *testing.T) { everyMomentFull(t, copied) })
	}
}

func everyMomentFull(t *testing.T, copied bool) {
	step := 1
	if testing.Short() {
		step = 3
	}
	for at := 1; ; at += step {
		met := false
		synctest.Test(t, func(t *testing.T) { met = fullHost(t, at, copied) })
		if !met {
			require.Greater(t, at, 30, "the scenario became too small")
			return
		}
	}
}

// fullHost is the scenario, full from the at-th write on; false: it has fewer.
func fullHost(t *testing.T, at int, copied bool) (met bool) {
	const cs, coverage = 4096, 2 << 20
	ctx := t.Context()
	f := newSparseFile()
	require.NoError(t, qcow2.Create(ctx, f, qcow2.CreateOptions{Size: 16 << 20, ClusterSize: cs, RefcountBits: 64}))
	if copied {
		f.forgetZeroes(t)
	}
	im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1, ReserveBytes: 64 << 10})
	require.NoError(t, err)
	writes := 0
	f.before = func() {
		if writes++; writes == at {
			met = true
			f.setFull(true)
		}
	}
	content := map[int64][]byte{}
	for i := range int64(12) { // each under another table
		off := i%8*coverage + i*cs
		p := bytes.Repeat([]byte{byte(i + 1)}, cs)
		done := make(chan error, 1)
		go func() { done <- im.WriteAt(ctx, p, off, 0) }()
		synctest.Wait()
		if len(done) == 0 { // it is held; the rest goes on
			require.NoError(t, im.Flush(ctx), "write %d, full from %d on", i, at)
			for off, p := range content {
				requireRead(t, im, p, off)
			}
			f.setFull(false)
		}
		require.NoError(t, <-done, "write %d, full from %d on", i, at)
		content[off] = p
		if i%3 == 2 {
			require.NoError(t, im.Flush(ctx), "flush after write %d, full from %d on", i, at)
		}
	}
	require.NoError(t, im.Flush(ctx), "full from %d on", at)
	require.NoError(t, im.Stats().Poisoned)
	for off, p := range content {
		requireRead(t, im, p, off)
	}
	f.setFull(false)
	require.NoError(t, im.Close())
	requireClean(t, f)
	left, err := qcow2.Open(context.Background(), f.Crash(simdisk.DropAll), qcow2.Options{ReadOnly: true})
	require.NoError(t, err)
	for off, p := range content {
		requireRead(t, left, p, off)
	}
	return met
}
