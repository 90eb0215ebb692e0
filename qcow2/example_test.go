//go:build linux

package qcow2_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

// Create an image, write to it, and look at what it is made of.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	// Any File will do: a regular file, a volume of a pool, a simulated disk.
	file, err := hostfile.Create(filepath.Join(dir, "disk.qcow2"), 0, hostfile.CreateOptions{})
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	if err := qcow2.Create(ctx, file, qcow2.CreateOptions{Size: 10 << 30}); err != nil {
		log.Fatal(err)
	}
	image, err := qcow2.Open(ctx, file, qcow2.Options{})
	if err != nil {
		log.Fatal(err)
	}
	if err := image.WriteAt(ctx, []byte("hello"), 1<<30, qcow2.FUA); err != nil {
		log.Fatal(err)
	}
	extents, err := image.AppendExtents(ctx, make([]qcow2.Extent, 0, 16), 0, 10<<30)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range extents {
		fmt.Printf("%11d bytes at %10d, stored: %t\n", e.Len, e.Off, e.Host >= 0)
	}
	if err := image.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println("file:", file.Size(), "bytes")
	// Output:
	//  1073741824 bytes at          0, stored: false
	//       65536 bytes at 1073741824, stored: true
	//  9663610880 bytes at 1073807360, stored: false
	// file: 393216 bytes
}
