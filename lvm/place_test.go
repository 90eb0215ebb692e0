package lvm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

func TestPlace(t *testing.T) {
	run := func(pv string, first, count int64) Piece { return Piece{pv, Range{first, count}} }
	free := func(pv string, runs ...Range) Space { return Space{PV: pv, Free: runs} }
	tests := []struct {
		name  string
		space []Space
		d     Demand
		want  []Piece // nil: no space
	}{
		{"a new volume: the middle of the largest gap",
			[]Space{free("a", Range{0, 10}, Range{20, 40}), free("b", Range{5, 30})},
			Demand{Need: 1, Want: 1}, []Piece{run("a", 40, 1)}},
		{"of equals the first",
			[]Space{free("a", Range{0, 10}), free("b", Range{0, 10})},
			Demand{Need: 1, Want: 1}, []Piece{run("a", 5, 1)}},
		{"the second half is too small: as far behind as it fits",
			[]Space{free("a", Range{10, 10})},
			Demand{Need: 8, Want: 8}, []Piece{run("a", 12, 8)}},
		{"a new volume takes no jump",
			[]Space{free("a", Range{0, 100})},
			Demand{Need: 2, Want: 2, Most: 50, Jump: 8}, []Piece{run("a", 50, 2)}},
		{"no gap is large enough: the largest ones, whole",
			[]Space{free("a", Range{0, 3}, Range{10, 5}), free("b", Range{0, 4})},
			Demand{Need: 11, Want: 11}, []Piece{run("a", 10, 5), run("b", 0, 4), run("a", 1, 2)}},
		{"growth in place",
			[]Space{free("a", Range{0, 10}, Range{20, 80})},
			Demand{Need: 3, Want: 3, Most: 90, Size: 5, TailPV: "a", TailEnd: 20, Jump: 8}, []Piece{run("a", 20, 3)}},
		{"in place as far as it goes, then a jump",
			[]Space{free("a", Range{0, 100}, Range{200, 2}), free("b", Range{0, 40})},
			Demand{Need: 3, Want: 3, Most: 90, Size: 5, TailPV: "a", TailEnd: 200, Jump: 8}, []Piece{run("a", 200, 2), run("a", 50, 8)}},
		{"a jump is large",
			[]Space{free("a", Range{0, 100})},
			Demand{Need: 1, Want: 2, Most: 90, Size: 5, TailPV: "a", TailEnd: 200, Jump: 8}, []Piece{run("a", 50, 8)}},
		{"but not beyond what may be granted",
			[]Space{free("a", Range{0, 100})},
			Demand{Need: 1, Want: 2, Most: 5, Size: 5, TailPV: "a", TailEnd: 200, Jump: 8}, []Piece{run("a", 50, 5)}},
		{"and not less than what is wanted",
			[]Space{free("a", Range{0, 100})},
			Demand{Need: 1, Want: 20, Most: 20, Size: 5, TailPV: "a", TailEnd: 200, Jump: 8}, []Piece{run("a", 50, 20)}},
		{"the gap behind it is another volume's end",
			[]Space{free("b", Range{20, 10})},
			Demand{Need: 1, Want: 1, Most: 1, Size: 5, TailPV: "a", TailEnd: 20, Jump: 1}, []Piece{run("b", 25, 1)}},
		{"towards want there is less",
			[]Space{free("a", Range{20, 4})},
			Demand{Need: 2, Want: 9, Most: 9, Size: 5, TailPV: "a", TailEnd: 20, Jump: 8}, []Piece{run("a", 20, 4)}},
		{"runs that touch are one gap",
			[]Space{free("a", Range{0, 4}, Range{4, 4}, Range{20, 6})},
			Demand{Need: 1, Want: 1}, []Piece{run("a", 4, 1)}},
		{"one that never grows: the end of the smallest gap with room for it",
			[]Space{free("a", Range{0, 100}, Range{200, 5}), free("b", Range{7, 5}, Range{50, 2})},
			Demand{Need: 3, Want: 3, Still: true}, []Piece{run("a", 202, 3)}},
		{"if there is one",
			[]Space{free("a", Range{0, 3}, Range{10, 2})},
			Demand{Need: 4, Want: 4, Still: true}, []Piece{run("a", 0, 3), run("a", 11, 1)}},
		{"too little", []Space{free("a", Range{0, 4}), free("b", Range{0, 4})}, Demand{Need: 9, Want: 9}, nil},
		{"nothing", nil, Demand{Need: 1, Want: 1}, nil},
		{"nothing is needed and nothing is there", nil, Demand{Need: 0, Want: 1, Size: 3}, []Piece{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Place(tt.space, tt.d)
			if tt.want == nil {
				require.ErrorIs(t, err, ErrNoSpace)
				return
			}
			require.NoError(t, err)
			require.ElementsMatch(t, tt.want, got)
			for i := range got {
				require.Equal(t, tt.want[i], got[i], "the order")
			}
		})
	}
}

func TestJumpExtents(t *testing.T) {
	require.EqualValues(t, 8, jumpExtents(10, 128*mib))
	require.EqualValues(t, 8, jumpExtents(128, 128*mib))
	require.EqualValues(t, 100, jumpExtents(1600, 128*mib))
	require.EqualValues(t, 1, jumpExtents(10, 4*gib))
}

// Whatever is free, what is chosen is free, is chosen once, and suffices.
func TestPlaceRandom(t *testing.T) {
	_, rng := testenv.Seed(t)
	for range 3000 {
		var space []Space
		free := map[string]map[int64]bool{}
		for _, pv := range []string{"a", "b", "c"}[:1+rng.IntN(3)] {
			s := Space{PV: pv}
			free[pv] = map[int64]bool{}
			for at := rng.Int64N(5); at < 60; at += rng.Int64N(20) {
				n := 1 + rng.Int64N(9)
				s.Free = append(s.Free, Range{at, n})
				for e := at; e < at+n; e++ {
					free[pv][e] = true
				}
				at += n
			}
			space = append(space, s)
		}
		d := Demand{Need: rng.Int64N(40), Size: rng.Int64N(3) * 7, TailPV: "a", TailEnd: rng.Int64N(60), Jump: 1 + rng.Int64N(12)}
		d.Want = d.Need + rng.Int64N(20)
		d.Most = d.Want + rng.Int64N(20)
		got, err := Place(space, d)
		if freeExtents(space) < d.Need {
			require.ErrorIs(t, err, ErrNoSpace)
			continue
		}
		require.NoError(t, err, "%+v of %+v", d, space)
		sum := int64(0)
		for _, p := range got {
			require.Positive(t, p.Count)
			sum += p.Count
			for e := p.First; e < p.End(); e++ {
				require.True(t, free[p.PV][e], "%s:%d of %+v for %+v", p.PV, e, space, d)
				delete(free[p.PV], e)
			}
		}
		require.GreaterOrEqual(t, sum, min(d.Want, freeExtents(space)))
		require.LessOrEqual(t, sum, d.Most)
	}
}

// Many volumes that grow in turns until the group is full stay in few segments.
func TestPlaceManyVolumesStayWhole(t *testing.T) {
	const volumes, extents, step = 32, 32 << 10, 1 // 4 TiB of extents of 128 MiB
	space := []Space{{PV: "a", Free: []Range{{0, extents}}}}
	type volume struct {
		size, end int64
		segments  int
	}
	all := make([]volume, volumes)
	for full := false; !full; {
		for i := range all {
			v := &all[i]
			d := Demand{Need: step, Want: step, Most: extents, Size: v.size, TailPV: "a", TailEnd: v.end, Jump: jumpExtents(v.size, 128*mib)}
			got, err := Place(space, d)
			if err != nil {
				full = true
				break
			}
			for _, p := range got {
				if v.size == 0 || p.First != v.end {
					v.segments++
				}
				v.size, v.end = v.size+p.Count, p.End()
			}
			space = without(space, got)
		}
	}
	total := 0
	for _, v := range all {
		require.LessOrEqual(t, v.segments, 40)
		total += v.segments
	}
	t.Logf("%d volumes of %d extents each have %d segments", volumes, extents/volumes, total)
	require.LessOrEqual(t, total, 12*volumes, "one for each extension would be %d", extents)
}

func TestCut(t *testing.T) {
	runs := []Range{{0, 10}, {20, 10}}
	require.Equal(t, []Range{{0, 3}, {6, 4}, {20, 10}}, cut(runs, Range{3, 3}))
	require.Equal(t, []Range{{0, 8}, {25, 5}}, cut(runs, Range{8, 17}))
	require.Equal(t, []Range{{20, 10}}, cut(runs, Range{0, 10}))
	require.Equal(t, runs, cut(runs, Range{10, 10}))
	require.Empty(t, cut(runs, Range{0, 100}))
}
