package simdisk

import "slices"

// A Model is what is known of a disk at a moment: what reads return, what is
// durable, and what is pending, operations in flight included. It is not safe for
// concurrent use; it knows no errors and no limits. A Disk is a Model behind the
// methods of a File. Who has a recording of a File walks a Model along it, with
// operations that are submitted at one moment and return at another.
type Model struct {
	opts    Options
	size    int64
	current image
	durable image
	pending []*Op // in the order of their submission
	clock   int
	ids     int
}

// NewModel returns the model of a disk that holds s, durably.
func NewModel(s State, o Options) *Model {
	return &Model{opts: o, size: s.size, current: s.image.clone(), durable: s.image.clone()}
}

// Size is the number of bytes that may be used.
func (m *Model) Size() int64 { return m.size }

// Submit begins an operation: data is what a Write writes, n bytes at off are what
// Zeroes and Discard touch; of Grow and Shrink, n is the new size. What has to be
// in range is in range.
func (m *Model) Submit(kind Kind, off, n int64, data []byte) *Op {
	m.clock++
	m.ids++
	o := &Op{ID: m.ids, Kind: kind, Off: off, Len: n, submitted: m.clock}
	switch kind {
	case Write:
		m.writeTo(o, data)
	case Zeroes:
		m.fillBy(o, nil)
	case Discard:
		if m.opts.DiscardForeign {
			m.fillBy(o, foreign)
		} else {
			m.fillBy(o, nil)
		}
	case Grow, Shrink:
		o.Off = m.size
	}
	m.pending = append(m.pending, o)
	return o
}

func (m *Model) writeTo(o *Op, data []byte) {
	first, end := o.Sectors()
	o.after = make([]*sector, 0, end-first)
	for at := o.Off; len(data) > 0; {
		i, from := at/SectorSize, at%SectorSize
		n := min(int64(len(data)), SectorSize-from)
		var s *sector
		if n == SectorSize {
			s = newSector((*[SectorSize]byte)(data))
		} else {
			s = m.current.get(i).with(data[:n], from)
		}
		m.current.set(i, s)
		o.after = append(o.after, s)
		data, at = data[n:], at+n
	}
}

// fillBy makes the bytes of o read as s does.
func (m *Model) fillBy(o *Op, s *sector) {
	o.fill = s
	first, end := o.Sectors()
	if first == end {
		return
	}
	from, to := o.Off-first*SectorSize, o.Off+o.Len-(end-1)*SectorSize
	if end-first == 1 && (from != 0 || to != SectorSize) {
		o.head, o.inHead = m.current.get(first).with(s.bytes()[from:to], from), true
	} else {
		if from != 0 {
			o.head, o.inHead = m.current.get(first).with(s.bytes()[from:], from), true
		}
		if to != SectorSize {
			o.tail, o.inTail = m.current.get(end-1).with(s.bytes()[:to], 0), true
		}
	}
	o.apply(&m.current, &m.size)
}

// Return ends an operation. durable says that it is durable by itself, as a write
// with FUA is; growing and shrinking are.
func (m *Model) Return(o *Op, durable bool) {
	m.clock++
	o.returned = m.clock
	switch o.Kind {
	case Grow:
		m.remove(o)
		m.grow(o.Len)
	case Shrink:
		m.remove(o)
		m.shrink(o.Len)
	default:
		if durable {
			m.settle(o)
		}
	}
}

// Fail ends an operation of which any part may be done: nothing of a Grow or a
// Shrink.
func (m *Model) Fail(o *Op) {
	m.clock++
	o.returned = m.clock
	if o.Kind == Grow || o.Kind == Shrink {
		m.remove(o)
	}
}

func (m *Model) remove(o *Op) {
	m.pending = slices.DeleteFunc(m.pending, func(p *Op) bool { return p == o })
}

func (m *Model) grow(size int64) {
	if size <= m.size {
		return
	}
	old := m.size
	m.size = size
	if m.opts.Foreign {
		m.durable.addForeign(old, size)
		m.current.addForeign(old, size)
	}
}

func (m *Model) shrink(size int64) {
	m.size = size
	m.current.truncate(size)
	m.durable.truncate(size)
	m.pending = slices.DeleteFunc(m.pending, func(p *Op) bool { return !p.truncated(size) })
}

// BeginSync begins a sync, which covers what has returned by now.
func (m *Model) BeginSync() (began int) {
	m.clock++
	return m.clock
}

// EndSync ends the sync that began then. One that failed has dropped what it
// covers, and no later one brings it back.
func (m *Model) EndSync(began int, ok bool) {
	var covered, rest []*Op
	for _, o := range m.pending {
		switch covers := o.returned != 0 && o.returned < began && !o.doomed; {
		case covers && ok:
			covered = append(covered, o)
			continue
		case covers:
			o.doomed = true
		}
		rest = append(rest, o)
	}
	m.pending = rest
	for _, o := range covered {
		m.settle(o)
	}
}

// settle makes o durable. It replaces what was before it, and leaves what was in
// flight beside it: that may still land on top, for as long as it is pending.
// Once it is durable too, the one that was submitted last is, as current has it.
func (m *Model) settle(o *Op) {
	first, end := o.Sectors()
	for s := first; o.under != nil && s < end; s++ {
		if o.under[s-first] {
			mark(o, &o.dead, s, s+1)
		}
	}
	o.apply(&m.durable, new(int64))
	for i := 0; i < len(m.pending); i++ {
		switch p := m.pending[i]; {
		case p == o || p.Before(o) && !mark(p, &p.dead, first, end):
			m.pending = slices.Delete(m.pending, i, i+1)
			i--
		case p.submitted < o.submitted:
			mark(p, &p.under, first, end)
		}
	}
}

// Evict drops the host's cache: what a failed sync has dropped now reads as the
// disk has it, and is gone for good.
func (m *Model) Evict() {
	m.pending = slices.DeleteFunc(m.pending, func(o *Op) bool { return o.doomed })
	m.current = m.durable.clone()
	for _, o := range m.pending {
		if o.Kind != Grow && o.Kind != Shrink {
			o.apply(&m.current, new(int64))
		}
	}
}

// Pending returns the operations that may be there or not after a crash, in the
// order of their submission.
func (m *Model) Pending() []*Op { return m.pending }

// Crash returns what a crash leaves: what is durable, and of the pending
// operations, in the order given, the sectors that keep wants.
func (m *Model) Crash(order []*Op, keep Keep) State {
	s := State{m.durable.clone(), m.size}
	for _, o := range order {
		o.applyTo(&s.image, &s.size, keep)
	}
	s.image.sum()
	return s
}

// Current returns what reads return, which is what the death of the process
// leaves.
func (m *Model) Current() State { return State{m.current.clone(), m.size} }
