//go:build unix

package nbd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// The server between a socket and a Device that costs next to nothing: memory,
// and a raw file in the page cache.
func BenchmarkServer(b *testing.B) {
	const span = 16 << 20
	for _, device := range []string{"memory", "file"} {
		for _, op := range []struct {
			name string
			h    requestHeader
		}{
			{"write/bs=4k", requestHeader{cmd: cmdWrite, length: 4 << 10}},
			{"read/bs=4k", requestHeader{cmd: cmdRead, length: 4 << 10}},
			{"write/bs=64k", requestHeader{cmd: cmdWrite, length: 64 << 10}},
			{"read/bs=64k", requestHeader{cmd: cmdRead, length: 64 << 10}},
			{"write/bs=1m", requestHeader{cmd: cmdWrite, length: 1 << 20}},
			{"read/bs=1m", requestHeader{cmd: cmdRead, length: 1 << 20}},
			{"flush", requestHeader{cmd: cmdFlush}},
		} {
			for _, depth := range []int{1, 32} {
				b.Run(fmt.Sprintf("op=%s/depth=%d/device=%s", op.name, depth, device), func(b *testing.B) {
					address := serveForBench(b, newBenchDevice(b, device, span))
					l := newLoad(b, address, op.h, span, min(depth, max(1, span/2/max(1, int(op.h.length)))))
					require.NoError(b, l.run(1000))
					b.SetBytes(int64(op.h.length))
					b.ReportAllocs()
					b.ResetTimer()
					require.NoError(b, l.run(b.N))
				})
			}
		}
	}
}

// serveForBench serves d until the benchmark ends, and returns the socket.
func serveForBench(b testing.TB, d Device) string {
	b.Helper()
	return serve(b, Options{}, Export{Device: d}).address
}

func newBenchDevice(b testing.TB, kind string, size int64) Device {
	b.Helper()
	i := block.DeviceInfo{Size: size, MinBlock: 1, CanFlush: true, CanFUA: true, CanZero: true, MultiConn: true}
	if kind == "memory" {
		return &benchMemory{info: i, data: make([]byte, size)}
	}
	f, err := os.Create(filepath.Join(b.TempDir(), "disk"))
	require.NoError(b, err)
	b.Cleanup(func() { _ = f.Close() })
	d := &benchFile{info: i, file: f, fd: int(f.Fd())}
	for off := int64(0); off < size; off += 1 << 20 {
		require.NoError(b, d.WriteAt(b.Context(), make([]byte, 1<<20), off, 0))
	}
	return d
}

// benchMemory is memory without a lock: what overlaps is mixed, as on a disk.
type benchMemory struct {
	block.Device // what is not called
	info         block.DeviceInfo
	data         []byte
	late         bool // nothing is done with NoWait
}

func (d *benchMemory) ReadAt(_ context.Context, p []byte, off int64, f Flags) error {
	if d.late && f.Has(NoWait) {
		return ErrWouldBlock
	}
	copy(p, d.data[off:])
	return nil
}

func (d *benchMemory) WriteAt(_ context.Context, p []byte, off int64, f Flags) error {
	if d.late && f.Has(NoWait) {
		return ErrWouldBlock
	}
	copy(d.data[off:], p)
	return nil
}

func (d *benchMemory) WriteLater(p []byte, off int64, to Later) bool {
	if !d.late {
		return false
	}
	copy(d.data[off:], p)
	to.Ended(true)
	return true
}

func (d *benchMemory) WriteZeroes(_ context.Context, off, n int64, _ Flags) error {
	clear(d.data[off : off+n])
	return nil
}

func (d *benchMemory) Flush(context.Context) error { return nil }
func (d *benchMemory) Info() DeviceInfo            { return d.info }

// benchFile is a file in the page cache, which is assumed to answer at once.
type benchFile struct {
	block.Device
	info block.DeviceInfo
	file *os.File // keeps fd open
	fd   int
}

func (d *benchFile) ReadAt(_ context.Context, p []byte, off int64, _ Flags) error {
	_, err := syscall.Pread(d.fd, p, off)
	return err
}

func (d *benchFile) WriteAt(_ context.Context, p []byte, off int64, _ Flags) error {
	_, err := syscall.Pwrite(d.fd, p, off)
	return err
}

func (d *benchFile) WriteLater([]byte, int64, Later) bool { return false }

func (d *benchFile) Flush(context.Context) error { return nil }
func (d *benchFile) Info() DeviceInfo            { return d.info }
