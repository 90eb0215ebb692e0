package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestHostileEntryPastTheEndThenGrow (design review 2.17, 7.2): an entry that names
// space behind the image's end, or metadata, is refused when it is met first, and
// goes on to be when the file has grown over that place and an L2 table or a
// stranger's bytes are there: the guest must not read them, write them, or have them
// freed. An entry of a compressed cluster is no better than one of a plain cluster.
func TestHostileEntryPastTheEndThenGrow(t *testing.T) {
	const cs, target, coverage = 4096, 5, 2 << 20
	const plain, compressed = 1 << 63, 1<<62 | 1<<54 // copied; of two sectors
	places := map[string]func(end, table int64) int64{
		"header":         func(int64, int64) int64 { return 0 },
		"its own table":  func(_, table int64) int64 { return table },
		"behind the end": func(end, _ int64) int64 { return end },
		"far behind":     func(end, _ int64) int64 { return end + 3*cs },
	}
	for name, place := range places {
		for kind, mark := range map[string]uint64{"plain": plain, "compressed": compressed} {
			if name == "header" && kind == "plain" {
				continue // offset 0 names no cluster
			}
			t.Run(name+", "+kind, func(t *testing.T) {
				ctx := t.Context()
				d := simdisk.New(0, simdisk.Options{Foreign: true})
				require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 64 << 20, ClusterSize: cs}))
				im, err := qcow2.Open(ctx, d, qcow2.Options{})
				require.NoError(t, err)
				require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{1}, cs), 0, 0))
				require.NoError(t, im.Close())
				table := l2TableOf(t, d)
				entry := binary.BigEndian.AppendUint64(nil, mark|uint64(place(d.Size(), table)))
				_, err = d.WriteAt(entry, table+target*8)
				require.NoError(t, err)

				im, err = qcow2.Open(ctx, d, qcow2.Options{CacheBytes: 1})
				require.NoError(t, err)
				p := make([]byte, cs)
				require.Error(t, im.ReadAt(ctx, p, target*cs, 0), "at first")
				grow := func(round int64) {
					for i := range int64(20) { // more tables than are kept in memory
						off := (1+i)*coverage + round*cs
						require.NoError(t, im.WriteAt(ctx, bytes.Repeat([]byte{byte(10*round + i + 1)}, cs), off, 0))
					}
				}
				grow(0)
				require.Error(t, im.ReadAt(ctx, p, target*cs, 0), "when the file has grown")
				require.Error(t, im.WriteAt(ctx, p, target*cs, 0))
				require.Error(t, im.WriteAt(ctx, p[:sector], target*cs, 0))
				require.Error(t, im.Discard(ctx, target*cs, cs, 0))
				require.Error(t, im.WriteZeroes(ctx, target*cs, cs, qcow2.MayUnmap))
				require.NoError(t, im.Flush(ctx))
				grow(1)
				require.NoError(t, im.Close())

				im, err = qcow2.Open(ctx, d, qcow2.Options{ReadOnly: true})
				require.NoError(t, err)
				for i := range int64(20) {
					for round := range int64(2) {
						require.NoError(t, im.ReadAt(ctx, p, (1+i)*coverage+round*cs, 0))
						require.Equal(t, bytes.Repeat([]byte{byte(10*round + i + 1)}, cs), p)
					}
				}
				require.NoError(t, im.Close())
			})
		}
	}
}

// l2TableOf is the offset of the first L2 table.
func l2TableOf(t *testing.T, d *simdisk.Disk) int64 {
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	var b [8]byte
	_, err = d.ReadAt(b[:], h.L1Offset)
	require.NoError(t, err)
	return int64(binary.BigEndian.Uint64(b[:]) & (1<<56 - 512))
}
