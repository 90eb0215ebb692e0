package spm

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
)

// load reads the domain, or makes it, raises the epoch and finds the volumes.
func (m *Manager) load() error {
	meta, err := m.store.readDomain(m.ctx)
	if err != nil {
		return err
	}
	if meta == nil {
		if meta, err = m.make(); err != nil {
			return err
		}
	}
	m.began = m.o.Now()
	if err := m.start(meta); err != nil {
		return err
	}
	if err := m.scan(); err != nil {
		return err
	}
	m.mu.Lock()
	m.judgeLocked()
	m.mu.Unlock()
	m.o.Log.Info("pool opened", "dir", m.store.name(), "pool", m.ident.pool, "epoch", m.ident.epoch,
		"volumes", len(m.volumes), "capacity", m.capacity, "granted", m.granted)
	if m.granted > m.capacity {
		m.o.Log.Warn("the volumes are larger than the capacity: nothing is granted until some are removed or the capacity is raised",
			"capacity", m.capacity, "granted", m.granted)
	}
	return nil
}

func (m *Manager) make() (domainMeta, error) {
	if m.store.kind() == typeDir && m.o.Capacity <= 0 {
		return nil, errors.New("there is no pool in it, and a new one needs a capacity: give --capacity SIZE")
	}
	meta := newDomainMeta(uuid.New(), uuid.New(), m.o.Capacity)
	return meta, m.store.makeDomain(m.ctx, meta)
}

// start raises the epoch, and the capacity if asked to, durably.
func (m *Manager) start(meta domainMeta) error {
	state, err := meta.state(m.store.kind())
	if err != nil {
		return err
	}
	if state.epoch++; m.o.Capacity > state.capacity {
		state.capacity = m.o.Capacity
	}
	switch {
	case m.o.Capacity > 0 && m.o.Capacity < state.capacity:
		return fmt.Errorf("its capacity is %d bytes and may only be raised, not set to %d: give that much or leave it out",
			state.capacity, m.o.Capacity)
	case m.store.kind() == typeDir && state.capacity == 0:
		return errors.New("it has no capacity yet: give --capacity SIZE")
	}
	meta[keyPoolSPMLver] = strconv.FormatInt(state.epoch, 10)
	meta[keyPoolSPMID] = strconv.Itoa(localHostID)
	meta[keyCapacity] = strconv.FormatInt(state.capacity, 10)
	if err := m.store.writeDomain(m.ctx, meta); err != nil {
		return err
	}
	m.ident, m.meta, m.capacity = state, meta, m.store.capacity(state.capacity)
	return nil
}

// bound is computed here and nowhere else, whatever a client says. Without
// Images it is VDSM's: a tenth more than the virtual size.
func (m *Manager) bound(o CreateImage) int64 {
	switch {
	case o.Format == FormatRaw:
		return roundUp(o.Size, m.store.grain())
	case m.o.Images != nil:
		return roundUp(m.o.Images.Bound(o), m.unit())
	}
	return roundUp(o.Size+o.Size/10, m.unit())
}

// unit is what the manager rounds sizes up to.
func (m *Manager) unit() int64 { return max(m.store.grain(), sizeUnit) }
