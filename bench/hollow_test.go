package bench

import (
	"bytes"
	"context"
	"io"
	"sync"

	"tidemark/internal/block"
)

const pageSize = int64(4) << 10

// A hollowFile is a file that costs nothing: it keeps only what is not zero. The
// benchmarks write zeroes as data, so what it keeps is metadata.
type hollowFile struct {
	// base is what is there before anything is written, up to hollow; behind that, and
	// everywhere if base is nil, are zeroes.
	base   func(p []byte, off int64)
	hollow int64

	mu    sync.RWMutex
	size  int64
	pages map[int64][]byte
}

// bytes is what the file takes itself.
func (f *hollowFile) bytes() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return int64(len(f.pages)) * pageSize
}

func (f *hollowFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := min(int64(len(p)), max(f.size-off, 0))
	f.eachPage(p[:n], off, func(part []byte, page []byte, at int64) {
		if page != nil {
			copy(part, page[at&(pageSize-1):])
		} else {
			f.below(part, at)
		}
	})
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// eachPage calls do for the part of p in each page, which is nil if it is not kept.
func (f *hollowFile) eachPage(p []byte, off int64, do func(part, page []byte, at int64)) {
	for i := int64(0); i < int64(len(p)); {
		at := off + i
		m := min(pageSize-at&(pageSize-1), int64(len(p))-i)
		do(p[i:i+m], f.pages[at/pageSize], at)
		i += m
	}
}

func (f *hollowFile) below(p []byte, off int64) {
	if off >= f.hollow {
		clear(p)
	} else {
		f.base(p, off)
	}
}

func (f *hollowFile) WriteLater([]byte, int64, block.Later) bool { return false }

func (f *hollowFile) ReadNow(p []byte, off int64) bool {
	n, _ := f.ReadAt(p, off)
	return n == len(p)
}

var zeroPage [pageSize]byte

func (f *hollowFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	keep := off < f.hollow
	f.eachPage(p, off, func(part, page []byte, _ int64) {
		keep = keep || page != nil || !bytes.Equal(part, zeroPage[:len(part)])
	})
	f.mu.RUnlock()
	if !keep {
		return len(p), nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pages == nil {
		f.pages = map[int64][]byte{}
	}
	f.eachPage(p, off, func(part, page []byte, at int64) {
		if page == nil {
			page = make([]byte, pageSize)
			f.below(page, at&^(pageSize-1))
			f.pages[at/pageSize] = page
		}
		copy(page[at&(pageSize-1):], part)
	})
	return len(p), nil
}

func (f *hollowFile) WriteAtSync(p []byte, off int64) (int, error) { return f.WriteAt(p, off) }
func (f *hollowFile) WriteZeroes(int64, int64) error               { return nil }
func (f *hollowFile) Discard(int64, int64) error                   { return nil }
func (f *hollowFile) WriteBack(int64, int64)                       {}
func (f *hollowFile) Sync() error                                  { return nil }
func (f *hollowFile) Close() error                                 { return nil }

func (f *hollowFile) Size() int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

func (f *hollowFile) Grow(_ context.Context, _, want int64) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = max(f.size, want)
	return f.size, nil
}

func (f *hollowFile) Shrink(_ context.Context, _, to int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = to
	return nil
}

func (f *hollowFile) Info() block.FileInfo {
	return block.FileInfo{Align: 1, TearUnit: 512, FreshZero: true, ZeroCheap: true}
}
