package format

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func extended(clusterBits uint) Geometry {
	return Geometry{Version: 3, ClusterBits: clusterBits, RefcountOrder: 4, ExtendedL2: true}
}

func TestExtendedGeometry(t *testing.T) {
	plain := Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4}
	require.Equal(t, 8, plain.L2EntryBytes())
	require.Equal(t, 8192, plain.L2Entries())
	require.Equal(t, int64(512<<20), plain.L2Coverage())
	require.Equal(t, int64(21), plain.L1Entries(10<<30+512))
	require.Equal(t, uint(16), plain.SubclusterBits())
	require.Equal(t, 1, plain.Subclusters())

	g := extended(16)
	require.Equal(t, 16, g.L2EntryBytes())
	require.Equal(t, 4096, g.L2Entries())
	require.Equal(t, int64(256<<20), g.L2Coverage())
	require.Equal(t, int64(41), g.L1Entries(10<<30+512))
	require.Equal(t, uint(11), g.SubclusterBits())
	require.Equal(t, 32, g.Subclusters())
	require.Equal(t, plain.MaxSize()/2, g.MaxSize())
	for bits := uint(MinExtendedL2ClusterBits); bits <= MaxClusterBits; bits++ {
		g := extended(bits)
		require.NoError(t, g.Valid())
		require.Equal(t, g.L2Coverage(), int64(g.L2Entries())*g.ClusterSize())
		require.Equal(t, g.ClusterSize(), int64(g.L2Entries()*g.L2EntryBytes()))
		require.Equal(t, g.ClusterSize(), int64(g.Subclusters())<<g.SubclusterBits())
	}
	require.Error(t, extended(MinExtendedL2ClusterBits-1).Valid())
	g.Version = 2
	require.Error(t, g.Valid())
}

func TestExtendedHeader(t *testing.T) {
	h := testHeader(3)
	h.ExtendedL2 = true
	b, err := h.Encode()
	require.NoError(t, err)
	require.Equal(t, byte(IncompatExtendedL2), b[79])
	got, err := DecodeHeader(b)
	require.NoError(t, err)
	require.True(t, got.ExtendedL2)
	require.Equal(t, h.Geometry, got.Geometry)
	var c *CorruptError
	require.ErrorAs(t, got.CheckLayout(1<<30), &c, "an L1 table that would do for plain entries")
	got.L1Size = 41
	require.NoError(t, got.CheckLayout(1<<30))

	// The geometry decides, in both directions.
	got.ExtendedL2 = false
	got.Put(b[:SectorSize])
	require.Zero(t, b[79])

	h = testHeader(3)
	h.ClusterBits, h.Size = MinExtendedL2ClusterBits-1, 1<<20
	b, err = h.Encode()
	require.NoError(t, err)
	b[79] = IncompatExtendedL2
	_, err = DecodeHeader(b)
	require.ErrorContains(t, err, "cluster_bits")
}

func TestSubclusterWord(t *testing.T) {
	var s Subclusters
	require.Equal(t, Subclusters(1), s.WithAllocated(0, 1), "sub-cluster 0 is bit 0")
	require.Equal(t, Subclusters(1<<31), s.WithAllocated(31, 1))
	require.Equal(t, Subclusters(1<<32), s.WithZero(0, 1), "sub-cluster 0 is bit 32")
	require.Equal(t, Subclusters(1<<63), s.WithZero(31, 1))
	require.Equal(t, AllAllocated, s.WithAllocated(0, 32))
	require.Equal(t, AllZero, s.WithZero(0, 32))
	require.Equal(t, AllZero, AllAllocated.WithZero(0, 32))
	require.Equal(t, AllAllocated, AllZero.WithAllocated(0, 32))
	require.Zero(t, AllZero.Cleared(0, 32))
	require.Equal(t, AllAllocated, AllAllocated.WithZero(5, 0))
	require.True(t, AllAllocated.Valid())
	require.False(t, (AllAllocated | 1<<32).Valid())

	mixed := AllZero.WithAllocated(3, 4).Cleared(20, 2)
	for i := range 32 {
		require.Equal(t, i >= 3 && i < 7, mixed.Allocated(i), "sub-cluster %d", i)
		require.Equal(t, (i < 3 || i >= 7) && i != 20 && i != 21, mixed.Zero(i), "sub-cluster %d", i)
	}
}

// TestSubclusterKinds is the table of the specification, row by row.
func TestSubclusterKinds(t *testing.T) {
	const cluster = L2Entry(5<<16 | copied)
	const deflated = L2Entry(compressed | 12345)
	g := extended(16)
	for _, c := range []struct {
		name string
		e    L2Entry
		s    Subclusters
		i    int
		want Kind
	}{
		{"nothing", 0, 0, 0, Unallocated},
		{"zero without cluster", 0, 1 << 32, 0, ZeroPlain},
		{"zero beside", 0, 1 << 32, 1, Unallocated},
		{"all zero, the last", 0, AllZero, 31, ZeroPlain},
		{"allocated without cluster", 0, 1, 0, Invalid},
		{"allocated without cluster, elsewhere", 0, 1, 9, Invalid},
		{"cluster, nothing allocated", cluster, 0, 4, UnallocatedAlloc},
		{"cluster, allocated", cluster, 1 << 4, 4, Data},
		{"cluster, allocated beside", cluster, 1 << 4, 5, UnallocatedAlloc},
		{"cluster, zero", cluster, 1 << 36, 4, ZeroAllocated},
		{"cluster, not copied", 5 << 16, 1 << 4, 4, Data},
		{"cluster, both", cluster, 1<<4 | 1<<36, 4, Invalid},
		{"cluster, both elsewhere", cluster, 1<<4 | 1<<36, 5, Invalid},
		{"both without cluster", 0, 1<<4 | 1<<36, 5, Invalid},
		{"zero mark of plain entries", cluster | ZeroEntry, AllAllocated, 0, Invalid},
		{"zero mark of plain entries, no cluster", ZeroEntry, 0, 0, Invalid},
		{"unaligned", cluster + 512, AllAllocated, 0, Invalid},
		{"reserved bit", cluster | 2, AllAllocated, 0, Invalid},
		{"compressed", deflated, 0, 7, Compressed},
		{"compressed with allocated", deflated, 1, 7, Invalid},
		{"compressed with zero", deflated, 1 << 63, 7, Invalid},
		{"compressed and copied", deflated | copied, 0, 7, Invalid},
	} {
		require.Equal(t, c.want, g.SubclusterKind(c.e, c.s, c.i), c.name)
	}
	g.ExtendedL2 = false
	require.Equal(t, ZeroAllocated, g.SubclusterKind(cluster|ZeroEntry, 0, 0), "plain entries have no second word")
}

func TestDecodeL2(t *testing.T) {
	b := []byte{
		0x80, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2,
		0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0,
	}
	for _, c := range []struct {
		g    Geometry
		want []L2Pair
	}{
		{extended(16), []L2Pair{{NewL2Entry(5 << 16), 1<<32 | 1<<1}, {0, AllZero}}},
		{Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4}, []L2Pair{{NewL2Entry(5 << 16), 0}, {1<<32 | 2, 0}, {0, 0}, {L2Entry(AllZero), 0}}},
	} {
		got := make([]L2Pair, len(c.want))
		c.g.DecodeL2(got, b)
		require.Equal(t, c.want, got)
		back := make([]byte, len(b))
		c.g.EncodeL2(back, got)
		require.Equal(t, b, back)
	}
}

func FuzzSubclusters(f *testing.F) {
	f.Add(uint64(copied|5<<16), uint64(1), uint8(0), uint8(1), uint8(16))
	f.Add(uint64(0), uint64(AllZero), uint8(31), uint8(1), uint8(14))
	f.Add(uint64(compressed|77), uint64(0), uint8(3), uint8(9), uint8(21))
	f.Fuzz(func(t *testing.T, word, sub uint64, from, n, clusterBits uint8) {
		g := extended(14 + uint(clusterBits)%8)
		e, s := L2Entry(word), Subclusters(sub)
		first := int(from) % 32
		count := int(n) % (33 - first)

		// The word as a set, against one bit at a time.
		set, zero, cleared := s.WithAllocated(first, count), s.WithZero(first, count), s.Cleared(first, count)
		for i := range 32 {
			in := i >= first && i < first+count
			for _, c := range []struct {
				got         Subclusters
				alloc, zero bool
			}{{set, true, false}, {zero, false, true}, {cleared, false, false}} {
				if !in {
					c.alloc, c.zero = s.Allocated(i), s.Zero(i)
				}
				if c.got.Allocated(i) != c.alloc || c.got.Zero(i) != c.zero {
					t.Fatalf("0x%x, %d from %d: sub-cluster %d of 0x%x", sub, count, first, i, uint64(c.got))
				}
			}
		}
		// The kinds of a pair that holds are those of its bits; runs are what the
		// kinds say.
		for i := 0; i < 32; i++ {
			k, run := g.SubclusterRun(e, s, i)
			if run < 1 || i+run > 32 {
				t.Fatalf("run of %d at %d", run, i)
			}
			for j := i; j < i+run; j++ {
				if g.SubclusterKind(e, s, j) != k {
					t.Fatalf("0x%x 0x%x: sub-cluster %d is not %v", word, sub, j, k)
				}
			}
			if i+run < 32 && g.SubclusterKind(e, s, i+run) == k {
				t.Fatalf("0x%x 0x%x: the run at %d ends too early", word, sub, i)
			}
			hasCluster := k == Data || k == ZeroAllocated || k == UnallocatedAlloc
			if hasCluster && (e.Offset() <= 0 || e.Offset()%g.ClusterSize() != 0) {
				t.Fatalf("0x%x: %v without a cluster", word, k)
			}
		}
	})
}
