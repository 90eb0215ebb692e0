//go:build linux

package hostfile

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Pieces of writeBackPiece bytes are on their way, as many as writeBackDepth at a time:
// that keeps a storage busy with pages that lie apart (4 KiB in each cluster of 64 KiB
// make 64 requests of a piece), and what has to be durable meanwhile finds little before it.
const (
	writeBackPiece = 4 << 20
	writeBackDepth = 3
)

// A writeBack writes what is dirty. It does so through a descriptor of its
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
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(writeBackDepth, (n+writeBackPiece-1)/writeBackPiece) {
		workers.Go(func() {
			for at := next.Add(writeBackPiece) - writeBackPiece; at < n; at = next.Add(writeBackPiece) - writeBackPiece {
				if b.write(off+at, min(writeBackPiece, n-at)) != nil {
					return // whoever syncs is told too
				}
			}
		})
	}
	workers.Wait()
}

// write writes what is dirty of a piece and waits for it. All three flags make the
// kernel write as it does for a sync; what is only begun goes behind everything else
// and through the throttle of background writes, at two thirds of the speed.
func (b *writeBack) write(off, n int64) error {
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	return control(b.raw, func(fd int) error { return unix.SyncFileRange(fd, off, n, all) })
}

func (b *writeBack) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.f == nil {
		return nil
	}
	return b.f.Close()
}
