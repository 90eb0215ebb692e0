package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/qcow2"
)

func TestHostileEntryStaysBad(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: 512})
	im, err := qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 512), 0, 0))
	l1 := im.Header().L1Offset
	require.NoError(t, im.Close())
	end := d.Size() / 512
	// the guest's image: entry 5 of the first table names the cluster behind the end
	var b [8]byte
	_, err = d.ReadAt(b[:], l1)
	require.NoError(t, err)
	table := int64(binary.BigEndian.Uint64(b[:]) &^ (1 << 63))
	binary.BigEndian.PutUint64(b[:], uint64(end*512)|1<<63)
	_, err = d.WriteAt(b[:], table+5*8)
	require.NoError(t, err)

	im, err = qcow2.Open(ctx, d, qcow2.Options{CacheBytes: 1024})
	require.NoError(t, err)
	p := make([]byte, 512)
	require.Error(t, im.ReadAt(ctx, p, 5*512, 0), "refused at first")
	for i := range int64(8) { // the file grows, and new tables come
		require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{byte(i + 1)}, 512), 1<<20+i<<15, 0))
	}
	for i := range int64(8) {
		require.NoError(t, im.ReadAt(ctx, p, 1<<20+i<<15, 0))
	}
	err = im.ReadAt(ctx, p, 5*512, 0)
	if err == nil {
		t.Logf("what the guest reads: %x", p[:16])
		err = im.WriteAt(ctx, bytes.Repeat([]byte{0}, 512), 5*512, 0)
		t.Log("overwrite it:", err)
		for i := range int64(8) {
			require.NoError(t, im.ReadAt(ctx, p, 32<<20+i<<15, 0))
		}
		require.NoError(t, im.ReadAt(ctx, p, 1<<20, 0))
		t.Logf("the other cluster reads %d, was written 1", p[0])
		t.Fatal("a hostile entry became valid: the guest reads and writes an L2 table")
	}
}

func TestUncountedTailIsKept(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 30})
	im, err := qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 64<<10), 0, 0))
	require.NoError(t, im.Close())
	size := d.Size()
	_, err = d.WriteAt([]byte{0, 0, 0, 0}, 2<<16+4*2) // counts of the L2 table and of the data
	require.NoError(t, err)
	im, err = qcow2.Open(ctx, d, qcow2.Options{})
	if err != nil {
		return // refused: fine
	}
	require.NoError(t, im.Close())
	require.Equal(t, size, d.Size(), "open and close cut an L2 table and its data off")
}

func TestUncountedTableIsNotReused(t *testing.T) {
	ctx := t.Context()
	d := newDisk(t, qcow2.CreateOptions{Size: 1 << 30})
	im, err := qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, 64<<10), 0, 0))
	require.NoError(t, im.Close())
	_, err = d.WriteAt([]byte{0, 0, 0, 0}, 2<<16+4*2)
	require.NoError(t, err)
	im, err = qcow2.Open(ctx, d, qcow2.Options{})
	if err != nil {
		return
	}
	// a second table: the allocator takes the first table's own cluster
	require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{2}, 64<<10), 512<<20, 0))
	require.NoError(t, im.Flush(ctx))
	b := make([]byte, 16)
	_, err = d.ReadAt(b, 3<<16)
	require.NoError(t, err)
	t.Logf("L1: %x", b)
	require.NotEqual(t, b[:8], b[8:], "two L1 entries name one L2 table")
}
