//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

func TestTranslate(t *testing.T) {
	for err, want := range map[error]syscall.Errno{
		nil:                    0,
		block.ErrNoSpace:       unix.ENOSPC,
		block.ErrRange:         unix.EFBIG,
		block.ErrReadOnly:      unix.EROFS,
		block.ErrUnsupported:   unix.EOPNOTSUPP,
		block.ErrNotFast:       unix.EOPNOTSUPP,
		block.ErrInUse:         unix.EBUSY,
		block.ErrClosed:        unix.EIO,
		block.ErrStale:         unix.EIO,
		block.ErrWouldBlock:    unix.EIO,
		context.Canceled:       unix.EINTR,
		errClosing:             unix.ESHUTDOWN,
		syscall.ENOSPC:         unix.ENOSPC,
		syscall.EDQUOT:         unix.ENOSPC,
		syscall.ENOSYS:         unix.EIO, // it would switch the operation off
		syscall.EREMOTEIO:      unix.EIO,
		io.ErrUnexpectedEOF:    unix.EIO,
		errors.New("whatever"): unix.EIO,
	} {
		require.Equal(t, fuse.Status(want), translate(err), "%v", err)
		if err != nil {
			require.Equal(t, fuse.Status(want), translate(fmt.Errorf("write at 5: %w", err)), "%v, wrapped", err)
		}
	}
}

// Every operation tells its caller the error of the Device, and works again when
// that does.
func TestErrorsReachTheCaller(t *testing.T) {
	d := newFakeDevice(1 << 20)
	resize := func(ctx context.Context, _ int64) error { return d.begin(ctx, call{op: "resize"}) }
	_, path := mountFile(t, File{Device: d, Resize: resize}, Options{})
	fd, buf := open(t, path, unix.O_RDWR), make([]byte, 4096)
	operations := map[string]func() error{
		"read":     func() error { _, err := unix.Pread(fd, buf, 0); return err },
		"write":    func() error { _, err := unix.Pwrite(fd, buf, 0); return err },
		"fsync":    func() error { return unix.Fsync(fd) },
		"punch":    func() error { return unix.Fallocate(fd, punch, 0, 4096) },
		"zero":     func() error { return unix.Fallocate(fd, zero, 0, 4096) },
		"lseek":    func() error { _, err := unix.Seek(fd, 0, unix.SEEK_DATA); return ignoreNoData(err) },
		"truncate": func() error { return unix.Ftruncate(fd, 2<<20) },
	}
	for name, operation := range operations {
		for err, want := range map[error]syscall.Errno{
			errors.New("the disk is broken"):         unix.EIO,
			fmt.Errorf("grow: %w", block.ErrNoSpace): unix.ENOSPC,
			syscall.ENOSPC:                           unix.ENOSPC,
			block.ErrUnsupported:                     unix.EOPNOTSUPP,
			block.ErrClosed:                          unix.EIO,
		} {
			d.failWith(err)
			require.Equal(t, want, operation(), "%s: %v", name, err)
			d.failWith(nil)
			require.NoError(t, operation(), "%s works again after %v", name, err)
		}
	}
}

func ignoreNoData(err error) error {
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	return err
}

// A panic is EIO for its request and for every later one to the file, and for no
// other file.
func TestPanicPoisonsTheFile(t *testing.T) {
	bad, good := newFakeDevice(1<<20), newFakeDevice(1<<20)
	fs, dir := mountDir(t, []File{{Name: "bad.raw", Device: bad}, {Name: "good.raw", Device: good}}, Options{})
	fd, other, buf := openToClose(t, dir+"/bad.raw", unix.O_RDWR), openToClose(t, dir+"/good.raw", unix.O_RDWR), make([]byte, 4096)
	bad.onCall(func(_ context.Context, c call) error {
		if c.op == "write" {
			panic("an invariant does not hold")
		}
		return nil
	})
	_, err := unix.Pread(fd, buf, 0)
	require.NoError(t, err)
	_, err = unix.Pwrite(fd, buf, 0)
	require.Equal(t, unix.EIO, err)
	bad.taken()
	_, err = unix.Pread(fd, buf, 0)
	require.Equal(t, unix.EIO, err)
	require.Equal(t, unix.EIO, unix.Fsync(fd))
	require.Empty(t, bad.taken(), "nothing of it reaches the Device any more")
	_, err = unix.Pwrite(other, buf, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	require.NoError(t, unix.Close(other))
	closeFS(t, fs)
}
