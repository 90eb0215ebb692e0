package format

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goldenSnapshot is an entry that qemu-img 7.2 wrote: snapshot -c first, of a
// disk of 1 MiB. Behind the disk's size it has one more field.
const goldenSnapshot = "0000000000040000" + "00000001" + "0001" + "0005" +
	"6b07e217" + "36540520" + "0000000000000000" + "00000000" + "00000018" +
	"0000000000000000" + "0000000000100000" + "0000000000000000" +
	"31" + "6669727374" + "0000"

func TestSnapshotGolden(t *testing.T) {
	b, err := hex.DecodeString(goldenSnapshot)
	require.NoError(t, err)
	s, n, err := DecodeSnapshot(append(b, 0xff, 0xff), 0)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	require.Equal(t, Snapshot{
		L1Offset: 0x40000, L1Size: 1, ID: "1", Name: "first", Seconds: 0x6b07e217, Nanoseconds: 0x36540520,
		DiskSize: 1 << 20, Extra: b[40:64],
	}, s)
	again, err := EncodeSnapshots([]Snapshot{s})
	require.NoError(t, err)
	require.Equal(t, b, again)
}

func TestSnapshotTableRoundTrip(t *testing.T) {
	want := []Snapshot{
		{L1Offset: 5 << 16, L1Size: 3, ID: "1", Name: "with a state", VMStateSize: 5 << 32, DiskSize: 7 << 20, ClockNanoseconds: 1 << 40},
		{L1Offset: 6 << 16, ID: "2", DiskSize: 0},
		{ID: strings.Repeat("i", 0xffff), Name: strings.Repeat("n", 0xffff), VMStateSize: 77, DiskSize: -1},
		{ID: "4", DiskSize: 1, Extra: bytes.Repeat([]byte{7}, MaxSnapshotExtra)},
		{ID: "5", DiskSize: -1, VMStateSize: 6 << 32, Extra: []byte{1, 2, 3, 4, 5, 6, 7, 8, 9}},
		{ID: "6", DiskSize: -1, VMStateSize: 6, Extra: []byte{1, 2, 3}},
	}
	b, err := EncodeSnapshots(want)
	require.NoError(t, err)
	for i, w := range want {
		s, n, err := DecodeSnapshot(b, 0)
		require.NoError(t, err)
		require.Zero(t, n%8)
		require.LessOrEqual(t, n, MaxSnapshotBytes)
		require.Equal(t, w.encodeExtra(), append([]byte(nil), s.Extra...), "%d", i)
		s.Extra, w.Extra = nil, nil
		require.Equal(t, w, s, "%d", i)
		b = b[n:]
	}
	require.Empty(t, b)

	for _, bad := range [][]Snapshot{
		{{ID: strings.Repeat("i", 0x10000)}},
		{{Name: strings.Repeat("n", 0x10000)}},
		{{Extra: make([]byte, MaxSnapshotExtra+1)}},
		make([]Snapshot, MaxSnapshots+1),
	} {
		_, err := EncodeSnapshots(bad)
		require.Error(t, err)
	}
}

func TestSnapshotRefused(t *testing.T) {
	whole, err := hex.DecodeString(goldenSnapshot)
	require.NoError(t, err)
	for n := range len(whole) - 2 { // the padding may be missing
		_, _, err := DecodeSnapshot(whole[:n], 0)
		var c *CorruptError
		require.ErrorAs(t, err, &c, "%d bytes", n)
	}
	_, _, err = DecodeSnapshot(whole[:len(whole)-2], 0)
	require.NoError(t, err)
	for _, c := range []struct {
		at   int
		data []byte
		want string
	}{
		{12, []byte{0xff}, "at offset 4096: .*lengths add up to"},
		{14, []byte{0xff}, "lengths add up to"},
		{36, []byte{0, 0, 4, 1}, "extra data.*at offset 4132: "},
		{36, []byte{0xff, 0xff, 0xff, 0xff}, "at most 1024 bytes"},
		{48, []byte{0x80}, "disk size"},
	} {
		b := bytes.Clone(whole)
		copy(b[c.at:], c.data)
		_, _, err := DecodeSnapshot(b, 4096)
		require.Error(t, err)
		require.Regexp(t, c.want, err.Error())
	}
}

func TestCheckSnapshot(t *testing.T) {
	const size = 1 << 30
	g := Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4}
	good := Snapshot{L1Offset: 5 << 16, L1Size: 3}
	require.NoError(t, g.CheckSnapshot(&good, 0, size))
	require.NoError(t, g.CheckSnapshot(&Snapshot{}, 0, size), "a disk of 0 bytes has no L1 table")
	for name, s := range map[string]Snapshot{
		"unaligned":       {L1Offset: 5<<16 + 512, L1Size: 3},
		"on the header":   {L1Offset: 0, L1Size: 1},
		"outside":         {L1Offset: size, L1Size: 1},
		"ends outside":    {L1Offset: size - 1<<16, L1Size: 8193},
		"beyond 2^56":     {L1Offset: 1 << 56},
		"negative":        {L1Offset: -1 << 16, L1Size: 1},
		"too many":        {L1Offset: 5 << 16, L1Size: MaxL1Bytes/8 + 1},
		"far too many":    {L1Offset: 5 << 16, L1Size: 1<<32 - 1},
		"at end, too far": {L1Offset: 1<<56 - 1<<16, L1Size: 1},
	} {
		var c *CorruptError
		require.ErrorAs(t, g.CheckSnapshot(&s, 0, size), &c, name)
	}
	require.Error(t, g.CheckSnapshotExtra(&Snapshot{Extra: make([]byte, 15)}, 0))
	require.NoError(t, g.CheckSnapshotExtra(&Snapshot{Extra: make([]byte, 16)}, 0))
	g.Version = 2
	require.NoError(t, g.CheckSnapshotExtra(&Snapshot{}, 0))
}

func FuzzDecodeSnapshot(f *testing.F) {
	golden, err := hex.DecodeString(goldenSnapshot)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(golden)
	f.Add(append(bytes.Clone(golden), golden...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, n, err := DecodeSnapshot(b, 0)
		if err != nil {
			return
		}
		if n <= 0 || n > len(b)+7 || n > MaxSnapshotBytes {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		e, err := EncodeSnapshots([]Snapshot{s})
		if err != nil {
			t.Fatalf("own decoding refused: %v", err)
		}
		again, _, err := DecodeSnapshot(e, 0)
		if err != nil {
			t.Fatalf("own encoding refused: %v", err)
		}
		require.Equal(t, s, again)
		g := Geometry{Version: 3, ClusterBits: 16, RefcountOrder: 4}
		if g.CheckSnapshot(&s, 0, int64(len(b))) == nil && s.L1Size > 0 && s.L1Offset+int64(s.L1Size)*8 > int64(len(b)) {
			t.Fatalf("L1 table outside the file: %+v", s)
		}
	})
}
