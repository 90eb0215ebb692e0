package crashlab

import (
	"math/rand/v2"
	"slices"

	"tidemark/internal/record"
	"tidemark/internal/simdisk"
)

// A search finds the states of a recording that are to be judged.
type search struct {
	lab    *Lab
	rec    *Recording
	rng    *rand.Rand
	seen   map[judgedKey]int // how much was durable when it was judged
	points []bool            // the events behind which states are judged
	counts bool              // choices are only counted, in n
	sample float64           // how likely the state of a choice is built
	taste  *rand.Rand        // decides
	n      int64             // states that are judged

	// What a disk may hold at the present event; nil where it must be found out.
	power, death *allowed
}

// search prepares the search of a recording. If only some of its states are to be
// judged, a first search counts the choices.
func (l *Lab) search(r *Recording) *search {
	s := &search{lab: l, rec: r, sample: 1}
	s.begin()
	if most := l.config.PerScript; most > 0 {
		s.counts = true
		s.run(func(job) bool { return true })
		s.counts, s.sample = false, min(1, float64(most)/float64(max(s.n, 1)))
		s.begin()
	}
	return s
}

func (s *search) begin() {
	s.seen, s.points, s.n = map[judgedKey]int{}, make([]bool, len(s.rec.log)), 0
	s.power, s.death = nil, nil
	s.rng, s.taste = rand.New(rand.NewPCG(s.lab.config.Seed, 0)), rand.New(rand.NewPCG(s.lab.config.Seed, 1))
}

// judgedKey tells states apart.
type judgedKey struct {
	hash uint64
	died bool
}

// allowed is an allowance and how narrow it is: what is durable only grows.
type allowed struct {
	*allowance
	durable int
	hash    uint64
}

// index says which choices are new after an event; ok is false for none.
func (c change) index(m *simdisk.Model) (with int, ok bool) {
	if c.added != nil && !c.ground {
		return slices.Index(m.Pending(), c.added), true
	}
	return -1, c.ground
}

// run hands the states of every moment to judge until it returns false.
func (s *search) run(judge func(job) bool) {
	w := s.rec.walk()
	durable := 0
	for i, e := range s.rec.log {
		ch := w.step(e)
		if e.Kind == record.Mark {
			s.power, s.death = nil, nil
			if now := countTrue(s.rec.history.durableBy(i+1, false)); now > durable {
				durable, ch.ground = now, true
			}
		}
		if with, ok := ch.index(w.model); ok && !s.cut(w.model, i, with, judge) {
			return
		}
		// After a failed sync the host's cache cannot be believed: no process goes on
		// with the image before it is dropped.
		if s.lab.config.Death && !w.failed && !s.die(w.model, i, judge) {
			return
		}
	}
}

// cut builds the states after a power cut behind event i.
func (s *search) cut(m *simdisk.Model, i, with int, judge func(job) bool) bool {
	pending := m.Pending()
	for c := range choices(pending, with, s.lab.config.Limits, s.rng) {
		if !s.wants() {
			continue
		}
		jb := job{state: c.state(m), event: i}
		if !s.isNew(&jb, len(pending)) {
			continue
		}
		s.points[i] = true
		jb.picks = choice{slices.Clone(c.picks), c.swap}
		if !judge(jb) {
			return false
		}
	}
	return true
}

// wants decides whether the state of a choice is built.
func (s *search) wants() bool {
	if s.counts {
		s.n++
		return false
	}
	return s.sample == 1 || s.taste.Float64() < s.sample
}

// die builds the states after the death of the process behind event i: what was
// in flight is done, or is not.
func (s *search) die(m *simdisk.Model, i int, judge func(job) bool) bool {
	for _, whole := range []bool{true, false} {
		if !s.wants() {
			continue
		}
		state := m.Current()
		if !whole {
			ended := slices.DeleteFunc(slices.Clone(m.Pending()), func(o *simdisk.Op) bool { return o.InFlight() })
			state = m.Crash(ended, simdisk.KeepAll)
		}
		jb := job{state: state, event: i, died: true}
		jb.depth.beside, _ = s.rec.log[i].Beside.(folder) // nil if there is no such directory
		if s.isNew(&jb, 0) && !judge(jb) {
			return false
		}
	}
	return true
}

// isNew reports whether a state has not been judged under an allowance as narrow
// as that of now, and completes the job.
func (s *search) isNew(jb *job, pending int) bool {
	l, c := s.lab, s.lab.config
	now := s.allowance(jb.event+1, jb.died)
	beside := jb.depth.beside
	key := judgedKey{jb.state.Hash() ^ beside.sum(), jb.died}
	before, judged := s.seen[key]
	isNew := !judged || before < now.durable
	if isNew {
		s.seen[key] = now.durable
		isNew = l.first(jb.state.Hash(), now.hash^beside.sum(), pending >= 2)
	}
	l.mu.Lock()
	l.total.Built++
	if isNew {
		l.total.Judged++
		if jb.died {
			l.total.Deaths++
		}
	}
	l.mu.Unlock()
	if !isNew {
		return false
	}
	jb.n, jb.allow = s.n, now.allowance
	every := func(n int) bool { return n > 0 && s.n%int64(n) == int64(n)-1 }
	// What is only beside the image is lost when the recovery is cut: then it is not
	// as good as without.
	jb.depth = depth{external: every(c.External), onward: every(c.Onward), again: every(c.Again) && len(beside) == 0, beside: beside}
	if !jb.died {
		jb.depth.cuts = 1
	}
	s.n++
	return true
}

// allowance returns what is allowed after a crash at n events.
func (s *search) allowance(n int, died bool) *allowed {
	have := &s.power
	if died {
		have = &s.death
	}
	if *have == nil {
		h := &s.rec.history
		al := h.allow(n, died)
		*have = &allowed{al, countTrue(h.durableBy(n, died)), al.sum() ^ s.rec.setup.sum()}
	}
	return *have
}

func countTrue(list []bool) (n int) {
	for _, b := range list {
		if b {
			n++
		}
	}
	return n
}
