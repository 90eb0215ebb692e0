package spm

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
)

// activate makes the manager of the domain that is open in s. is says what its
// metadata does, with the pool's epoch. Closing the manager closes s; so does a
// failure.
func activate(s store, meta domainMeta, is domainState, o Options) (*Manager, error) {
	m := &Manager{
		store: s, o: o, ident: is, meta: meta, began: o.Now(),
		volumes: map[uuid.UUID]*volume{}, names: map[string]*volume{},
		changed: make(chan struct{}), watched: make(chan struct{}), changing: make(chan struct{}, 1),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	if err := m.load(); err != nil {
		m.cancel()
		return nil, errors.Join(fmt.Errorf("pool %s: %w", s.name(), err), s.close())
	}
	o.Remains.Sweep(is.domain, m.holds)
	if s.shared() {
		go m.watch()
	} else {
		close(m.watched)
	}
	return m, nil
}

// holds reports whether the domain has a volume of that UUID, damaged or not.
func (m *Manager) holds(volume string) bool {
	id, err := uuid.Parse(volume)
	m.mu.Lock()
	defer m.mu.Unlock()
	return err == nil && m.volumes[id] != nil
}

// load finds the volumes.
func (m *Manager) load() error {
	m.capacity = m.store.capacity(m.ident.capacity)
	if err := m.scan(); err != nil {
		return err
	}
	m.mu.Lock()
	m.judgeLocked()
	m.mu.Unlock()
	m.o.Log.Info("pool opened", "dir", m.store.name(), "pool", m.ident.pool, "domain", m.ident.domain, "epoch", m.ident.epoch,
		"volumes", len(m.volumes), "capacity", m.capacity, "granted", m.granted)
	if m.granted > m.capacity {
		m.o.Log.Warn("the volumes are larger than the capacity: nothing is granted until some are removed or the capacity is raised",
			"capacity", m.capacity, "granted", m.granted)
	}
	return nil
}

// raiseCapacity is for the metadata of a domain in a directory, of which somebody
// says that it shall have capacity; 0: what it has.
func raiseCapacity(meta domainMeta, is *domainState, capacity int64) error {
	switch {
	case capacity == 0 || capacity == is.capacity:
		return nil
	case capacity < is.capacity:
		return errorf(CodeInvalid, "its capacity is %d bytes and may only be raised, not set to %d: give that much or leave it out",
			is.capacity, capacity)
	}
	is.capacity = capacity
	meta[keyCapacity] = strconv.FormatInt(capacity, 10)
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
