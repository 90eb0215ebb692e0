package wire

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
)

// A Tree is a number of files whose names, sizes and contents follow from the
// seed. Whoever has the Tree can say what each file must be, without the guest
// that wrote it.
type Tree struct {
	Seed  uint64
	Files int
	Bytes int64 // of all files together

	Sync    int // every Sync-th file is fsynced when it is written
	Writers int // how many files are written at a time
}

// filesPerDir is how many files lie in one directory.
const filesPerDir = 50

// Name is the path of file i in the tree.
func (t Tree) Name(i int) string { return fmt.Sprintf("d%02d/f%04d", i/filesPerDir, i) }

// Synced reports whether file i is fsynced.
func (t Tree) Synced(i int) bool { return i%t.Sync == t.Sync-1 }

// Sizes are the lengths of the files: between some bytes and about twice the
// average, of no block's size, and together Bytes.
func (t Tree) Sizes() []int64 {
	rng := rand.New(rand.NewPCG(t.Seed, 0))
	weights, sum := make([]int64, t.Files), int64(0)
	for i := range weights {
		weights[i] = 1 + rng.Int64N(1<<20)
		sum += weights[i]
	}
	sizes, rest := make([]int64, t.Files), t.Bytes
	for i, w := range weights[:t.Files-1] {
		sizes[i] = int64(float64(t.Bytes) * float64(w) / float64(sum))
		rest -= sizes[i]
	}
	sizes[t.Files-1] = rest
	return sizes
}

// Content is what file i has in it; it does not end.
func (t Tree) Content(i int) io.Reader { return content{rand.NewPCG(t.Seed, 1+uint64(i))} }

type content struct{ rng *rand.PCG }

// Read fills p. Whole words are taken for each call: read in pieces of 8 bytes,
// but for the last.
func (c content) Read(p []byte) (int, error) {
	n := len(p)
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, c.rng.Uint64())
		p = p[8:]
	}
	if len(p) > 0 {
		var last [8]byte
		binary.LittleEndian.PutUint64(last[:], c.rng.Uint64())
		copy(p, last[:])
	}
	return n, nil
}
