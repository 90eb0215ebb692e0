//go:build linux

package fusefs

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/bits"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"tidemark/internal/block"
)

// A File is a disk to be shown.
type File struct {
	// Name in the directory, such as disk1.raw. On a regular file it is not used.
	Name string
	// Device is what is shown. It stays the caller's, who closes it after
	// FS.Close has returned. With a MinBlock above 1 the file is as one that is
	// open with O_DIRECT: other offsets and lengths are EINVAL.
	Device block.Device
	// Resize makes the disk larger, to size bytes, so that truncate(2) can. Nil:
	// it keeps its size.
	Resize func(ctx context.Context, size int64) error
	// Allocated is how many bytes of storage the disk takes, for st_blocks (du, ls
	// -s, and cp, which looks for holes only where it is less than the size). Nil:
	// its size.
	Allocated func() int64
}

// check finds what cannot be shown.
func (f File) check(isDir bool) error {
	switch {
	case f.Device == nil:
		return fmt.Errorf("file %q has no device", f.Name)
	case f.Device.Info().Size < 0:
		return fmt.Errorf("file %q: size %d, expected 0 or more", f.Name, f.Device.Info().Size)
	case f.Device.Info().MinBlock < 1 || bits.OnesCount(uint(f.Device.Info().MinBlock)) != 1:
		return fmt.Errorf("file %q: minimum block size %d, expected a power of two", f.Name, f.Device.Info().MinBlock)
	case !isDir:
		return nil
	case f.Name == "" || f.Name == "." || f.Name == ".." || len(f.Name) > nameBytesMax || strings.ContainsAny(f.Name, "/\x00"):
		return fmt.Errorf("file %q: expected a name of 1 to %d bytes without a slash", f.Name, nameBytesMax)
	}
	return nil
}

// file is a File that is being shown.
type file struct {
	File
	node uint64
	log  *slog.Logger

	readOnly, canFUA bool
	misaligned       uint64       // the bits that offsets and lengths may not have, for the Device's MinBlock
	maxTransfer      int          // of the Device, bytes; 0 is unlimited
	size             atomic.Int64 // what Info said last, which is never more than it says now

	poisoned atomic.Bool
	failed   sync.Once   // the first error is logged
	written  atomic.Bool // since mtime was set

	mu sync.Mutex // guards attr; a leaf
	// attr has what can be changed by chmod, chown and touch. It lasts as long as
	// the mount.
	attr struct {
		mode         uint32
		owner        fuse.Owner
		atime, mtime time.Time
		ctime        time.Time
	}
}

func newFile(f File, node uint64, owner fuse.Owner, readOnly bool, log *slog.Logger) *file {
	in := f.Device.Info()
	n := &file{
		File: f, node: node, log: log.With("file", f.Name),
		readOnly: readOnly || in.ReadOnly, canFUA: in.CanFUA,
		misaligned: uint64(in.MinBlock - 1), maxTransfer: in.MaxTransfer,
	}
	n.size.Store(in.Size)
	n.attr.mode, n.attr.owner = 0o600, owner
	if n.readOnly {
		n.attr.mode = 0o400
	}
	now := time.Now()
	n.attr.atime, n.attr.mtime, n.attr.ctime = now, now, now
	return n
}

// refresh asks the Device for its size.
func (f *file) refresh() int64 {
	size := f.Device.Info().Size
	f.size.Store(size)
	return size
}

// clip returns how many of n bytes at off lie within the disk. What lies within
// the size that is known costs no question.
func (f *file) clip(off uint64, n uint64) int64 {
	size := uint64(f.size.Load())
	if off > size || n > size-off {
		if size = uint64(f.refresh()); off >= size {
			return 0
		}
	}
	return int64(min(n, size-off))
}

// fillAttr writes what stat(2) shows.
func (f *file) fillAttr(out *fuse.Attr) {
	size := f.refresh()
	blocks := size
	if f.Allocated != nil {
		blocks = f.Allocated()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.written.Swap(false) {
		f.attr.mtime = time.Now()
		f.attr.ctime = f.attr.mtime
	}
	*out = fuse.Attr{
		Ino: f.node, Size: uint64(size), Blocks: (uint64(blocks) + 511) / 512, // the unit of st_blocks
		Mode: fuse.S_IFREG | f.attr.mode, Nlink: 1, Owner: f.attr.owner, Blksize: blockSize,
	}
	out.SetTimes(&f.attr.atime, &f.attr.mtime, &f.attr.ctime)
}

// setAttr does everything of setattr but the size.
func (f *file) setAttr(in *fuse.SetAttrIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if mode, ok := in.GetMode(); ok {
		f.attr.mode = mode & 0o777
	}
	if uid, ok := in.GetUID(); ok {
		f.attr.owner.Uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		f.attr.owner.Gid = gid
	}
	if t, ok := in.GetATime(); ok {
		f.attr.atime = t
	}
	if t, ok := in.GetMTime(); ok {
		f.attr.mtime = t
		f.written.Store(false)
	}
	f.attr.ctime = time.Now()
}

// wrote notes that the content has changed. The time of it is taken when
// somebody asks, so that a write costs a load.
func (f *file) wrote() {
	if !f.written.Load() {
		f.written.Store(true)
	}
}

// resize makes the file size bytes long.
func (f *file) resize(ctx context.Context, size uint64) fuse.Status {
	have := uint64(f.refresh())
	switch {
	case size == have:
		return fuse.OK
	case f.readOnly:
		return fuse.EROFS
	case size < have, f.Resize == nil:
		return fuse.EPERM // truncate(2): the file system does not support it
	case size > math.MaxInt64:
		return statusTooBig
	}
	if err := f.Resize(ctx, int64(size)); err != nil {
		return f.fail("truncate", err)
	}
	f.refresh()
	f.wrote()
	return fuse.OK
}

// fail translates an error, if there is one. The first one that only a log can explain is logged.
func (f *file) fail(op string, err error) fuse.Status {
	st := translate(err)
	if st == fuse.EIO {
		f.failed.Do(func() { f.log.Error("request failed; later ones are not logged", "request", op, "error", err) })
	}
	return st
}

// poison refuses every later request, because one has panicked: what it left
// behind in the Device is unknown.
func (f *file) poison(cause any) {
	if !f.poisoned.Swap(true) {
		f.log.Error("file refuses everything from now on: a request has panicked", "panic", cause, "stack", string(debug.Stack()))
	}
}
