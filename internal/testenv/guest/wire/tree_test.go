package wire

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTree(t *testing.T) {
	tree := Tree{Seed: 7, Files: 1000, Bytes: 256 << 20, Sync: 10}
	var sum, odd int64
	for i, size := range tree.Sizes() {
		require.Positive(t, size, i)
		sum += size
		odd += size % 2
	}
	require.Equal(t, tree.Bytes, sum)
	require.Positive(t, odd, "files of no block's size")
	require.Equal(t, "d19/f0999", tree.Name(999))

	whole, pieces, other := make([]byte, 1003), make([]byte, 1003), make([]byte, 1003)
	_, _ = tree.Content(3).Read(whole)
	c := tree.Content(3)
	for at := 0; at < len(pieces); at += 64 {
		_, _ = c.Read(pieces[at:min(at+64, len(pieces))])
	}
	require.Equal(t, whole, pieces)
	_, _ = tree.Content(4).Read(other)
	require.NotEqual(t, whole, other)
}
