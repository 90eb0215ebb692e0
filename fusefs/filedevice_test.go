//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
)

// A fileDevice is a disk in a file of the host, by system calls and nothing
// else: below a mount it is the disk that is served, above it the disk as its
// user sees it.
//
// It does not use os.File to open: that adds the descriptor to the poller, which
// in the process that serves the mount would wait for itself.
type fileDevice struct {
	info block.DeviceInfo

	mu sync.RWMutex // guards fd against Close
	fd int          // -1 when closed
}

var _ block.Device = (*fileDevice)(nil)

func openFileDevice(t testing.TB, path string) *fileDevice {
	t.Helper()
	d, err := newFileDevice(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func newFileDevice(path string) (*fileDevice, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("stat %s: %w", path, err), unix.Close(fd))
	}
	return &fileDevice{fd: fd, info: block.DeviceInfo{
		Size: st.Size, MinBlock: 1, PreferredBlock: 4096, MultiConn: true,
		CanFlush: true, CanFUA: true, CanDiscard: true, CanZero: true,
	}}, nil
}

// enter checks a range and keeps the descriptor open until leave.
func (d *fileDevice) enter(op string, off, n int64, f block.Flags) error {
	d.mu.RLock()
	err := block.CheckRange(off, n, d.info.Size)
	switch {
	case d.fd < 0:
		err = block.ErrClosed
	case err == nil && f.Has(block.NoWait):
		err = block.ErrWouldBlock
	}
	if err != nil {
		d.mu.RUnlock()
		return fmt.Errorf("%s %d bytes at %d: %w", op, n, off, err)
	}
	return nil
}

func (d *fileDevice) leave() { d.mu.RUnlock() }

// ReadAt is described at block.Device.
func (d *fileDevice) ReadAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.enter("read", off, int64(len(p)), f); err != nil {
		return err
	}
	defer d.leave()
	for len(p) > 0 {
		n, err := unix.Pread(d.fd, p, off)
		if err == nil && n == 0 {
			err = errors.New("short read")
		}
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteAt is described at block.Device.
func (d *fileDevice) WriteLater([]byte, int64, block.Later) bool { return false }

func (d *fileDevice) WriteAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	if err := d.enter("write", off, int64(len(p)), f); err != nil {
		return err
	}
	defer d.leave()
	for len(p) > 0 {
		n, err := d.pwrite(p, off, f)
		if err != nil {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (d *fileDevice) pwrite(p []byte, off int64, f block.Flags) (int, error) {
	if f.Has(block.FUA) {
		return unix.Pwritev2(d.fd, [][]byte{p}, off, unix.RWF_DSYNC)
	}
	return unix.Pwrite(d.fd, p, off)
}

// WriteZeroes is described at block.Device.
func (d *fileDevice) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	if err := d.enter("zero", off, n, f); err != nil {
		return err
	}
	defer d.leave()
	mode := uint32(unix.FALLOC_FL_ZERO_RANGE)
	switch {
	case f.Has(block.Fast):
		return block.ErrNotFast
	case f.Has(block.MayUnmap):
		mode = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	}
	return d.fallocate(mode, off, n, f)
}

// Discard is described at block.Device.
func (d *fileDevice) Discard(_ context.Context, off, n int64, f block.Flags) error {
	if err := d.enter("discard", off, n, f); err != nil {
		return err
	}
	defer d.leave()
	return d.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n, f)
}

func (d *fileDevice) fallocate(mode uint32, off, n int64, f block.Flags) error {
	if n == 0 {
		return nil
	}
	err := unix.Fallocate(d.fd, mode, off, n)
	if err == nil && f.Has(block.FUA) {
		err = unix.Fdatasync(d.fd)
	}
	if err != nil {
		return fmt.Errorf("fallocate %#x of %d bytes at %d: %w", mode, n, off, err)
	}
	return nil
}

// AppendExtents is described at block.Device.
func (d *fileDevice) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	if err := d.enter("extents of", off, n, 0); err != nil {
		return dst, err
	}
	defer d.leave()
	end := off + n
	for first := true; off < end && (first || len(dst) < cap(dst)); first = false {
		data, err := unix.Seek(d.fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = end, nil
		}
		if err != nil {
			return dst, err
		}
		e := block.Extent{Off: off, Len: min(data, end) - off, State: block.Zero, Host: -1}
		if data == off {
			hole, err := unix.Seek(d.fd, off, unix.SEEK_HOLE)
			if err != nil {
				return dst, err
			}
			e = block.Extent{Off: off, Len: min(hole, end) - off, State: block.Allocated | block.Data, Host: off}
		}
		dst, off = append(dst, e), e.End()
	}
	return dst, nil
}

// Flush is described at block.Device.
func (d *fileDevice) Flush(context.Context) error {
	if err := d.enter("flush", 0, 0, 0); err != nil {
		return err
	}
	defer d.leave()
	return unix.Fdatasync(d.fd)
}

// Info is described at block.Device.
func (d *fileDevice) Info() block.DeviceInfo { return d.info }

// Close is described at block.Device.
func (d *fileDevice) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return block.ErrClosed
	}
	err := unix.Close(d.fd)
	d.fd = -1
	return err
}

// sparseFile makes a file of size bytes that read zero.
func sparseFile(t testing.TB, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "disk")
	require.NoError(t, err)
	require.NoError(t, f.Truncate(size))
	require.NoError(t, f.Close())
	return f.Name()
}

func TestFileDeviceConformance(t *testing.T) {
	blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
		return openFileDevice(t, sparseFile(t, size))
	})
}
