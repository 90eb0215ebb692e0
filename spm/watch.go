package spm

import "time"

// watch looks at a place that others may change beside the manager: every second,
// and every half while a request waits, so that vgextend is noticed soon.
func (m *Manager) watch() {
	defer close(m.watched)
	tick := time.NewTicker(m.o.Poll)
	defer tick.Stop()
	failing := false
	for n := 0; ; n++ {
		select {
		case <-tick.C:
		case <-m.ctx.Done():
			return
		}
		if n%2 == 0 && !m.anyWaits() {
			continue
		}
		err := m.store.refresh(m.ctx)
		if m.ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			m.o.Log.Error("cannot look at the pool", "pool", m.store.name(), "error", err)
		}
		if failing = err != nil; !failing {
			m.compare()
		}
	}
}

func (m *Manager) anyWaits() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) > 0
}

// compare takes over what others have done to the pool and its volumes. One that
// is being changed is looked at the next time.
func (m *Manager) compare() {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	if c := m.store.capacity(m.capacity); c != m.capacity {
		m.o.Log.Info("capacity changed", "pool", m.store.name(), "from", m.capacity, "to", c)
		m.capacity, changed = c, true
	}
	for _, v := range m.volumes {
		select {
		case v.sem <- struct{}{}:
		default:
			continue
		}
		if v.ready && !v.gone {
			changed = m.compareLocked(v) || changed
		}
		<-v.sem
	}
	if changed {
		m.wakeLocked()
	}
}

// compareLocked reports whether a volume is not as it was.
func (m *Manager) compareLocked(v *volume) bool {
	size := m.store.length(v, -1)
	switch {
	case size == v.size:
		return false
	case size < 0:
		m.o.Log.Error("volume was removed by somebody else; its space is given to nobody while it is open",
			"volume", v.name(), "uuid", v.id)
		m.forgetLocked(v)
		m.granted -= v.size
	default:
		m.o.Log.Warn("size of a volume was changed by somebody else", "volume", v.name(), "uuid", v.id, "from", v.size, "to", size)
		m.reserveLocked(v, size)
		v.bound = max(v.bound, size)
	}
	return true
}
