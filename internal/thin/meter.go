package thin

import (
	"slices"
	"time"
)

// rateWindow is the time over which the speed of the writer is measured, and
// rateForget how long a measured speed is believed without a new one.
const (
	rateWindow = 100 * time.Millisecond
	rateForget = 2 * time.Second
)

// A rateMeter measures how fast the end moves. Its zero value is ready.
type rateMeter struct {
	started bool
	at      time.Time // begin of the window
	end     int64     // at that time
	rate    float64   // bytes per second, of the windows before
}

// note tells where the end is now.
func (m *rateMeter) note(now time.Time, end int64) {
	if !m.started {
		*m = rateMeter{started: true, at: now, end: end}
		return
	}
	span := now.Sub(m.at)
	if span < rateWindow {
		return
	}
	latest := float64(end-m.end) / span.Seconds()
	if span < rateForget && m.rate > latest { // a faster writer is believed at once
		latest = (latest + m.rate) / 2
	}
	*m = rateMeter{started: true, at: now, end: end, rate: latest}
}

// now tells the speed at that time, in bytes per second.
func (m *rateMeter) now(now time.Time) float64 {
	if now.Sub(m.at) > rateForget {
		return 0
	}
	return m.rate
}

// latencyKept is the number of latencies that p50 and max are taken from, and
// latencyRecent that of those of which the longest is expected again.
const (
	latencyKept   = 64
	latencyRecent = 8
)

// A latencyMeter remembers how long the last extensions took. Its zero value is
// ready.
type latencyMeter struct {
	ring [latencyKept]time.Duration
	n    int // ever noted
}

func (m *latencyMeter) note(d time.Duration) {
	m.ring[m.n%latencyKept] = d
	m.n++
}

// expected is what the next extension should be assumed to take.
func (m *latencyMeter) expected() (d time.Duration) {
	for i := max(m.n-latencyRecent, 0); i < m.n; i++ {
		d = max(d, m.ring[i%latencyKept])
	}
	return d
}

func (m *latencyMeter) last() time.Duration {
	if m.n == 0 {
		return 0
	}
	return m.ring[(m.n-1)%latencyKept]
}

func (m *latencyMeter) medianMax() (median, longest time.Duration) {
	kept := slices.Clone(m.ring[:min(m.n, latencyKept)])
	if len(kept) == 0 {
		return 0, 0
	}
	slices.Sort(kept)
	return kept[len(kept)/2], kept[len(kept)-1]
}
