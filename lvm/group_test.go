package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestGroupLifeOfAVolume(t *testing.T) {
	l := newLab(t, GroupOptions{Tags: []string{"tidemark"}}, gib)
	require.Equal(t, []string{"tidemark"}, l.VG().Tags)
	before := l.VG().Seqno

	m := l.create(t, "v1", 5*mib)
	require.EqualValues(t, 8*mib, m.Size(), "rounded up to extents")
	v, ok := l.VG().LV("v1")
	require.True(t, ok)
	require.Equal(t, v.UUID, m.LV)
	require.True(t, v.HasTag("IU_v1"))
	require.False(t, v.Active)
	require.Equal(t, before+1, m.Seqno)

	_, err := l.Create(t.Context(), "v1", nil, Size{Need: 1})
	require.ErrorIs(t, err, fs.ErrExist)

	longer := l.extend(t, "v1", 20*mib)
	require.EqualValues(t, 20*mib, longer.Size())
	require.NoError(t, longer.appendsTo(m))
	require.Len(t, longer.Segments, 1, "it grew in place")
	seqno := l.VG().Seqno
	require.Equal(t, longer, l.extend(t, "v1", 9*mib), "a smaller target changes nothing")
	require.Equal(t, longer, l.extend(t, "v1", 20*mib), "a repeated one neither")
	require.Equal(t, seqno, l.VG().Seqno)

	_, err = l.Reduce(t.Context(), "v1", v.UUID, 16*mib, 8*mib)
	require.ErrorIs(t, err, ErrStale, "from another size")
	_, err = l.Reduce(t.Context(), "v1", v.UUID, 20*mib, 9*mib)
	require.ErrorContains(t, err, "extent size")
	_, err = l.Reduce(t.Context(), "v1", "another", 20*mib, 8*mib)
	require.ErrorIs(t, err, ErrStale, "another volume of that name")
	shorter, err := l.Reduce(t.Context(), "v1", v.UUID, 20*mib, 8*mib)
	require.NoError(t, err)
	require.EqualValues(t, 8*mib, shorter.Size())
	_, err = l.Reduce(t.Context(), "v1", v.UUID, 20*mib, 8*mib)
	require.ErrorIs(t, err, ErrStale, "a late duplicate")
	require.Empty(t, l.Lost(), "what we did ourselves is not lost")

	require.NoError(t, l.Retag(t.Context(), "v1", v.UUID, []string{"IU_v1"}, []string{"IU_x", "MD_3"}))
	v, _ = l.VG().LV("v1")
	require.ElementsMatch(t, []string{"IU_x", "MD_3"}, v.Tags)

	require.ErrorIs(t, l.Remove(t.Context(), "v1", "another"), ErrStale)
	require.NoError(t, l.Remove(t.Context(), "v1", v.UUID))
	require.ErrorIs(t, l.Remove(t.Context(), "v1", v.UUID), ErrNotFound)
	_, err = l.Extend(t.Context(), "v1", "", Size{Need: mib})
	require.ErrorIs(t, err, ErrNotFound)
	require.Empty(t, l.VG().LVs)
	require.Equal(t, l.VG().Extents, l.VG().Free)
	require.NoError(t, l.Check(t.Context()))
}

func TestGroupThatIsNotThere(t *testing.T) {
	l := newLab(t, GroupOptions{}, 64*mib)
	_, err := OpenGroup(t.Context(), l.tool(t, ToolOptions{}), "nope")
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorContains(t, err, "tidemark_test", "what there is instead")
	_, err = CreateGroup(t.Context(), l.tool(t, ToolOptions{}), "tidemark_test", GroupOptions{})
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, 5, e.Status)
	require.Equal(t, "vgcreate", e.Args[0])
	require.NotContains(t, e.Error(), "WARNING")
	require.NotEmpty(t, e.Stderr)
}

// Four volumes grow in turns: each stays in few segments, whatever the others do.
func TestGroupInterleavedGrowth(t *testing.T) {
	l := newLab(t, GroupOptions{}, 6*gib, 3*gib)
	names := []string{"a", "b", "c", "d"}
	maps := map[string]Map{}
	for _, n := range names {
		maps[n] = l.create(t, n, 32*mib)
	}
	began := l.VG().Seqno
	for i := range 20 {
		for j, n := range names {
			m := l.extend(t, n, 32*mib+int64(i+1)*int64(16+8*j)*mib)
			require.NoError(t, m.appendsTo(maps[n]), n)
			maps[n] = m
		}
	}
	require.EqualValues(t, began+80, l.VG().Seqno, "one change for each")
	for _, n := range names {
		v, _ := l.VG().LV(n)
		require.LessOrEqual(t, len(v.Segments), 8, n)
	}
	requireDisjoint(t, l.VG())
	require.NoError(t, l.Check(t.Context()))
}

// requireDisjoint checks that no extent belongs to two volumes, or is free as
// well.
func requireDisjoint(t *testing.T, v *VG) {
	t.Helper()
	owner := map[string]string{}
	claim := func(pv string, first, count int64, who string) {
		for e := first; e < first+count; e++ {
			at := fmt.Sprintf("%s:%d", pv, e)
			require.Empty(t, owner[at], "extent %s is %s's", at, who)
			owner[at] = who
		}
	}
	for _, l := range v.LVs {
		for _, s := range l.Segments {
			claim(s.PV, s.First, s.Count, l.Name)
		}
	}
	for _, p := range v.PVs {
		for _, r := range p.Free {
			claim(p.UUID, r.First, r.Count, "nobody")
		}
	}
	require.EqualValues(t, v.Extents, len(owner))
}

func TestGroupFillsUpAndGoesOn(t *testing.T) {
	l := newLab(t, GroupOptions{}, 256*mib, 128*mib)
	l.create(t, "a", 4*mib)
	l.create(t, "b", 4*mib)
	free := l.Free()
	_, err := l.Extend(t.Context(), "a", "", Size{Need: 4*mib + free + 1})
	require.ErrorIs(t, err, ErrNoSpace)
	m, err := l.Extend(t.Context(), "a", "", Size{Need: 8 * mib, Want: gib})
	require.NoError(t, err)
	require.EqualValues(t, 4*mib+free, m.Size(), "what there is, towards want")
	require.Zero(t, l.Free())
	_, err = l.Extend(t.Context(), "b", "", Size{Need: 8 * mib})
	require.ErrorIs(t, err, ErrNoSpace)
	requireDisjoint(t, l.VG())

	v, _ := l.VG().LV("a")
	require.NoError(t, l.Remove(t.Context(), "a", v.UUID))
	require.EqualValues(t, 64*mib, l.extend(t, "b", 64*mib).Size())
}

// A group that somebody else has changed since it was read is read again and the
// extents are chosen anew.
func TestGroupChangedByOthers(t *testing.T) {
	l := newLab(t, GroupOptions{}, 512*mib)
	l.create(t, "a", 8*mib)
	v, _ := l.VG().LV("a")
	next := fmt.Sprintf("%s:%d-%d", l.devices[0].Path, v.Segments[0].First+2, v.Segments[0].First+4)
	l.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-l", "3", "-n", "byhand", l.Name(), next)
	m := l.extend(t, "a", 32*mib)
	require.EqualValues(t, 32*mib, m.Size())
	requireDisjoint(t, l.VG())
	l.byHand(t, "lvextend", "-qq", "-l", "+1", l.path("a"))
	require.EqualValues(t, 36*mib, l.extend(t, "a", 36*mib).Size(), "the target was met by hand")
	require.Empty(t, l.Lost())
}

func TestGroupGivesLostExtentsToNobody(t *testing.T) {
	l := newLab(t, GroupOptions{}, 256*mib)
	m := l.create(t, "a", 64*mib)
	l.byHand(t, "lvremove", "-qq", "-f", l.path("a"))
	_, err := l.Read(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{m.LV}, l.Lost())
	free := l.VG().Free * l.VG().ExtentSize
	require.Equal(t, free-64*mib, l.Free())

	b, err := l.Create(t.Context(), "b", nil, Size{Need: 4 * mib, Want: free})
	require.NoError(t, err)
	for _, s := range b.Segments {
		for _, lost := range m.Segments {
			require.False(t, s.Offset < lost.Offset+lost.Size && lost.Offset < s.Offset+s.Size, "%v is on %v", s, lost)
		}
	}
	b, err = l.Extend(t.Context(), "b", "", Size{Need: 4 * mib, Want: free})
	require.NoError(t, err)
	require.Equal(t, free-64*mib, b.Size())
	l.Forget(m.LV)
	require.Equal(t, free, l.extend(t, "b", free).Size())

	c := newLab(t, GroupOptions{}, 256*mib)
	c.create(t, "c", 64*mib)
	c.byHand(t, "lvreduce", "-qq", "-f", "-L", "32m", c.path("c"))
	_, err = c.Extend(t.Context(), "c", "", Size{Need: 128 * mib})
	require.NoError(t, err, "it may be extended again")
	require.Len(t, c.Lost(), 1, "but not by what it lost")
}

// The record of a change: the command, the read where something is answered that only
// that says, the flush of every physical volume with metadata, and only then the answer.
func TestGroupFlushesBeforeItAnswers(t *testing.T) {
	l := newLab(t, GroupOptions{}, 128*mib, 128*mib)
	l.byHand(t, "pvchange", "-qq", "--metadataignore", "y", l.devices[1].Path)
	r := &recorder{tool: l.tool(t, ToolOptions{})}
	flushed := "flush " + l.devices[0].Path
	g, err := OpenGroup(t.Context(), &Tool{r.options(ToolOptions{Devices: r.tool.o.Devices})}, l.Name())
	require.NoError(t, err)
	require.Equal(t, []string{"fullreport", flushed}, r.take(), "who was here before may have died before its flush")

	steps := []struct {
		name string
		do   func() error
		want []string
	}{
		{"create", func() error { _, err := g.Create(t.Context(), "a", nil, Size{Need: mib}); return err }, []string{"lvcreate", "fullreport", flushed}},
		{"extend", func() error { _, err := g.Extend(t.Context(), "a", "", Size{Need: 8 * mib}); return err }, []string{"lvextend", "fullreport", flushed}},
		{"extend again", func() error { _, err := g.Extend(t.Context(), "a", "", Size{Need: 8 * mib}); return err }, nil},
		{"retag", func() error { return g.Retag(t.Context(), "a", "", nil, []string{"x"}) }, []string{"lvchange", flushed}},
		{"reduce", func() error { _, err := g.Reduce(t.Context(), "a", "", 8*mib, 4*mib); return err }, []string{"fullreport", "lvreduce", "fullreport", flushed}},
		{"remove", func() error { return g.Remove(t.Context(), "a", "") }, []string{"lvremove", flushed}},
	}
	for _, s := range steps {
		require.NoError(t, s.do(), s.name)
		require.Equal(t, s.want, r.take(), s.name)
	}
}

func TestGroupFailedFlushLatches(t *testing.T) {
	l := newLab(t, GroupOptions{}, 128*mib)
	r := &recorder{tool: l.tool(t, ToolOptions{})}
	g, err := OpenGroup(t.Context(), &Tool{r.options(ToolOptions{Devices: r.tool.o.Devices})}, l.Name())
	require.NoError(t, err)
	r.failFlush = errors.New("the disk is gone")
	_, err = g.Create(t.Context(), "a", nil, Size{Need: mib})
	require.ErrorIs(t, err, r.failFlush)
	r.failFlush = nil
	_, err = g.Extend(t.Context(), "a", "", Size{Need: 8 * mib})
	require.ErrorContains(t, err, "the disk is gone", "the first error is final")
	_, err = g.Extend(t.Context(), "a", "", Size{Need: 1})
	require.ErrorContains(t, err, "the disk is gone", "also for what needs no change")
	g, err = OpenGroup(t.Context(), l.tool(t, ToolOptions{}), l.Name())
	require.NoError(t, err)
	_, err = g.Extend(t.Context(), "a", "", Size{Need: 8 * mib})
	require.NoError(t, err)
}

// A command that is killed when it had changed the group already has changed it.
func TestGroupBelievesWhatItReads(t *testing.T) {
	l := newLab(t, GroupOptions{}, 128*mib)
	l.create(t, "a", 4*mib)
	r := &recorder{tool: l.tool(t, ToolOptions{})}
	g, err := OpenGroup(t.Context(), &Tool{r.options(ToolOptions{Devices: r.tool.o.Devices})}, l.Name())
	require.NoError(t, err)
	r.failAfter = "lvextend"
	m, err := g.Extend(t.Context(), "a", "", Size{Need: 8 * mib})
	require.NoError(t, err)
	require.EqualValues(t, 8*mib, m.Size())
	r.failAfter = ""

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Extend(ctx, "a", "", Size{Need: 12 * mib})
	require.ErrorIs(t, err, context.Canceled)
	require.EqualValues(t, 12*mib, l.extend(t, "a", 12*mib).Size(), "and the group goes on")
}

func TestGroupRefusesWhenMetadataIsFull(t *testing.T) {
	l := newLab(t, GroupOptions{MetadataSize: 128 * kib, ExtentSize: 64 * kib}, 64*mib)
	var long []string // so that a few volumes fill the area, which is 1 MiB at least
	for i := range 10 {
		long = append(long, fmt.Sprintf("IU_%d_%s", i, strings.Repeat("x", 1000)))
	}
	var err error
	made := 0
	for ; err == nil && made < 200; made++ {
		_, err = l.Create(t.Context(), fmt.Sprintf("v%d", made), long, Size{Need: 1})
	}
	require.ErrorIs(t, err, ErrMetadataFull)
	require.Greater(t, made, 10)
	md := l.VG().Metadata()
	require.Less(t, md.Used, md.Limit, "there is a reserve")
	require.Greater(t, md.Used, md.Limit*3/4)
	require.Equal(t, md.Segments, md.SegmentsLimit)
	require.NoError(t, l.Retag(t.Context(), "v0", "", nil, []string{"still", "possible"}))
	require.EqualValues(t, 128*kib, l.extend(t, "v0", 128*kib).Size(), "growth in place needs no room")
	require.NoError(t, l.Check(t.Context()))
}

func TestGroupConcurrentChanges(t *testing.T) {
	l := newLab(t, GroupOptions{}, gib)
	other, err := OpenGroup(t.Context(), l.tool(t, ToolOptions{}), l.Name())
	require.NoError(t, err)
	names := []string{"a", "b", "c", "d"}
	for _, n := range names {
		l.create(t, n, 4*mib)
	}
	_, err = other.Read(t.Context())
	require.NoError(t, err)
	var wg sync.WaitGroup
	for i, n := range names {
		g := []*Group{l.Group, other}[i%2]
		wg.Go(func() {
			for k := range int64(6) {
				if _, err := g.Extend(context.Background(), n, "", Size{Need: (k + 2) * 4 * mib}); err != nil {
					t.Errorf("%s, step %d: %v", n, k, err)
				}
			}
		})
	}
	wg.Wait()
	vg, err := l.Read(t.Context())
	require.NoError(t, err)
	for _, n := range names {
		v, _ := vg.LV(n)
		require.EqualValues(t, 28*mib, v.Size, n)
	}
	requireDisjoint(t, vg)
	require.NoError(t, l.Check(t.Context()))
}

func TestToolNamesWhatIsWrong(t *testing.T) {
	for _, o := range []ToolOptions{
		{Dir: "/x"}, {Devices: []string{"sda"}, Dir: "/x"}, {Devices: []string{"/dev/a,b"}, Dir: "/x"},
		{Devices: []string{"/dev/a"}, Dir: "relative"}, {Devices: []string{"/dev/a"}, Dir: "/x", LockDir: `/a"b`},
	} {
		_, err := NewTool(o)
		require.Error(t, err, "%+v", o)
	}
}

// A recorder notes commands and flushes, and fails where it is told to.
type recorder struct {
	tool      *Tool
	mu        sync.Mutex
	steps     []string
	failFlush error
	failAfter string // the command that does its work and then fails
}

func (r *recorder) options(o ToolOptions) ToolOptions {
	o.Run = func(ctx context.Context, args []string) ([]byte, error) {
		r.note(args[0])
		out, err := r.tool.o.Run(ctx, args)
		if err == nil && args[0] == r.failAfter {
			return nil, &Error{Args: args, Status: -1, err: errors.New("signal: killed")}
		}
		return out, err
	}
	o.Flush = func(device string) error {
		r.note("flush " + device)
		if r.failFlush != nil {
			return r.failFlush
		}
		return r.tool.o.Flush(device)
	}
	return o
}

func (r *recorder) note(s string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, s)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := slices.Clone(r.steps)
	r.steps = nil
	return s
}

// Whoever looks at the group does not wait for a command that changes it.
func TestGroupIsLookedAtWhileItChanges(t *testing.T) {
	l := newLab(t, GroupOptions{}, 128*mib)
	r := &recorder{tool: l.tool(t, ToolOptions{})}
	o := r.options(ToolOptions{Devices: r.tool.o.Devices})
	run, reached, goOn := o.Run, make(chan struct{}), make(chan struct{})
	o.Run = func(ctx context.Context, args []string) ([]byte, error) {
		if args[0] == "lvcreate" {
			close(reached)
			<-goOn
		}
		return run(ctx, args)
	}
	g, err := OpenGroup(t.Context(), &Tool{o}, l.Name())
	require.NoError(t, err)
	free := g.Free()
	done := make(chan error, 1)
	go func() {
		_, err := g.Create(context.Background(), "a", nil, Size{Need: 4 * mib})
		done <- err
	}()
	<-reached
	require.Equal(t, free, g.Free())
	require.Empty(t, g.VG().LVs)
	close(goOn)
	require.NoError(t, <-done)
	require.Equal(t, free-4*mib, g.Free())
	require.NoError(t, g.RetagGroup(t.Context(), nil, []string{"x", "y"}))
	require.NoError(t, g.RetagGroup(t.Context(), []string{"x"}, []string{"z"}))
	require.ElementsMatch(t, []string{"y", "z"}, g.VG().Tags)
}
