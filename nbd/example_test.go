package nbd_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"sync"

	"tidemark/nbd"
)

// ram is a disk in memory: the least that a Device has to be.
type ram struct {
	mu   sync.RWMutex
	data []byte
}

func (r *ram) ReadAt(_ context.Context, p []byte, off int64, _ nbd.Flags) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if off < 0 || off+int64(len(p)) > int64(len(r.data)) {
		return nbd.ErrRange
	}
	copy(p, r.data[off:])
	return nil
}

func (r *ram) WriteAt(_ context.Context, p []byte, off int64, _ nbd.Flags) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if off < 0 || off+int64(len(p)) > int64(len(r.data)) {
		return nbd.ErrRange
	}
	copy(r.data[off:], p)
	return nil
}

func (r *ram) WriteLater([]byte, int64, nbd.Later) bool { return false }

func (r *ram) WriteZeroes(context.Context, int64, int64, nbd.Flags) error {
	return nbd.ErrUnsupported
}

func (r *ram) Discard(context.Context, int64, int64, nbd.Flags) error { return nbd.ErrUnsupported }

func (r *ram) AppendExtents(_ context.Context, dst []nbd.Extent, off, n int64) ([]nbd.Extent, error) {
	return append(dst, nbd.Extent{Off: off, Len: n, State: nbd.Allocated | nbd.Data, Host: -1}), nil
}

func (r *ram) Flush(context.Context) error { return nil }
func (r *ram) Info() nbd.DeviceInfo        { return nbd.DeviceInfo{Size: int64(len(r.data)), MinBlock: 1} }
func (r *ram) Close() error                { return nil }

// A device is served on a unix socket, and a client writes and reads it.
func Example() {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}

	server := nbd.NewServer(nbd.Options{})
	if err := server.AddExport(nbd.Export{Name: "disk", Device: &ram{data: make([]byte, 1<<20)}}); err != nil {
		log.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(l) }()

	ctx := context.Background()
	disk, err := nbd.Dial(ctx, "unix", socket, nbd.ClientOptions{Export: "disk"})
	if err != nil {
		log.Fatal(err)
	}
	if err := disk.WriteAt(ctx, []byte("hello"), 4096, 0); err != nil {
		log.Fatal(err)
	}
	p := make([]byte, 5)
	if err := disk.ReadAt(ctx, p, 4096, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d bytes, %q\n", disk.Info().Size, p)

	if err := disk.Close(); err != nil {
		log.Fatal(err)
	}
	if err := server.Shutdown(ctx); err != nil {
		log.Fatal(err)
	}
	if err := <-served; err != nil {
		log.Fatal(err)
	}
	// Output: 1048576 bytes, "hello"
}
