package lvm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func testMap(segments ...MapSegment) Map {
	m := Map{VG: "vg", LV: "lv", Seqno: 7}
	at := int64(0)
	for _, s := range segments {
		s.Start = at
		at += s.Size
		m.Segments = append(m.Segments, s)
	}
	return m
}

func seg(pv string, offset, size int64) MapSegment {
	return MapSegment{PV: pv, Offset: offset, Size: size}
}

func TestMapAppendsTo(t *testing.T) {
	old := testMap(seg("a", 100, 50), seg("b", 0, 30))
	tests := []struct {
		name string
		m    Map
		ok   bool
	}{
		{"the same", old, true},
		{"the last segment grew", testMap(seg("a", 100, 50), seg("b", 0, 40)), true},
		{"a new segment", testMap(seg("a", 100, 50), seg("b", 0, 30), seg("a", 0, 5)), true},
		{"grew and a new one", testMap(seg("a", 100, 50), seg("b", 0, 35), seg("c", 0, 5)), true},
		{"the same in smaller pieces", testMap(seg("a", 100, 20), seg("a", 120, 30), seg("b", 0, 10), seg("b", 10, 20)), true},
		{"shorter", testMap(seg("a", 100, 50), seg("b", 0, 29)), false},
		{"empty", testMap(), false},
		{"the first moved", testMap(seg("a", 101, 50), seg("b", 0, 30)), false},
		{"another physical volume", testMap(seg("c", 100, 50), seg("b", 0, 30)), false},
		{"the second moved", testMap(seg("a", 100, 50), seg("b", 1, 30)), false},
		{"the first grew over the second", testMap(seg("a", 100, 80)), false},
		{"the first is shorter", testMap(seg("a", 100, 49), seg("b", 0, 31)), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, tt.m.check())
			require.Equal(t, tt.ok, tt.m.appendsTo(old) == nil)
		})
	}
	other := old
	other.LV = "another"
	require.Error(t, other.appendsTo(old))
	require.NoError(t, old.appendsTo(Map{VG: "vg", LV: "lv"}), "to nothing everything appends")
}

func TestMapCheck(t *testing.T) {
	for name, m := range map[string]Map{
		"no UUID":       {Segments: []MapSegment{{Size: 1, PV: "a"}}},
		"a hole":        {LV: "l", Segments: []MapSegment{{Start: 1, Size: 1, PV: "a"}}},
		"an overlap":    {LV: "l", Segments: []MapSegment{{Size: 2, PV: "a"}, {Start: 1, Size: 1, PV: "a"}}},
		"nothing":       {LV: "l", Segments: []MapSegment{{Size: 0, PV: "a"}}},
		"negative":      {LV: "l", Segments: []MapSegment{{Size: -1, PV: "a"}}},
		"an overflow":   {LV: "l", Segments: []MapSegment{{Size: 1 << 62, PV: "a"}, {Start: 1 << 62, Size: 1 << 62, PV: "a"}}},
		"before byte 0": {LV: "l", Segments: []MapSegment{{Size: 1, PV: "a", Offset: -1}}},
		"nowhere":       {LV: "l", Segments: []MapSegment{{Size: 1}}},
	} {
		require.ErrorIs(t, m.check(), ErrUnusable, name)
	}
}
