//go:build linux

package hostfile

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// writeBackPiece is how much is begun at a time. While it is on its way the next piece
// is begun, and no more: that keeps the storage busy, and what has to be durable
// meanwhile finds little before it.
const writeBackPiece = 4 << 20

// A writeBack begins to write what is dirty. It waits through a descriptor of its
// own: the kernel reports a failed write once for each, and waiting would take the
// report from the next sync.
type writeBack struct {
	mu  sync.Mutex // one at a time; guards what follows
	f   *os.File   // nil until it is needed
	raw syscall.RawConn
}

// WriteBack is described at block.File.
func (f *File) WriteBack(off, n int64) {
	b := &f.back
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f == nil {
		var err error
		if b.f, b.raw, err = f.reopen(); err != nil {
			return
		}
	}
	_ = control(b.raw, func(fd int) error {
		for at := off; at < off+n; at += writeBackPiece {
			if err := unix.SyncFileRange(fd, at, min(writeBackPiece, off+n-at), unix.SYNC_FILE_RANGE_WRITE); err != nil {
				return err
			}
			if at == off {
				continue
			}
			if err := unix.SyncFileRange(fd, at-writeBackPiece, writeBackPiece, unix.SYNC_FILE_RANGE_WAIT_BEFORE); err != nil {
				return err // whoever syncs is told too
			}
		}
		return nil
	})
}

func (b *writeBack) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f == nil {
		return nil
	}
	return b.f.Close()
}
