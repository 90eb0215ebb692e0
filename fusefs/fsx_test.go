//go:build linux

package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// TestRandomOperations does what fsx does: random operations on one file,
// through every kind of descriptor and a shared memory mapping, compared with an
// array of bytes after each of them; and in the end with the disk below. The
// server is a process of its own, once with a single processor.
func TestRandomOperations(t *testing.T) {
	for _, env := range []string{"GOMAXPROCS=2", "GOMAXPROCS=1"} {
		t.Run(env, func(t *testing.T) {
			_, rng := testenv.Seed(t)
			disk := sparseFile(t, fsxSize)
			p, path := startServer(t, serverSpec{Disk: disk}, env)
			x := newFSX(t, path, rng)
			operations := 20000
			if testing.Short() {
				operations = 2000
			}
			for i := range operations {
				x.step(i)
			}
			x.compare(0, fsxSize)
			x.close()
			stopServer(t, p)
			below, err := os.ReadFile(disk)
			require.NoError(t, err)
			require.True(t, bytes.Equal(x.want, below), "the disk below")
		})
	}
}

// fsxSize is not a multiple of a page.
const fsxSize = 1<<20 + 512

// An fsx is a file under test and what it should hold.
type fsx struct {
	t    *testing.T
	path string
	rng  *rand.Rand
	want []byte

	buffered, direct int    // descriptors
	mapped           []byte // the whole pages of the file
	aligned          []byte // a buffer for the direct one
}

func newFSX(t *testing.T, path string, rng *rand.Rand) *fsx {
	t.Helper()
	aligned, err := unix.Mmap(-1, 0, fsxSize+4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	require.NoError(t, err)
	x := &fsx{t: t, path: path, rng: rng, want: make([]byte, fsxSize), aligned: aligned, buffered: -1, direct: -1}
	x.reopen()
	return x
}

// reopen opens the file anew, mapped or not: as long as it is mapped the kernel
// treats every descriptor differently.
func (x *fsx) reopen() {
	x.close()
	var err error
	x.buffered, err = unix.Open(x.path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(x.t, err)
	x.direct, err = unix.Open(x.path, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	require.NoError(x.t, err)
	if x.rng.IntN(2) == 0 {
		x.mapped, err = unix.Mmap(x.buffered, 0, fsxSize&^4095, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(x.t, err)
	}
}

func (x *fsx) close() {
	if x.mapped != nil {
		require.NoError(x.t, unix.Munmap(x.mapped))
		x.mapped = nil
	}
	for _, fd := range []*int{&x.buffered, &x.direct} {
		if *fd >= 0 {
			require.NoError(x.t, unix.Close(*fd))
			*fd = -1
		}
	}
}

// someRange returns a range, mostly short, within limit.
func (x *fsx) someRange(limit int) (off, n int) {
	off = x.rng.IntN(limit)
	return off, 1 + x.rng.IntN(min(limit-off, 1<<(1+x.rng.IntN(19))))
}

// fill writes noise, or sometimes zeroes, to p.
func (x *fsx) fill(p []byte) {
	if x.rng.IntN(8) == 0 {
		clear(p)
		return
	}
	noise(x.rng, p)
}

// noise fills p with bytes that differ from one use to the next.
func noise(rng *rand.Rand, p []byte) {
	state := rng.Uint64()
	for len(p) > 0 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], state)
		p = p[copy(p, word[:]):]
		state = state*6364136223846793005 + 1442695040888963407 // Knuth's MMIX
	}
}

// step does one operation, and compares what it returned, or the range that it
// changed with something around it.
func (x *fsx) step(i int) {
	off, n := x.someRange(fsxSize)
	op := x.rng.IntN(11)
	var err error
	switch op {
	case 0, 1: // compared below
	case 2, 3:
		x.fill(x.want[off : off+n])
		n, err = unix.Pwrite(x.buffered, x.want[off:off+n], int64(off))
	case 4:
		off, n = off&^511, min((n+511)&^511, fsxSize-off&^511)
		x.fill(x.want[off : off+n])
		copy(x.aligned, x.want[off:off+n])
		n, err = unix.Pwrite(x.direct, x.aligned[:n], int64(off))
	case 5:
		err = x.zero(off, n)
	case 6:
		if x.mapped != nil {
			off, n = x.someRange(len(x.mapped))
			x.fill(x.want[off : off+n])
			copy(x.mapped[off:], x.want[off:off+n])
		}
	case 7:
		if x.mapped != nil {
			err = unix.Msync(x.mapped, unix.MS_SYNC)
		}
	case 8:
		err = unix.Fdatasync(x.buffered)
	case 9:
		x.seek(off)
	case 10:
		if x.rng.IntN(20) == 0 {
			x.reopen()
		}
	}
	require.NoError(x.t, err, "operation %d, kind %d, %d bytes at %d", i, op, n, off)
	x.compare(max(off-4096, 0), min(off+n+4096, fsxSize))
	if x.t.Failed() {
		x.t.Fatalf("after operation %d, kind %d, %d bytes at %d", i, op, n, off)
	}
}

// zero punches or zeroes a range, which may pass the end of the file.
func (x *fsx) zero(off, n int) error {
	mode := []uint32{punch, zero, zero | keep}[x.rng.IntN(3)]
	clear(x.want[off : off+n])
	if mode != zero && off+n == fsxSize {
		n += x.rng.IntN(1 << 20)
	}
	return unix.Fallocate(x.buffered, mode, int64(off), int64(n))
}

// seek requires that what is called a hole reads zero. The kernel does not write
// out what a mapping has changed before it asks for data, so that is done first.
func (x *fsx) seek(off int) {
	if x.mapped != nil {
		require.NoError(x.t, unix.Msync(x.mapped, unix.MS_SYNC))
	}
	data, err := unix.Seek(x.buffered, int64(off), unix.SEEK_DATA)
	if err == unix.ENXIO { //nolint:errorlint // it is a plain errno
		data, err = fsxSize, nil
	}
	require.NoError(x.t, err)
	require.Equal(x.t, -1, bytes.IndexFunc(x.want[off:data], func(r rune) bool { return r != 0 }), "the hole from %d to %d", off, data)
	hole, err := unix.Seek(x.buffered, int64(off), unix.SEEK_HOLE)
	require.NoError(x.t, err)
	require.False(x.t, data > int64(off) && hole > int64(off), "%d is neither data nor hole", off)
}

// compare reads a range in one of the ways that there are.
func (x *fsx) compare(off, end int) {
	got := make([]byte, end-off)
	var how string
	var n int
	var err error
	switch x.rng.IntN(3) {
	case 0:
		how = "pread"
		n, err = unix.Pread(x.buffered, got, int64(off))
	case 1:
		how = "O_DIRECT"
		first := off &^ 511
		n, err = unix.Pread(x.direct, x.aligned[:(end-first+511)&^511], int64(first))
		n -= off - first
		n = min(copy(got, x.aligned[off-first:]), n)
	default:
		how = "mapping"
		if n = copy(got, x.mapped[min(off, len(x.mapped)):]); n < len(got) {
			how = "pread behind the mapping"
			var rest int
			rest, err = unix.Pread(x.buffered, got[n:], int64(off+n))
			n += rest
		}
	}
	require.NoError(x.t, err, how)
	require.Equal(x.t, end-off, n, how)
	if !bytes.Equal(x.want[off:end], got) {
		i := 0
		for got[i] == x.want[off+i] {
			i++
		}
		require.Fail(x.t, fmt.Sprintf("%s: byte %d: expected %#x, found %#x", how, off+i, x.want[off+i], got[i]))
	}
}
