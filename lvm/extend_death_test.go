package lvm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

var errDied = errors.New("the process is dead")

// What happens at a step of extensions that are made together: a command, or a flush.
const (
	diesAfter  = "the process dies after"
	powerCut   = "the power fails after"
	isLost     = "says that it is done, and does nothing:"
	saysFailed = "is done, and says that it failed:"
)

// An accident is what happens at one step. Nothing else is done by a process that died.
type accident struct {
	c    *crowd
	cuts *cuttable

	mu   sync.Mutex // guards all below
	what string
	left int    // steps until it happens
	at   string // the step at which it did
	dead bool
	// chosen are the extents that commands were to give since the group was last read.
	chosen map[string]string
	twice  error // one of them was chosen for two volumes
}

// step does one, and reports what the group's user is told of it.
func (a *accident) step(name string, do func() ([]byte, error)) ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.dead {
		return nil, errDied
	}
	now := a.what != "" && a.left == 0 && a.at == ""
	a.left--
	if !now {
		return do()
	}
	a.at = name
	a.dead = a.what == diesAfter || a.what == powerCut
	flush, report := strings.HasPrefix(name, "flush"), name == "fullreport"
	if a.what == isLost && !flush && !report {
		return nil, nil
	}
	out, err := do()
	switch {
	case err != nil || a.what == isLost:
	case a.dead:
		err = errDied
	case a.what == saysFailed && !flush:
		err = &Error{Args: []string{name}, Status: -1, err: errors.New("signal: killed")}
	}
	return out, err
}

// tool is one to which the accident happens.
func (a *accident) tool(t *testing.T) *Tool {
	below := a.c.tool(t, ToolOptions{})
	return &Tool{ToolOptions{
		Devices: below.o.Devices,
		Run: func(ctx context.Context, args []string) ([]byte, error) {
			return a.step(args[0], func() ([]byte, error) {
				a.note(args)
				return below.o.Run(ctx, args)
			})
		},
		Flush: func(device string) error {
			_, err := a.step("flush "+device, func() ([]byte, error) {
				a.cuts.note(t, device)
				return nil, nil
			})
			return err
		},
	}}
}

// note looks at the extents that a command is to give.
func (a *accident) note(args []string) {
	if args[0] != "lvextend" {
		a.chosen = map[string]string{}
		return
	}
	volume := args[len(args)-2]
	device, extents, _ := strings.Cut(args[len(args)-1], ":")
	first, last, _ := strings.Cut(extents, "-")
	from, _ := strconv.Atoi(first)
	to, _ := strconv.Atoi(last)
	for e := from; e <= to; e++ {
		at := fmt.Sprintf("%s:%d", device, e)
		if whose := a.chosen[at]; whose != "" && a.twice == nil {
			a.twice = fmt.Errorf("extent %s was chosen for %s and for %s", at, whose, volume)
		}
		a.chosen[at] = volume
	}
}

// Answered is what volumes were told that they have, for ever: a map, and whose an
// extent is.
type answered struct {
	maps  map[string]Map
	owner map[string]string
}

func (w *answered) add(t *testing.T, name string, m Map, extent int64) {
	t.Helper()
	if was, there := w.maps[name]; there {
		require.NoError(t, m.appendsTo(was), name)
	}
	w.maps[name] = m
	for _, s := range m.Segments {
		for off := s.Offset; off < s.Offset+s.Size; off += extent {
			at := fmt.Sprintf("%s:%d", s.PV, off)
			require.Contains(t, []string{"", name}, w.owner[at], "extent %s was given to %s before", at, w.owner[at])
			w.owner[at] = name
		}
	}
}

// Extensions that are made together meet an accident at each of their steps. No extent
// is chosen or given twice, who was answered has at least what it asked for, for ever,
// and who asks again gets it once.
func TestExtensionsTogetherMeetAccidents(t *testing.T) {
	_, rng := testenv.Seed(t)
	met := map[string]int{}
	for _, what := range []string{diesAfter, powerCut, isLost, saysFailed} {
		c := newCrowd(t, 3)
		told := &answered{map[string]Map{}, map[string]string{}}
		cuts := &cuttable{l: c.lab, flushed: map[string][]byte{}}
		for n := 0; ; n++ {
			a := &accident{c: c, cuts: cuts}
			g, err := OpenGroup(t.Context(), a.tool(t), c.Name())
			require.NoError(t, err)
			a.what, a.left = what, n
			if !meet(t, rng, g, a, told) {
				break
			}
			met[what]++
		}
		require.NoError(t, c.Check(t.Context()))
	}
	for what, n := range met {
		require.GreaterOrEqual(t, n, 6, "%s: three commands, a look and two flushes", what)
	}
	t.Log(met)
}

// meet extends all volumes together, one of them twice, and judges what is left of that
// after the accident, which it reports.
func meet(t *testing.T, rng *rand.Rand, g *Group, a *accident, told *answered) bool {
	t.Helper()
	names := append(slices.Clone(a.c.names), a.c.names[0])
	extent := g.VG().ExtentSize
	sizes := make([]Size, len(names))
	for i, name := range names {
		l, ok := g.VG().LV(name)
		require.True(t, ok)
		need := l.Size + (1+rng.Int64N(3))*extent
		if i == len(names)-1 {
			need += 4 * extent // by a command of its own
		}
		sizes[i] = Size{Need: need, Want: need + rng.Int64N(2)*extent}
	}
	ask := func(g *Group) []error {
		all := make([]*extension, len(names))
		for i, name := range names {
			all[i] = &extension{ctx: t.Context(), name: name, size: sizes[i]}
		}
		g.mu.Lock()
		g.extendAllLocked(all)
		g.mu.Unlock()
		errs := make([]error, len(names))
		for i, e := range all {
			require.True(t, e.done)
			if errs[i] = e.err; e.err == nil {
				require.GreaterOrEqual(t, e.m.Size(), sizes[i].Need, "%s %s: %s was answered", a.what, a.at, names[i])
				told.add(t, names[i], e.m, extent)
			}
		}
		return errs
	}
	errs := ask(g)
	require.NoError(t, a.twice, "%s %s", a.what, a.at)
	if a.dead && a.what == powerCut {
		a.cuts.cut(t)
	}
	if !a.dead && a.at != "fullreport" {
		require.NoError(t, errors.Join(errs...), "%s %s", a.what, a.at)
	}

	next := &accident{c: a.c, cuts: a.cuts}
	g, err := OpenGroup(t.Context(), next.tool(t), g.Name())
	require.NoError(t, err, "%s %s", a.what, a.at)
	requireDisjoint(t, g.VG())
	for name, was := range told.maps {
		m, err := g.VG().Map(name)
		require.NoError(t, err)
		require.NoError(t, m.appendsTo(was), "%s %s: what %s was told", a.what, a.at, name)
	}
	require.NoError(t, errors.Join(ask(g)...), "%s %s: again", a.what, a.at)
	require.NoError(t, next.twice)
	requireDisjoint(t, g.VG())
	seqno := g.VG().Seqno
	require.NoError(t, errors.Join(ask(g)...), "and again")
	require.Equal(t, seqno, g.VG().Seqno, "%s %s: who asks for what it has changes nothing", a.what, a.at)
	return a.at != ""
}
