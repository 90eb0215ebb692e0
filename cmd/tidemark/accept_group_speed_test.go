//go:build linux

package main_test

import (
	"fmt"
	"regexp"
	"slices"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// How long a write at full speed may take, and how many of them may wait for an
// extension.
const (
	slowestWrite    = time.Second
	waitingWritesIn = 1000
)

// At full speed for 4 GiB no write waits long, and hardly any waits for an
// extension. What is measured is what the clients see: the server of the volume is
// the client of the manager, and its clients are ours.
func TestGroupFullSpeed(t *testing.T) {
	workspace(t)
	g := newGroupPool(t, 2, 4*gib, 4*gib)
	v := g.create("disk", 10*gib)
	s := g.serve("disk")
	w := writeAtFullSpeed(t, s, 4*gib)
	s.stop()

	grown := extensionsIn(t, s.proc.Output())
	waiting := w.waitingFor(grown)
	slowest := slices.MaxFunc(w.writes, func(a, b timedWrite) int { return int(a.took() - b.took()) }).took()
	p50, p99, most := percentiles(grown)
	t.Logf("measured: %d writes of %d KiB in %v, %.0f MB/s, the slowest %v; %d extensions, from the crossing write to usable space p50 %v, p99 %v, at most %v; %d writes may have waited for one",
		len(w.writes), speedBlock>>10, w.took.Round(time.Millisecond), 4*gib/w.took.Seconds()/1e6, slowest.Round(time.Millisecond),
		len(grown), p50, p99, most, waiting)
	require.GreaterOrEqual(t, len(grown), 10, "extensions")
	require.Less(t, slowest, slowestWrite)
	require.Less(t, waiting*waitingWritesIn, len(w.writes), "writes that may have waited for an extension")
	require.LessOrEqual(t, len(g.segments(t, v.VolumeUUID)), 8)
	g.requireAgrees(t)
}

const (
	speedBlock       = 64 << 10
	speedConnections = 4
	speedDepth       = 4 // of each connection
)

// A timedWrite is when a write began and ended.
type timedWrite struct{ began, ended time.Time }

func (w timedWrite) took() time.Duration { return w.ended.Sub(w.began) }

// fullSpeed are the writes of a run, in the order of their ends.
type fullSpeed struct {
	writes []timedWrite
	took   time.Duration
}

// writeAtFullSpeed writes size bytes, each block once and in order, as fast as
// it can be done.
func writeAtFullSpeed(t *testing.T, s *server, size int64) fullSpeed {
	t.Helper()
	data := patterned(1, 0, speedBlock)
	var next atomic.Int64
	done := make(chan []timedWrite)
	failed := make(chan error, speedConnections*speedDepth)
	began := time.Now()
	for range speedConnections {
		c := s.dial()
		for range speedDepth {
			go func() {
				var all []timedWrite
				defer func() { done <- all }()
				for at := next.Add(speedBlock) - speedBlock; at < size; at = next.Add(speedBlock) - speedBlock {
					w := timedWrite{began: time.Now()}
					if err := c.WriteAt(t.Context(), data, at, 0); err != nil {
						failed <- fmt.Errorf("write at %d: %w", at, err)
						return
					}
					w.ended = time.Now()
					all = append(all, w)
				}
			}()
		}
	}
	var out fullSpeed
	for range speedConnections * speedDepth {
		out.writes = append(out.writes, <-done...)
	}
	out.took = time.Since(began)
	select {
	case err := <-failed:
		t.Fatal(err)
	default:
	}
	sort.Slice(out.writes, func(i, j int) bool { return out.writes[i].ended.Before(out.writes[j].ended) })
	return out
}

// waitingFor counts the writes that may have waited for an extension: those in
// progress when somebody in the engine had waited for one and it came.
func (f fullSpeed) waitingFor(grown []extension) (n int) {
	for _, w := range f.writes {
		if slices.ContainsFunc(grown, func(e extension) bool {
			return e.waited > 0 && w.began.Before(e.at) && w.ended.After(e.at.Add(-logLag))
		}) {
			n++
		}
	}
	return n
}

// logLag is how much later than it happened an extension may be in the log.
const logLag = time.Millisecond

// An extension is one as the server of the volume has seen it: from the write that
// crossed the watermark to space that could be used, and how long somebody had waited
// for it.
type extension struct {
	at           time.Time
	took, waited time.Duration
}

var serverExtended = regexp.MustCompile(`time=(\S+) .*msg="volume extended" .* took=(\S+) waited=(\S+) `)

func extensionsIn(t *testing.T, log string) (all []extension) {
	t.Helper()
	for line := range strings.Lines(log) {
		m := serverExtended.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		at, err := time.Parse(time.RFC3339Nano, m[1])
		require.NoError(t, err)
		took, err := time.ParseDuration(m[2])
		require.NoError(t, err)
		waited, err := time.ParseDuration(m[3])
		require.NoError(t, err)
		all = append(all, extension{at, took, waited})
	}
	return all
}

func percentiles(all []extension) (p50, p99, most time.Duration) {
	d := make([]time.Duration, len(all))
	for i, e := range all {
		d[i] = e.took.Round(100 * time.Microsecond)
	}
	slices.Sort(d)
	return d[len(d)/2], d[len(d)*99/100], d[len(d)-1]
}
