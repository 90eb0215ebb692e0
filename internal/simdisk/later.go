package simdisk

import (
	"sync/atomic"

	"tidemark/internal/block"
)

// Later returns f as a File that is past the page cache and begins every write: a
// goroutine of its own does it with f.WriteAt, whatever wrappers f is made of, when it
// has its turn. Nothing but a crash or an error distinguishes the write from one that
// somebody waits for, and what it is beside.
func Later(f block.File) block.File { return &later{File: f} }

type later struct {
	block.File
	closed atomic.Bool
}

// WriteLater is described at block.File.
func (f *later) WriteLater(p []byte, off int64, to block.Later) bool {
	if f.closed.Load() || block.CheckRange(off, int64(len(p)), f.Size()) != nil {
		return false
	}
	go func() {
		_, err := f.WriteAt(p, off)
		to.Ended(err == nil)
	}()
	return true
}

// Info is described at block.File.
func (f *later) Info() block.FileInfo {
	i := f.File.Info()
	i.Direct = true
	return i
}

// Close is described at block.File. What was begun and has not had its turn fails.
func (f *later) Close() error {
	f.closed.Store(true)
	return f.File.Close()
}
