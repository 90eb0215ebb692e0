package lvm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// A crowd is a group of volumes that lie one behind the other, so that all but the last
// have to go elsewhere, and the best place is the same one for all.
type crowd struct {
	*lab
	r     *recorder
	names []string
}

func newCrowd(t *testing.T, n int) *crowd {
	c := &crowd{lab: newLab(t, GroupOptions{}, gib, gib)}
	c.r = &recorder{tool: c.tool(t, ToolOptions{})}
	for i := range n {
		c.names = append(c.names, fmt.Sprintf("v%d", i))
		c.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-l", "1", "-n", c.names[i], c.Name())
	}
	g, err := OpenGroup(t.Context(), &Tool{c.r.options(ToolOptions{Devices: c.r.tool.o.Devices})}, c.Name())
	require.NoError(t, err)
	c.Group = g
	c.r.take()
	return c
}

// extendAll asks for sizes so that all wait for each other, and returns the answers.
func (c *crowd) extendAll(t *testing.T, names []string, size func(i int) Size) ([]Map, []error) {
	t.Helper()
	maps, errs := make([]Map, len(names)), make([]error, len(names))
	var wg sync.WaitGroup
	c.mu.Lock()
	for i, n := range names {
		wg.Go(func() { maps[i], errs[i] = c.Extend(context.WithoutCancel(t.Context()), n, "", size(i)) })
	}
	testenv.Eventually(t, time.Minute, "all wait", func() bool {
		c.extending.mu.Lock()
		defer c.extending.mu.Unlock()
		return len(c.extending.all) == len(names)
	})
	c.mu.Unlock()
	wg.Wait()
	return maps, errs
}

func count(steps []string, what string) (n int) {
	for _, s := range steps {
		if s == what {
			n++
		}
	}
	return n
}

// Extensions that wait for each other take one look at the group and one flush, and
// nobody is answered before both.
func TestExtensionsTogether(t *testing.T) {
	c := newCrowd(t, 5)
	maps, errs := c.extendAll(t, c.names, func(i int) Size { return Size{Need: int64(2+i) * 4 * mib} })
	require.NoError(t, errors.Join(errs...))
	for i, m := range maps {
		require.EqualValues(t, (2+i)*4*mib, m.Size())
	}
	steps := c.r.take()
	require.Equal(t, 5, count(steps, "lvextend"))
	require.Equal(t, 1, count(steps, "fullreport"), "%v", steps)
	require.Greater(t, slices.Index(steps, "fullreport"), 4)
	for _, d := range c.devices {
		require.Greater(t, slices.Index(steps, "flush "+d.Path), slices.Index(steps, "fullreport"))
	}
	vg, err := c.Read(t.Context())
	require.NoError(t, err)
	requireDisjoint(t, vg)
	require.NoError(t, c.Check(t.Context()))
}

// More than are made together, the same volume several times, one that is not there,
// one that needs nothing, and more than there is.
func TestExtensionsTogetherOfAllSorts(t *testing.T) {
	c := newCrowd(t, extendMost+4)
	names := append(slices.Clone(c.names), "v0", "v0", "nope", "v1", "v2")
	maps, errs := c.extendAll(t, names, func(i int) Size {
		switch {
		case names[i] == "v1":
			return Size{Need: mib}
		case names[i] == "v2":
			return Size{Need: 4 * gib}
		}
		return Size{Need: int64(2+i) * 4 * mib}
	})
	for i, n := range names {
		switch n {
		case "nope":
			require.ErrorIs(t, errs[i], ErrNotFound)
		case "v1":
			require.NoError(t, errs[i])
			require.EqualValues(t, 4*mib, maps[i].Size())
		case "v2":
			require.ErrorIs(t, errs[i], ErrNoSpace)
		default:
			require.NoError(t, errs[i], n)
			require.GreaterOrEqual(t, maps[i].Size(), int64(2+i)*4*mib, n)
		}
	}
	vg, err := c.Read(t.Context())
	require.NoError(t, err)
	requireDisjoint(t, vg)
}

// Somebody else has taken extents that were chosen: those who were to get them get
// others, and the rest is not disturbed.
func TestExtensionsTogetherOfAChangedGroup(t *testing.T) {
	c := newCrowd(t, 4)
	v, _ := c.VG().LV("v3")
	device := c.pieceArg(Piece{v.Segments[0].PV, Range{v.Segments[0].First + 1, 2}})
	c.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-l", "2", "-n", "byhand", c.Name(), device)
	maps, errs := c.extendAll(t, c.names, func(int) Size { return Size{Need: 16 * mib} })
	require.NoError(t, errors.Join(errs...))
	for _, m := range maps {
		require.EqualValues(t, 16*mib, m.Size())
	}
	requireDisjoint(t, c.VG())
	require.NoError(t, c.Check(t.Context()))
}

// A flush that fails is everybody's error.
func TestExtensionsTogetherAndAFailedFlush(t *testing.T) {
	c := newCrowd(t, 3)
	c.r.failFlush = errors.New("the disk is gone")
	_, errs := c.extendAll(t, c.names, func(int) Size { return Size{Need: 8 * mib} })
	for _, err := range errs {
		require.ErrorIs(t, err, c.r.failFlush)
	}
}

// One who has gone does not keep the others.
func TestExtensionsTogetherAndOneGivesUp(t *testing.T) {
	c := newCrowd(t, 3)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	all := make([]*extension, len(c.names))
	for i, n := range c.names {
		all[i] = &extension{ctx: t.Context(), name: n, size: Size{Need: 8 * mib}}
	}
	all[1].ctx = gone
	c.mu.Lock()
	c.extendAllLocked(all)
	c.mu.Unlock()
	require.NoError(t, all[0].err)
	require.ErrorIs(t, all[1].err, context.Canceled)
	require.NoError(t, all[2].err)
}
