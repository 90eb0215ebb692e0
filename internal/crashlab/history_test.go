package crashlab

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// timeline is a history of one sector, from a line a request: its kind, when it
// was submitted, and when it returned.
func timeline(acts ...act) *history {
	h := &history{size: 1, start: make([]byte, sector)}
	for i, a := range acts {
		a.N, a.version = 1, version(i+1)
		if a.Kind == Zero || a.Kind == Discard {
			a.version = 0
		}
		h.acts = append(h.acts, &a)
	}
	return h
}

func doing(k Kind, submitted, returned int) act {
	return act{Request: Request{Kind: k}, submitted: submitted, returned: returned}
}

func failing(k Kind, submitted, returned int) act {
	return act{Request: Request{Kind: k}, submitted: submitted, returned: returned, failed: true}
}

func left(a act, v version) act {
	a.seen = []version{v}
	return a
}

func TestAllowance(t *testing.T) {
	for name, c := range map[string]struct {
		h     *history
		n     int
		power []version
		death []version
	}{
		"nothing":                      {timeline(), 9, []version{0}, []version{0}},
		"not submitted yet":            {timeline(doing(Write, 5, 6)), 5, []version{0}, []version{0}},
		"in flight":                    {timeline(doing(Write, 5, 6)), 6, []version{0, 1}, []version{0, 1}},
		"acknowledged":                 {timeline(doing(Write, 5, 6)), 7, []version{0, 1}, []version{1}},
		"never returned":               {timeline(doing(Write, 5, -1)), 99, []version{0, 1}, []version{0, 1}},
		"flushed":                      {timeline(doing(Write, 1, 2), doing(Flush, 3, 4)), 5, []version{1}, []version{1}},
		"flush not acknowledged":       {timeline(doing(Write, 1, 2), doing(Flush, 3, 4)), 4, []version{0, 1}, []version{1}},
		"flush failed":                 {timeline(doing(Write, 1, 2), failing(Flush, 3, 4)), 9, []version{0, 1}, []version{1}},
		"flushed too early":            {timeline(doing(Write, 1, 3), doing(Flush, 2, 4)), 9, []version{0, 1}, []version{1}},
		"FUA":                          {timeline(doing(WriteFUA, 1, 2)), 3, []version{1}, []version{1}},
		"FUA over what is pending":     {timeline(doing(Write, 1, 2), doing(WriteFUA, 3, 4)), 5, []version{2}, []version{2}},
		"FUA beside what is in flight": {timeline(doing(Write, 1, 6), doing(WriteFUA, 3, 4)), 5, []version{1, 2}, []version{1, 2}},
		"later ones":                   {timeline(doing(WriteFUA, 1, 2), doing(Write, 3, 4), doing(Write, 5, 6)), 9, []version{1, 2, 3}, []version{3}},
		"two at once":                  {timeline(doing(Write, 1, 4), doing(Write, 2, 3), doing(Flush, 5, 6)), 7, []version{1, 2}, []version{1, 2}},
		"zeroed":                       {timeline(doing(WriteFUA, 1, 2), doing(Zero, 3, 4), doing(Flush, 5, 6)), 7, []version{0}, []version{0}},
		"failed":                       {timeline(failing(Write, 1, 2), doing(Flush, 3, 4)), 5, []version{0, 1}, []version{0, 1}},
		"failed and replaced":          {timeline(failing(Write, 1, 2), doing(WriteFUA, 3, 4)), 5, []version{2}, []version{2}},
		"discard in flight":            {timeline(doing(WriteFUA, 1, 2), left(doing(Discard, 3, 4), 1)), 4, []version{0, 1}, []version{0, 1}},
		"discard, flushed, kept":       {timeline(doing(WriteFUA, 1, 2), left(doing(Discard, 3, 4), 1), doing(Flush, 5, 6)), 7, []version{1}, []version{1}},
		"discard, flushed, dropped":    {timeline(doing(WriteFUA, 1, 2), left(doing(Discard, 3, 4), 0), doing(Flush, 5, 6)), 7, []version{0}, []version{0}},
		"discard that nobody looked at": {timeline(doing(WriteFUA, 1, 2), doing(Discard, 3, 4), doing(Flush, 5, 6)), 7,
			[]version{0, 1}, []version{0, 1}},
		"discard that left one of two at once": {timeline(doing(WriteFUA, 1, 4), doing(WriteFUA, 2, 3), left(doing(Discard, 5, 6), 2), doing(Flush, 7, 8)), 9,
			[]version{1, 2}, []version{1, 2}},
		"discard that dropped two at once": {timeline(doing(WriteFUA, 1, 4), doing(WriteFUA, 2, 3), left(doing(Discard, 5, 6), 0), doing(Flush, 7, 8)), 9,
			[]version{0}, []version{0}},
		"closed": {timeline(doing(Write, 1, 2), doing(Reopen, 3, 4)), 5, []version{1}, []version{1}},
		"killed": {timeline(doing(Write, 1, 2), doing(Kill, 3, 4)), 5, []version{0, 1}, []version{1}},
	} {
		for died, want := range map[bool][]version{false: c.power, true: c.death} {
			got := slices.Clone(c.h.allow(c.n, died).may[0])
			slices.Sort(got)
			require.Equal(t, want, slices.Compact(got), "%s, died %t", name, died)
		}
	}
}

func TestAllowanceAfterAFailedSync(t *testing.T) {
	h := timeline(doing(Write, 1, 2), doing(FailSync, 3, 4), failing(Flush, 5, 6), doing(EvictReopen, 7, 9), doing(Flush, 10, 11))
	h.evicted = []eviction{{at: 8}}
	require.ElementsMatch(t, []version{0, 1}, h.allow(12, false).may[0], "no flush behind the eviction covers it")
	require.ElementsMatch(t, []version{0, 1}, h.allow(12, true).may[0])
	require.Equal(t, []version{1}, h.allow(8, true).may[0], "until then the cache has it")
}

func TestAllowedSizes(t *testing.T) {
	h := &history{size: 4, start: make([]byte, 4*sector)}
	h.acts = []*act{
		{Request: Request{Kind: Resize, N: 8}, submitted: 1, returned: 2},
		{Request: Request{Kind: Resize, N: 9}, submitted: 3, returned: 4},
	}
	require.Equal(t, []int64{4}, h.allow(1, false).sizes)
	require.Equal(t, []int64{4, 8}, h.allow(2, false).sizes)
	require.Equal(t, []int64{8}, h.allow(3, false).sizes)
	require.Equal(t, []int64{8, 9}, h.allow(4, false).sizes)
	require.Equal(t, []int64{9}, h.allow(5, false).sizes)
	require.Error(t, h.allow(5, false).judge(make([]byte, 8*sector)))
	require.NoError(t, h.allow(5, false).judge(make([]byte, 9*sector)))
}

func TestVersions(t *testing.T) {
	p := make([]byte, 3*sector)
	stamp(p, 7, 42)
	for i := range int64(3) {
		v, err := versionOf(p[i*sector:(i+1)*sector], 7+i, nil)
		require.NoError(t, err)
		require.EqualValues(t, 42, v)
	}
	_, err := versionOf(p[:sector], 8, nil)
	require.ErrorContains(t, err, "the bytes of sector 7")
	p[sector-1]++
	_, err = versionOf(p[:sector], 7, nil)
	require.ErrorContains(t, err, "a mix")
	before := make([]byte, 8*sector)
	copy(before[7*sector:], p[:sector])
	v, err := versionOf(p[:sector], 7, before)
	require.NoError(t, err)
	require.Equal(t, original, v)
}
