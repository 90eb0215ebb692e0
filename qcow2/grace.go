package qcow2

import "sync/atomic"

// graceShards spreads the count of requests in progress, so that requests on
// several processors do not share a cache line.
const graceShards = 8

// A grace knows which requests are in progress, well enough to say when all that
// began before a moment have ended. A host cluster that no entry names any more
// may still be read and written by a request that looked it up before; it is
// reused only when such requests are gone (rule 11).
//
// Time is divided into epochs. A request is counted in the epoch in which it
// began. The epoch advances from e to e+1 when no request of e-1 is left. So what
// was unlinked in epoch u cannot be known to any request once the epoch is u+2.
// Nobody waits for a request here, and a request that waits for space is not in
// progress: it knows no cluster.
type grace struct {
	epoch  atomic.Uint64
	counts [2][graceShards]struct {
		n atomic.Int64
		_ [56]byte
	}
	// wanted: somebody waits for requests to end; ended tells him to look.
	wanted atomic.Bool
	ended  chan struct{}
}

// A ticket is a request's place in a grace.
type ticket struct{ slot, shard uint8 }

func newGrace() *grace { return &grace{ended: make(chan struct{}, 1)} }

// enter counts a request at the guest offset off.
func (g *grace) enter(off int64) ticket {
	shard := uint8(uint64(off) >> 20 % graceShards)
	for {
		e := g.epoch.Load()
		t := ticket{uint8(e & 1), shard}
		g.counts[t.slot][shard].n.Add(1)
		if g.epoch.Load() == e {
			return t
		}
		g.leave(t) // the epoch has moved on: counted too late to be seen
	}
}

func (g *grace) leave(t ticket) {
	g.counts[t.slot][t.shard].n.Add(-1)
	if g.wanted.Load() {
		select {
		case g.ended <- struct{}{}:
		default:
		}
	}
}

func (g *grace) empty(slot uint64) bool {
	for i := range g.counts[slot] {
		if g.counts[slot][i].n.Load() != 0 {
			return false
		}
	}
	return true
}

// advance moves the epoch on if it can, and returns it. Calls must not overlap.
func (g *grace) advance() uint64 {
	e := g.epoch.Load()
	if !g.empty((e + 1) & 1) { // those of e-1
		return e
	}
	return g.epoch.Add(1)
}

// passed reports whether all requests that began in epoch u or before have
// ended. Calls must not overlap.
func (g *grace) passed(u uint64) bool {
	for g.epoch.Load() < u+2 {
		if e := g.epoch.Load(); g.advance() == e {
			return false
		}
	}
	return true
}

// wait waits until all requests have ended that had begun. Calls must not overlap.
func (g *grace) wait() {
	u := g.epoch.Load()
	g.wanted.Store(true)
	for !g.passed(u) {
		<-g.ended
	}
	g.wanted.Store(false)
}

// idle reports whether no request is in progress.
func (g *grace) idle() bool { return g.empty(0) && g.empty(1) }
