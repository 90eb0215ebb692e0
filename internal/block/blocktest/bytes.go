package blocktest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// pattern is n bytes that differ with the seed and with their place, none zero.
func pattern(seed uint64, n int) []byte {
	p := make([]byte, (n+7)/8*8)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := 0; i < len(p); i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(p[i:], x|0x0101010101010101)
	}
	return p[:n]
}

// alignOf is the smallest unit the suite uses: the file's alignment, and not
// less than a few bytes so that patterns can be told apart.
func alignOf(f block.File) int { return max(f.Info().Align, 16) }

// aligned returns p, or a copy of p in memory that f accepts.
func aligned(f block.File, p []byte) []byte {
	a := f.Info().Align
	if a == 1 {
		return p
	}
	buf := make([]byte, len(p)+a)
	skip := (a - int(uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%uintptr(a))) % a
	buf = buf[skip : skip+len(p) : skip+len(p)]
	copy(buf, p)
	return buf
}

// fill writes a pattern over the whole of f and returns it.
func fill(t *testing.T, f block.File, seed uint64) []byte {
	t.Helper()
	p := aligned(f, pattern(seed, int(f.Size())))
	_, err := f.WriteAt(p, 0)
	require.NoError(t, err)
	return p
}

// readFile reads exactly n bytes.
func readFile(t *testing.T, f block.File, off int64, n int) []byte {
	t.Helper()
	p := aligned(f, make([]byte, n))
	got, err := f.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) {
		require.Equal(t, n, got, "read at %d: %v", off, err)
		if now := aligned(f, make([]byte, n)); f.ReadNow(now, off) {
			require.True(t, bytes.Equal(p, now), "read at %d, from memory", off)
		}
		return p
	}
	require.NoError(t, err, "read at %d", off)
	return nil
}

func isClosed(err error) bool { return errors.Is(err, block.ErrClosed) }

// firstDifference is the first index at which two slices of the same length
// differ, -1 if they do not.
func firstDifference(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}
