//go:build linux

package fusefs

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block/blocktest"
)

// From the request of the kernel to the reply nothing is allocated. (Under the race
// detector a sync.Pool forgets on purpose.)
func TestRequestsAllocateNothing(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes a sync.Pool allocate")
	}
	k := newFakeKernel(t, blocktest.NewMemDevice(1<<20))
	lseek := fuse.LseekIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Whence: unix.SEEK_HOLE}
	for name, request := range map[string]func(){
		"write":       func() { k.serve(t, encodeTransfer(k.request[:], opWrite, 8192, 4096)) },
		"large write": func() { k.serve(t, encodeTransfer(k.request[:], opWrite, 8192, 2*atOnceMax)) },
		"read":        func() { k.serve(t, encodeTransfer(k.request[:], opRead, 8192, 4096)) },
		"fsync":       func() { k.serve(t, encodeTransfer(k.request[:], opFsync, 0, 0)) },
		"lseek":       func() { k.reader.crew.server.Lseek(nil, &lseek, &fuse.LseekOut{}) },
	} {
		require.Zero(t, testing.AllocsPerRun(100, request), name)
	}
}

// BenchmarkWrite compares a write through a mount with one to the Device itself,
// and with the way from a request to its reply alone. Read the three together: the
// difference is the kernel and the wake-ups between two processes.
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

		k := newFakeKernel(b, d)
		run("handler", func(off int64) error {
			k.serve(b, encodeTransfer(k.request[:], opWrite, off, bs))
			return nil
		})

		_, path := startServer(b, serverSpec{Size: size})
		fd := open(b, path, unix.O_RDWR)
		run("mount", func(off int64) error { _, err := unix.Pwrite(fd, buf, off); return err })
	}
}
