package format

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func testHeader(version uint32) *Header {
	return &Header{
		Geometry: Geometry{Version: version, ClusterBits: 16, RefcountOrder: 4},
		Size:     10<<30 + 512,
		L1Offset: 3 << 16, L1Size: 21,
		RefcountTableOffset: 1 << 16, RefcountTableClusters: 1,
		BackingFile: "base.qcow2",
		Extensions: []Extension{
			{Type: ExtBackingFormat, Data: []byte("qcow2")},
			{Type: ExtFeatureNames, Data: EncodeFeatureNames(KnownFeatures())},
			{Type: 0x12345678, Data: []byte("unknown, kept")},
		},
	}
}

func TestHeaderRoundTrip(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		h := testHeader(version)
		if version == 3 {
			h.Incompatible, h.Compatible, h.Autoclear = 1, 1, 1<<63
		}
		b, err := h.Encode()
		require.NoError(t, err)
		got, err := DecodeHeader(b)
		require.NoError(t, err)
		for i := range got.Extensions {
			require.Equal(t, got.Extensions[i].Data, b[got.Extensions[i].Off:][:len(got.Extensions[i].Data)])
			got.Extensions[i].Off = 0
		}
		h.extensionsEnd = got.extensionsEnd
		require.Equal(t, h, got)
		require.NoError(t, got.CheckLayout(1<<30))
		require.Equal(t, "qcow2", got.BackingFormat())

		// Put changes its fields and nothing else.
		got.Autoclear, got.L1Offset = 0, 7<<16
		patched := bytes.Clone(b)
		got.Put(patched[:SectorSize])
		again, err := DecodeHeader(patched)
		require.NoError(t, err)
		for i := range again.Extensions {
			again.Extensions[i].Off = 0
		}
		require.Equal(t, got, again)
	}
}

// TestHeaderRefused damages one field at a time and expects the right one of the
// three failures, naming the field.
func TestHeaderRefused(t *testing.T) {
	for _, c := range []struct {
		name string
		at   int
		data []byte
		want string
	}{
		{"magic", 0, []byte("QFI\x00"), "not a QCOW2 image"},
		{"version 1", 4, []byte{0, 0, 0, 1}, "QCOW version 1"},
		{"version 4", 4, []byte{0, 0, 0, 4}, "QCOW version 4"},
		{"cluster bits small", 20, []byte{0, 0, 0, 8}, "cluster_bits"},
		{"cluster bits large", 20, []byte{0, 0, 0, 22}, "cluster_bits"},
		{"cluster bits huge", 20, []byte{0xff, 0xff, 0xff, 0xff}, "cluster_bits"},
		{"size", 24, []byte{0xff}, "size"},
		{"L1 unaligned", 47, []byte{1}, "l1_table_offset"},
		{"L1 beyond 2^56", 40, []byte{1}, "l1_table_offset"},
		{"refcount table unaligned", 54, []byte{1}, "refcount_table_offset"},
		{"snapshots unaligned", 71, []byte{1}, "snapshots_offset"},
		{"refcount order", 99, []byte{7}, "refcount_order"},
		{"header length short", 103, []byte{96}, "header_length"},
		{"header length odd", 103, []byte{113}, "header_length"},
		{"header length long", 100, []byte{0, 1, 0, 8}, "header_length"},
		{"compression type without bit", 104, []byte{1}, "compression_type"},
		{"backing name in header", 8, []byte{0, 0, 0, 0, 0, 0, 0, 8}, "backing_file_offset"},
		{"backing name outside", 8, []byte{0, 0, 0, 0, 0, 0, 0xff, 0xff}, "backing_file_offset"},
		{"backing name long", 16, []byte{0, 0, 4, 0}, "backing_file_offset"},
		{"extension long", 116, []byte{0xff, 0xff, 0xff, 0xff}, "header extension"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := testHeader(3).Encode()
			require.NoError(t, err)
			copy(b[c.at:], c.data)
			_, err = DecodeHeader(b)
			require.ErrorContains(t, err, c.want)
		})
	}
	for n := range headerLenV3 {
		b, err := testHeader(3).Encode()
		require.NoError(t, err)
		_, err = DecodeHeader(b[:n])
		require.Error(t, err, "header of %d bytes", n)
	}
}

func TestLayoutRefused(t *testing.T) {
	const size = 1 << 30
	for name, damage := range map[string]func(*Header){
		"L1 table too small":       func(h *Header) { h.L1Size = 3 },
		"L1 table too large":       func(h *Header) { h.L1Size = MaxL1Bytes/8 + 1 },
		"L1 table outside":         func(h *Header) { h.L1Offset = size },
		"L1 table on header":       func(h *Header) { h.L1Offset = 0 },
		"tables overlap":           func(h *Header) { h.L1Offset = h.RefcountTableOffset },
		"no refcount table":        func(h *Header) { h.RefcountTableClusters = 0 },
		"refcount table outside":   func(h *Header) { h.RefcountTableOffset = size - 512 },
		"refcount table too large": func(h *Header) { h.RefcountTableClusters = MaxRefcountTableBytes>>16 + 1 },
		"too many snapshots":       func(h *Header) { h.Snapshots = MaxSnapshots + 1 },
	} {
		h := testHeader(3)
		damage(h)
		var c *CorruptError
		require.ErrorAs(t, h.CheckLayout(size), &c, name)
	}
}

func TestFeatureNames(t *testing.T) {
	h := &Header{Extensions: []Extension{{Type: ExtFeatureNames, Data: EncodeFeatureNames([]FeatureName{{Incompatible, 40, "time travel"}})}}}
	require.Equal(t, `"time travel"`, h.FeatureName(Incompatible, 40))
	require.Equal(t, `"extended L2 entries"`, h.FeatureName(Incompatible, 4))
	require.Equal(t, "unknown autoclear feature bit 9", h.FeatureName(Autoclear, 9))
	require.Equal(t, KnownFeatures(), DecodeFeatureNames(append(EncodeFeatureNames(KnownFeatures()), 1, 2, 3)))
}

func TestRefcounts(t *testing.T) {
	// The specification's order for less than 8 bits: least significant first.
	require.Equal(t, uint64(1), Refcount([]byte{0x02}, 0, 1))
	require.Equal(t, uint64(2), Refcount([]byte{0x80}, 1, 3))
	require.Equal(t, uint64(15), Refcount([]byte{0x0f}, 2, 0))
	rng := rand.New(rand.NewPCG(1, 2))
	for order := uint(0); order <= MaxRefcountOrder; order++ {
		g := Geometry{Version: 3, ClusterBits: 9, RefcountOrder: order}
		block := make([]byte, 512)
		want := make([]uint64, g.RefcountsPerBlock())
		for range 2000 {
			i := rng.IntN(len(want))
			want[i] = rng.Uint64N(g.RefcountMax())
			SetRefcount(block, order, i, want[i])
		}
		for i, v := range want {
			require.Equal(t, v, Refcount(block, order, i), "order %d count %d", order, i)
		}
		for n := range want {
			clear(block)
			SetRefcount(block, order, n, 1)
			require.Equal(t, int64(n+1), Counted(block, order), "order %d", order)
		}
		clear(block)
		require.Zero(t, Counted(block, order))
	}
}

func TestL2Kinds(t *testing.T) {
	v2, v3 := Geometry{Version: 2, ClusterBits: 16, RefcountOrder: 4}, Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4}
	for _, c := range []struct {
		e      L2Entry
		k2, k3 Kind
	}{
		{0, Unallocated, Unallocated},
		{ZeroEntry, Invalid, ZeroPlain},
		{NewL2Entry(5 << 16), Data, Data},
		{5 << 16, Data, Data},
		{NewL2Entry(5<<16) | ZeroEntry, Invalid, ZeroAllocated},
		{NewL2Entry(5<<16 + 512), Invalid, Invalid},
		{1 << 56, Invalid, Invalid},
		{1 << 1, Invalid, Invalid},
		{compressed | 12345, Compressed, Compressed},
		{compressed | copied | 12345, Invalid, Invalid},
	} {
		require.Equal(t, c.k2, c.e.Kind(v2), "0x%x", uint64(c.e))
		require.Equal(t, c.k3, c.e.Kind(v3), "0x%x", uint64(c.e))
	}
	small := Geometry{Version: 3, ClusterBits: 9, RefcountOrder: 4} // 61 bits of offset
	require.Equal(t, Compressed, L2Entry(compressed|(1<<56-512)).Kind(small))
	require.Equal(t, Invalid, L2Entry(compressed|1<<56).Kind(small))
}

func TestCompressedRange(t *testing.T) {
	// 64 KiB clusters: x = 54. Two further sectors, 100 bytes into the third.
	off, n := L2Entry(compressed | 2<<54 | (1024 + 100)).CompressedRange(Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4})
	require.Equal(t, int64(1124), off)
	require.Equal(t, int64(3*512-100), n)
}

func TestErrorsAreTold(t *testing.T) {
	var u *UnsupportedError
	_, err := DecodeHeader([]byte("QFI\xfb\x00\x00\x00\x01" + string(make([]byte, 100))))
	require.ErrorAs(t, err, &u)
	_, err = DecodeHeader([]byte("KDMV"))
	require.True(t, errors.Is(err, ErrNotQCOW2))
}

func TestReserved(t *testing.T) {
	want := []ClusterRange{{5, 10}, {100, 1}}
	got, err := DecodeReserved(EncodeReserved(want), 1000)
	require.NoError(t, err)
	require.Equal(t, want, got)
	got, err = DecodeReserved(EncodeReserved([]ClusterRange{{5, 1 << 62}, {1000, 1}, {-1, 3}, {7, 0}}), 1000)
	require.NoError(t, err)
	require.Equal(t, []ClusterRange{{5, 995}}, got, "cut to what there is")
	b := EncodeReserved(want)
	for _, damage := range []func([]byte) []byte{
		func(b []byte) []byte { return b[:7] },
		func(b []byte) []byte { return b[:30] },
		func(b []byte) []byte { b[3] = 2; return b },
		func(b []byte) []byte { b[7] = 17; return b },
	} {
		_, err := DecodeReserved(damage(bytes.Clone(b)), 1000)
		require.Error(t, err)
	}
}

func TestPlaceForExtension(t *testing.T) {
	h := testHeader(3)
	h.BackingFile = ""
	b, err := h.Encode()
	require.NoError(t, err)
	h, err = DecodeHeader(b)
	require.NoError(t, err)
	off, add, ok := h.PlaceForExtension(ExtReserved, EncodeReserved(nil))
	require.True(t, ok)
	copy(b[off+8:], add[8:])
	torn, err := DecodeHeader(b)
	require.NoError(t, err)
	require.Equal(t, h.Extensions, torn.Extensions, "until its first 8 bytes are written there is nothing new")
	copy(b[off:], add[:8])
	whole, err := DecodeHeader(b)
	require.NoError(t, err)
	require.Equal(t, h.Extensions, whole.Extensions[:len(h.Extensions)])
	e, ok := whole.FindExtension(ExtReserved)
	require.True(t, ok)
	require.Len(t, e.Data, ReservedLen)
	require.Equal(t, off+8, e.Off)
}

func FuzzReserved(f *testing.F) {
	f.Add(EncodeReserved([]ClusterRange{{5, 10}}), int64(100))
	f.Fuzz(func(t *testing.T, b []byte, end int64) {
		end &= 1<<48 - 1
		ranges, err := DecodeReserved(b, end)
		for _, r := range ranges {
			if err != nil || r.At < 0 || r.N <= 0 || r.At+r.N > end {
				t.Fatalf("%v of %d, %v", r, end, err)
			}
		}
	})
}

func FuzzDecodeHeader(f *testing.F) {
	for _, v := range []uint32{2, 3} {
		b, err := testHeader(v).Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:1024])
	}
	h := testHeader(3)
	h.ExtendedL2 = true
	b, err := h.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:1024])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := DecodeHeader(b)
		if err != nil {
			return
		}
		if err := h.Valid(); err != nil {
			t.Fatalf("accepted a header that is not valid: %v", err)
		}
		_ = h.CheckLayout(int64(len(b)))
		if len(h.BackingFile) > MaxBackingName {
			t.Fatal("backing file name too long")
		}
		// What was accepted survives a round trip, unless it no longer fits
		// because the table of extensions is written in full.
		e, err := h.Encode()
		if err != nil {
			return
		}
		again, err := DecodeHeader(e)
		if err != nil {
			t.Fatalf("own encoding refused: %v", err)
		}
		again.Length, h.Length = 0, 0
		require.Equal(t, h.Geometry, again.Geometry)
		require.Equal(t, h.Size, again.Size)
		require.Equal(t, len(h.Extensions), len(again.Extensions))
	})
}

func FuzzEntries(f *testing.F) {
	f.Add(uint64(0), uint8(16))
	f.Add(uint64(copied|5<<16), uint8(9))
	f.Add(^uint64(0), uint8(21))
	f.Fuzz(func(t *testing.T, word uint64, bits uint8) {
		g := Geometry{Version: 3, ClusterBits: 9 + uint(bits%13), RefcountOrder: 4}
		e := L2Entry(word)
		switch e.Kind(g) {
		case Data, ZeroAllocated:
			if e.Offset() <= 0 || e.Offset()%g.ClusterSize() != 0 || e.Offset() >= MaxHostOffset {
				t.Fatalf("0x%x: offset 0x%x", word, e.Offset())
			}
		case Compressed:
			off, n := e.CompressedRange(g)
			if off < 0 || off >= MaxHostOffset || n <= 0 || n > 2*g.ClusterSize()+512 {
				t.Fatalf("0x%x: %d bytes at 0x%x", word, n, off)
			}
		}
	})
}
