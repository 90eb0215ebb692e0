package spm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// alone makes a host that has one place, with one domain, which is a pool of its own.
func (h *Host) alone(c *connection, p site) (*Host, error) {
	h.connections = []*connection{c}
	if err := h.openAlone(h.ctx, p); err != nil {
		return nil, errors.Join(fmt.Errorf("pool %s: %w", p.name(), err), h.Close())
	}
	return h, nil
}

// openAlone makes what there is not yet: the domain, and then its pool.
func (h *Host) openAlone(ctx context.Context, p site) error {
	f := p.read(ctx)
	if f.err == nil && f.meta == nil {
		if p.kind() == DomainLocal && h.o.Capacity <= 0 {
			return errors.New("there is no pool in it, and a new one needs a capacity: give --capacity SIZE")
		}
		where := p.name()
		if g, ok := p.(*groupSite); ok {
			where = g.label
		}
		r := CreateDomain{Type: p.kind(), ID: uuid.New(), Name: ownName, Where: where, Capacity: h.o.Capacity}
		if err := h.CreateDomain(ctx, r); err != nil {
			return err
		}
		if f, f.err = h.find(ctx, r.ID); f.err != nil {
			return f.err
		}
	}
	if f.err != nil {
		return f.err
	}
	pool := f.is.pool
	switch {
	case pool == uuid.Nil:
		pool = uuid.New()
		r := CreatePool{ID: pool, Name: ownName, Master: f.id, Domains: []uuid.UUID{f.id}, MasterVersion: 1}
		if err := h.CreatePool(ctx, r); err != nil {
			return err
		}
	case !f.is.master:
		return errorf(CodeWrongMaster, "its domain %s is of pool %s, and not the master: manage that pool with --root and --devices", f.id, pool)
	}
	if err := h.ConnectPool(ctx, pool, uuid.Nil, 0); err != nil {
		return err
	}
	return h.startNow(ctx, pool)
}

// ownName is the name of a pool and domain that nobody has named.
const ownName = "tidemark"

// startNow is StartSPM for who waits for it.
func (h *Host) startNow(ctx context.Context, pool uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	p, err := h.allowed(pool, verbStart)
	if err != nil || p.role == roleSPM {
		return err
	}
	h.mu.Lock()
	s := &spmStart{id: uuid.New(), pool: pool, created: h.o.Now()}
	p.role, p.start = roleContend, s
	h.mu.Unlock()
	return h.becomeSPM(ctx, p, s)
}

// memory is what is remembered in [HostOptions].State, so that a host that starts
// again is what it was. It is a cache: without it everything is found again from what
// is connected.
type memory struct {
	Version     int          `json:"version"`
	Connections []remembered `json:"connections"`
	Pool        uuid.UUID    `json:"pool_uuid"` // uuid.Nil: none
	SPM         bool         `json:"spm"`
	// Masters are the highest versions of masters that this host has seen, by pool: what a
	// lost one had is asked when its pool gets another one.
	Masters map[uuid.UUID]int64 `json:"master_versions,omitempty"`
}

type remembered struct {
	Type    DomainType `json:"type"`
	Address string     `json:"address"`
}

const memoryVersion = 1

func (h *Host) memoryPath() string { return filepath.Join(h.o.State, "host.json") }

// lockState makes sure that no other host has the cache: each would forget what the other
// knows. A cache that cannot be locked for another reason is none, and is logged.
func (h *Host) lockState() error {
	if h.o.State == "" {
		return nil
	}
	err := os.MkdirAll(h.o.State, 0o700)
	if err == nil {
		h.state, err = lockDir(h.o.State, "the state is used by the manager that is", "give each manager a directory of its own, or stop that one first")
	}
	if errors.Is(err, block.ErrInUse) {
		return &Error{Code: CodeInUse, Message: err.Error(), err: err}
	}
	if err != nil {
		h.o.Log.Warn("what is connected is not remembered", "error", err)
	}
	return nil
}

func (h *Host) unlockState() error {
	if h.state == nil {
		return nil
	}
	return h.state.Release()
}

// remember writes it, in one step. A failure is logged: nothing depends on it. What is
// done to become what is remembered changes nothing of that, however far it gets.
func (h *Host) remember() {
	if h.o.State == "" || h.recalling {
		return
	}
	m := memory{Version: memoryVersion, Connections: []remembered{}}
	h.mu.Lock()
	for _, c := range h.connections {
		m.Connections = append(m.Connections, remembered{c.kind, c.address})
	}
	if h.pool != nil {
		m.Pool, m.SPM = h.pool.meta.id, h.pool.role == roleSPM
		h.masters[m.Pool] = max(h.masters[m.Pool], h.pool.meta.version)
	}
	m.Masters = maps.Clone(h.masters)
	h.mu.Unlock()
	text, err := json.MarshalIndent(m, "", "    ")
	if err == nil {
		err = os.MkdirAll(h.o.State, 0o700)
	}
	if err == nil {
		err = os.WriteFile(h.memoryPath()+extNew, append(text, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(h.memoryPath()+extNew, h.memoryPath())
	}
	if err != nil {
		h.o.Log.Warn("what is connected is not remembered", "error", err)
	}
}

// recall connects what was connected, and takes the role that the host had. What does
// not succeed is logged, and may be asked for again.
func (h *Host) recall() {
	if h.o.State == "" {
		return
	}
	h.recalling = true
	defer func() { h.recalling = false }()
	text, err := os.ReadFile(h.memoryPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var m memory
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	if err == nil && m.Version != memoryVersion {
		err = fmt.Errorf("version %d, expected %d", m.Version, memoryVersion)
	}
	if err != nil {
		h.o.Log.Warn("what was connected is not known", "path", h.memoryPath(), "error", err)
		return
	}
	h.mu.Lock()
	maps.Copy(h.masters, m.Masters)
	h.mu.Unlock()
	for _, c := range m.Connections {
		if _, err := h.connect(h.ctx, c.Type, c.Address); err != nil {
			h.o.Log.Error("cannot be connected again", "type", c.Type, "address", c.Address, "error", err)
		}
	}
	if m.Pool == uuid.Nil {
		return
	}
	err = h.ConnectPool(h.ctx, m.Pool, uuid.Nil, 0)
	if err == nil && m.SPM {
		err = h.startNow(h.ctx, m.Pool)
	}
	if err != nil {
		h.o.Log.Error("the pool is not as it was", "pool", m.Pool, "spm", m.SPM, "error", err)
	}
}
