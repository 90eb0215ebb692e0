//go:build linux

package fusefs

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
)

// The way from go-fuse to the Device allocates nothing. (Under the race detector
// a sync.Pool forgets on purpose.)
func TestRequestsAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes a sync.Pool allocate")
	}
	s, cancel := benchServer(blocktest.NewMemDevice(1<<20)), make(chan struct{})
	buf := make([]byte, 4096)
	data := [][]byte{buf}
	write := fuse.WriteIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID, Caller: fuse.Caller{Pid: 1}}, Offset: 8192, Size: 4096}
	read := fuse.ReadIn{InHeader: write.InHeader, Offset: 8192, Size: 4096}
	fsync := fuse.FsyncIn{InHeader: write.InHeader}
	lseek := fuse.LseekIn{InHeader: write.InHeader, Whence: unix.SEEK_HOLE}
	for name, request := range map[string]func(){
		"write": func() { s.Writev(cancel, &write, data) },
		"read": func() {
			r, _ := s.Read(cancel, &read, buf)
			r.Done()
		},
		"fsync": func() { s.Fsync(cancel, &fsync) },
		"lseek": func() { s.Lseek(cancel, &lseek, &fuse.LseekOut{}) },
	} {
		require.Zero(t, testing.AllocsPerRun(100, request), name)
	}
}

func benchServer(d block.Device) *server {
	return newServer([]File{{Device: d}}, false, Options{}.withDefaults(), fuse.Owner{}, newRequests(func(uint32) bool { return false }))
}

// BenchmarkWrite compares a write through a mount with one to the Device itself,
// and with the way from go-fuse to the Device alone. Read the three together: the
// difference is the kernel, go-fuse and the wake-ups between two processes.
func BenchmarkWrite(b *testing.B) {
	const size = 16 << 20
	for _, bs := range []int{4 << 10, 64 << 10, 1 << 20} {
		buf := make([]byte, bs)
		offset := func() int64 { return rand.Int64N(int64(size/bs)) * int64(bs) }
		run := func(impl string, write func(off int64) error) {
			b.Run(fmt.Sprintf("bs=%dk/impl=%s", bs>>10, impl), func(b *testing.B) {
				b.SetBytes(int64(bs))
				b.ReportAllocs()
				for b.Loop() {
					if err := write(offset()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		d := blocktest.NewMemDevice(size)
		run("device", func(off int64) error { return d.WriteAt(b.Context(), buf, off, 0) })

		s, data := benchServer(d), [][]byte{buf}
		run("handler", func(off int64) error {
			in := fuse.WriteIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Offset: uint64(off), Size: uint32(bs)}
			if _, st := s.Writev(nil, &in, data); !st.Ok() {
				return unix.Errno(st)
			}
			return nil
		})

		_, path := startServer(b, serverSpec{Size: size})
		fd := open(b, path, unix.O_RDWR)
		run("mount", func(off int64) error { _, err := unix.Pwrite(fd, buf, off); return err })
	}
}
