//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
)

const (
	punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zero  = unix.FALLOC_FL_ZERO_RANGE
	keep  = unix.FALLOC_FL_KEEP_SIZE
)

// Every mode, within the file, across its end and behind it.
func TestFallocate(t *testing.T) {
	const size = 1 << 20
	within, across, behind := int64(8192), int64(size-4096), int64(size+4096)
	cases := []struct {
		name string
		mode uint32
		off  int64
		want error
		call *call // nil: the Device is not asked
	}{
		{"punch", punch, within, nil, &call{"zero", within, 8192, block.MayUnmap}},
		{"punch across the end", punch, across, nil, &call{"zero", across, 4096, block.MayUnmap}},
		{"punch behind the end", punch, behind, nil, nil},
		{"zero", zero, within, nil, &call{"zero", within, 8192, 0}},
		{"zero, keep the size", zero | keep, within, nil, &call{"zero", within, 8192, 0}},
		{"zero across the end", zero, across, unix.EFBIG, nil},
		{"zero across the end, keep the size", zero | keep, across, nil, &call{"zero", across, 4096, 0}},
		{"zero behind the end", zero, behind, unix.EFBIG, nil},
		{"zero behind the end, keep the size", zero | keep, behind, nil, nil},
		{"allocate", 0, within, unix.EOPNOTSUPP, nil},
		{"allocate across the end", 0, across, unix.EOPNOTSUPP, nil},
		{"allocate, keep the size", keep, within, unix.EOPNOTSUPP, nil},
		{"collapse", unix.FALLOC_FL_COLLAPSE_RANGE, within, unix.EOPNOTSUPP, nil},
		{"insert", unix.FALLOC_FL_INSERT_RANGE, within, unix.EOPNOTSUPP, nil},
	}
	d := newFakeDevice(size)
	_, path := mountFile(t, File{Device: d}, Options{})
	fd := open(t, path, unix.O_RDWR)
	for round := range 2 { // a refusal switches nothing off for good
		for _, c := range cases {
			t.Run(fmt.Sprintf("%s %d", c.name, round), func(t *testing.T) {
				d.taken()
				err := unix.Fallocate(fd, c.mode, c.off, 8192)
				require.Equal(t, c.want, errorOf(err))
				calls := d.taken()
				if c.call == nil {
					require.Empty(t, calls)
					return
				}
				require.Equal(t, []call{*c.call}, calls)
			})
		}
	}
	require.Equal(t, unix.EINVAL, unix.Fallocate(fd, punch, 0, 0), "by the kernel: fallocate(2) wants a length")

	// What the Device is not able to do is not switched off for good either.
	d.failWith(block.ErrUnsupported)
	require.Equal(t, unix.EOPNOTSUPP, unix.Fallocate(fd, punch, 0, 4096))
	d.failWith(nil)
	require.NoError(t, unix.Fallocate(fd, punch, 0, 4096))
}

// errorOf makes no error comparable with an errno that is expected.
func errorOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// Ranges that no kernel sends, or that would overflow.
func TestDecideFallocateExtremes(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		mode        uint32
		off, length uint64
		n           int64
		st          fuse.Status
	}{
		{punch, 0, 1 << 63, size, fuse.OK},
		{punch, size - 1, ^uint64(0), 1, fuse.OK},
		{punch, ^uint64(0), ^uint64(0), 0, fuse.OK},
		{zero, 1, ^uint64(0), 0, statusTooBig},
		{zero, ^uint64(0), 1, 0, statusTooBig},
		{zero, 0, size, size, fuse.OK},
		{unix.FALLOC_FL_UNSHARE_RANGE, 0, 1, 0, statusUnsupported},
		{punch | zero, 0, 1, 0, statusUnsupported},
	} {
		n, _, st := decideFallocate(c.mode, c.off, c.length, size)
		require.Equal(t, c.st, st, "%+v", c)
		require.Equal(t, c.n, n, "%+v", c)
	}
}

// A read ends at the end of the disk, a write too, and one behind it is refused.
func TestEndOfFile(t *testing.T) {
	const size = 1<<20 + 512
	d := newFakeDevice(size)
	_, path := mountFile(t, File{Device: d}, Options{})
	for _, flags := range []int{unix.O_RDWR, unix.O_RDWR | unix.O_DIRECT} {
		fd, buf := open(t, path, flags), make([]byte, 8192)
		n, err := unix.Pread(fd, buf, size-512)
		require.NoError(t, err)
		require.Equal(t, 512, n)
		for _, off := range []int64{size, size + 512, 1 << 62} {
			n, err = unix.Pread(fd, buf, off)
			require.NoError(t, err, off)
			require.Zero(t, n, off)
			_, err = unix.Pwrite(fd, buf, off)
			require.Equal(t, unix.EFBIG, err, off)
		}
		n, err = unix.Pwrite(fd, buf, size-4096)
		require.NoError(t, err)
		require.Equal(t, 4096, n)
		end, err := unix.Seek(fd, 0, unix.SEEK_END)
		require.NoError(t, err)
		require.EqualValues(t, size, end)
	}
	fd := open(t, path, unix.O_WRONLY|unix.O_APPEND)
	_, err := unix.Write(fd, []byte("more"))
	require.Equal(t, unix.EFBIG, err)
}

// Data and holes, from every interesting offset, against the extents.
func TestSeekDataAndHoles(t *testing.T) {
	const size, unit = 64 << 10, 4096
	d := newFakeDevice(size)
	ctx := t.Context()
	for _, off := range []int64{2 * unit, 3 * unit, 8 * unit, 15 * unit} {
		require.NoError(t, d.WriteAt(ctx, []byte("data"), off, 0))
	}
	_, path := mountFile(t, File{Device: d}, Options{})
	fd := open(t, path, unix.O_RDONLY)
	for _, c := range []struct{ off, data, hole int64 }{
		{0, 2 * unit, 0},
		{1, 2 * unit, 1},
		{2 * unit, 2 * unit, 4 * unit},
		{3*unit + 5, 3*unit + 5, 4 * unit},
		{4 * unit, 8 * unit, 4 * unit},
		{8 * unit, 8 * unit, 9 * unit},
		{15 * unit, 15 * unit, size}, // the end of the file is a hole
		{size - 1, size - 1, size},
	} {
		got, err := unix.Seek(fd, c.off, unix.SEEK_DATA)
		require.NoError(t, err, "%+v", c)
		require.Equal(t, c.data, got, "data from %d", c.off)
		got, err = unix.Seek(fd, c.off, unix.SEEK_HOLE)
		require.NoError(t, err, "%+v", c)
		require.Equal(t, c.hole, got, "hole from %d", c.off)
	}
	require.NoError(t, d.Discard(ctx, 15*unit, unit, 0))
	_, err := unix.Seek(fd, 9*unit, unix.SEEK_DATA)
	require.Equal(t, unix.ENXIO, err, "no data to the end")
	for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
		_, err := unix.Seek(fd, size, whence)
		require.Equal(t, unix.ENXIO, err, "behind the end")
	}
	d.failWith(block.ErrUnsupported)
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	require.Equal(t, unix.EOPNOTSUPP, err)
	d.failWith(nil)
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	require.NoError(t, err, "a refusal switches nothing off for good")
}

// More extents than are asked for at a time.
func TestSeekPastManyExtents(t *testing.T) {
	const unit = 4096
	d := &stripedDevice{fakeDevice: newFakeDevice(unit * 10 * extentBatch)}
	f := newFile(File{Device: d}, 1, fuse.Owner{}, false, Options{}.withDefaults().Logger)
	end := d.Info().Size
	off, err := f.find(t.Context(), 0, end, true)
	require.NoError(t, err)
	require.Equal(t, end, off, "all of it is data, in many extents")
	off, err = f.find(t.Context(), 5, end, false)
	require.NoError(t, err)
	require.EqualValues(t, 5, off)
}

// A stripedDevice has data everywhere, each block at another place.
type stripedDevice struct{ *fakeDevice }

func (d *stripedDevice) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	const unit = 4096
	for end := off + n; off < end && (len(dst) < cap(dst) || len(dst) == 0); {
		stop := min((off/unit+1)*unit, end)
		dst = append(dst, block.Extent{Off: off, Len: stop - off, State: block.Allocated | block.Data, Host: 2 * off})
		off = stop
	}
	return dst, nil
}

// What is asked to be durable is, and nothing else.
func TestDurability(t *testing.T) {
	d := newFakeDevice(1 << 20)
	_, path := mountFile(t, File{Device: d}, Options{})
	buf := make([]byte, 4096)
	flagsOf := func(flags int, rwf int) block.Flags {
		fd := open(t, path, unix.O_RDWR|flags)
		d.taken()
		n, err := unix.Pwritev2(fd, [][]byte{buf}, 0, rwf)
		require.NoError(t, err)
		require.Equal(t, len(buf), n)
		calls := d.taken()
		require.Len(t, calls, 1, "%v", calls)
		require.Equal(t, "write", calls[0].op)
		return calls[0].flags
	}
	for _, direct := range []int{0, unix.O_DIRECT} {
		require.Zero(t, flagsOf(direct, 0))
		require.Equal(t, block.FUA, flagsOf(direct|unix.O_DSYNC, 0))
		require.Equal(t, block.FUA, flagsOf(direct|unix.O_SYNC, 0))
		require.Equal(t, block.FUA, flagsOf(direct, unix.RWF_DSYNC))
		require.Equal(t, block.FUA, flagsOf(direct, unix.RWF_SYNC))
	}
	fd := open(t, path, unix.O_RDWR)
	for name, sync := range map[string]func(int) error{"fsync": unix.Fsync, "fdatasync": unix.Fdatasync} {
		d.taken()
		require.NoError(t, sync(fd), name)
		require.Equal(t, []call{{op: "flush"}}, d.taken(), name)
	}
	d.taken()
	require.NoError(t, unix.Close(openToClose(t, path, unix.O_RDWR)))
	require.Empty(t, d.taken(), "close is no barrier")
}

// A Device that takes little at a time is asked several times.
func TestMaxTransfer(t *testing.T) {
	d := &shapedDevice{fakeDevice: newFakeDevice(1 << 20), maxTransfer: 4096}
	_, path := mountFile(t, File{Device: d}, Options{})
	fd := open(t, path, unix.O_RDWR)
	_, err := unix.Pwrite(fd, make([]byte, 10000), 100)
	require.NoError(t, err)
	require.Equal(t, []call{{"write", 100, 4096, 0}, {"write", 4196, 4096, 0}, {"write", 8292, 1808, 0}}, d.taken())
	_, err = unix.Pread(fd, make([]byte, 5000), 0)
	require.NoError(t, err)
	require.Equal(t, []call{{"read", 0, 4096, 0}, {"read", 4096, 904, 0}}, d.taken())
}

// What a Device does not take does not reach it.
func TestMinBlock(t *testing.T) {
	d := &shapedDevice{fakeDevice: newFakeDevice(1 << 20), minBlock: 512}
	_, path := mountFile(t, File{Device: d}, Options{})
	fd, buf := open(t, path, unix.O_RDWR), make([]byte, 1024)
	for _, c := range []struct{ off, n int64 }{{1, 512}, {0, 511}, {100, 412}, {1<<20 - 100, 100}} {
		_, err := unix.Pread(fd, buf[:c.n], c.off)
		require.Equal(t, unix.EINVAL, err, "%+v", c)
		_, err = unix.Pwrite(fd, buf[:c.n], c.off)
		require.Equal(t, unix.EINVAL, err, "%+v", c)
		require.Equal(t, unix.EINVAL, unix.Fallocate(fd, punch, c.off, c.n), "%+v", c)
	}
	require.Empty(t, d.taken())
	_, err := unix.Pwrite(fd, buf, 512)
	require.NoError(t, err)
	n, err := unix.Pread(fd, buf, 1<<20-512)
	require.NoError(t, err)
	require.Equal(t, 512, n)
}

// A shapedDevice says other block sizes than it has.
type shapedDevice struct {
	*fakeDevice
	minBlock, maxTransfer int
}

func (d *shapedDevice) Info() block.DeviceInfo {
	in := d.fakeDevice.Info()
	in.MaxTransfer, in.MinBlock = d.maxTransfer, max(d.minBlock, 1)
	return in
}
