package lvm

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// What is known without a look is what a look finds.
func TestGroupKnowsWhatItHasDone(t *testing.T) {
	_, random := testenv.Seed(t)
	l := newLab(t, GroupOptions{}, 128*mib, 64*mib)
	for range 30 {
		name := fmt.Sprint("v", random.IntN(6))
		v, there := l.VG().LV(name)
		switch {
		case !there:
			l.create(t, name, (1+random.Int64N(4))*4*mib)
			continue
		case random.IntN(3) == 0:
			l.extend(t, name, v.Size+4*mib)
			continue
		case random.IntN(2) == 0:
			require.NoError(t, l.Retag(t.Context(), name, "", []string{"IU_" + name, "none"}, []string{"x", "MD_3", "x"}))
		default:
			require.NoError(t, l.Remove(t.Context(), name, v.UUID))
		}
		known := unlooked(l.VG())
		found, err := l.Read(t.Context())
		require.NoError(t, err)
		require.Equal(t, unlooked(found), known)
		require.Empty(t, l.Lost())
	}
	require.NoError(t, l.Check(t.Context()))
}

// unlooked is a group without what only a look says, and with its tags in order.
func unlooked(v *VG) VG {
	c := *v
	c.Seqno, c.MDAFree, c.Segments = 0, 0, 0
	c.LVs = slices.Clone(v.LVs)
	for i, l := range c.LVs {
		c.LVs[i].Tags = slices.Sorted(slices.Values(l.Tags))
	}
	return c
}

// Somebody else changes the group in the moment in which we do, and are not looking: the
// extents that seem to be free are not, and what a command has failed to do is known.
func TestGroupChangedByOthersAndNotLookedAt(t *testing.T) {
	l := newLab(t, GroupOptions{}, 64*mib)
	l.create(t, "a", 16*mib)
	l.create(t, "b", 16*mib)
	a, _ := l.VG().LV("a")
	all := fmt.Sprintf("%s:%d-%d", l.devices[0].Path, a.Segments[0].First, a.Segments[0].First+a.Segments[0].Count-1)
	require.NoError(t, l.Remove(t.Context(), "a", a.UUID))
	l.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-l", "4", "-n", "byhand", l.Name(), all)
	l.create(t, "c", 16*mib)
	requireDisjoint(t, l.VG())

	l.byHand(t, "lvremove", "-qq", "-f", l.path("b"))
	require.Error(t, l.Retag(t.Context(), "b", "", nil, []string{"x"}))
	_, there := l.VG().LV("b")
	require.False(t, there, "the group was read again")
	require.Len(t, l.Lost(), 1)
	require.NoError(t, l.Retag(t.Context(), "c", "", nil, []string{"x"}))
	l.byHand(t, "lvremove", "-qq", "-f", l.path("c"))
	c, _ := l.VG().LV("c")
	require.NoError(t, l.Remove(t.Context(), "c", c.UUID), "it is gone, whoever has removed it")
	require.Len(t, l.Lost(), 1, "and was to go")
	require.NoError(t, l.Check(t.Context()))
}

// A command that does its work and fails then is looked after.
func TestGroupLooksWhatAFailureHasDone(t *testing.T) {
	l := newLab(t, GroupOptions{}, 64*mib)
	l.create(t, "a", 4*mib)
	r := &recorder{tool: l.tool(t, ToolOptions{})}
	g, err := OpenGroup(t.Context(), &Tool{r.options(ToolOptions{Devices: r.tool.o.Devices})}, l.Name())
	require.NoError(t, err)
	r.take()
	r.failAfter = "lvchange"
	require.Error(t, g.Retag(t.Context(), "a", "", nil, []string{"x"}))
	require.Equal(t, []string{"lvchange", "fullreport", "flush " + l.devices[0].Path}, r.take())
	v, _ := g.VG().LV("a")
	require.True(t, v.HasTag("x"))
	r.failAfter = "lvremove"
	require.NoError(t, g.Remove(t.Context(), "a", ""), "it is gone")
	require.Equal(t, []string{"lvremove", "fullreport", "flush " + l.devices[0].Path}, r.take())
}
