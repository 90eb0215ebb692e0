// Package storagetest has a host's storage in memory, for the tests of those who
// speak to [spm.Storage]. It knows domains, pools, images, volumes and tasks and
// refuses what does not fit their states; it holds no data, so it has no QCOW2 and
// no space beyond a count.
package storagetest

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"tidemark/spm"
)

// Granted is what every volume has of its domain.
const Granted = 1 << 30

// A Fake is storage in memory. Its zero value is empty, and any place beneath Root
// may be connected.
type Fake struct {
	Root string
	// Hold is asked when a task begins, and the task runs until it returns; nil
	// lets all end at once.
	Hold func(kind string)
	// Now is the clock; nil: the real one.
	Now func() time.Time

	mu        sync.Mutex
	connected map[string]bool
	domains   map[uuid.UUID]*domain
	pools     map[uuid.UUID]*pool
	pool      *pool // that is connected
	tasks     map[uuid.UUID]*spm.TaskInfo
	events    []spm.Event
	more      chan struct{}
}

type domain struct {
	spm.DomainInfo
	capacity int64
	volumes  map[uuid.UUID]*spm.VolumeInfo
	prepared map[uuid.UUID]spm.Prepared // by image
}

type pool struct {
	id, master uuid.UUID
	name       string
	version    int64
	epoch      int64
	spm        bool
}

var _ spm.Storage = (*Fake)(nil)

func fail(code spm.Code, format string, a ...any) error {
	return &spm.Error{Code: code, Message: fmt.Sprintf(format, a...)}
}

func (f *Fake) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now().UTC().Truncate(time.Second)
}

// lock begins a method, and makes the maps.
func (f *Fake) lock() func() {
	f.mu.Lock()
	if f.domains == nil {
		f.connected, f.domains, f.pools = map[string]bool{}, map[uuid.UUID]*domain{}, map[uuid.UUID]*pool{}
		f.tasks = map[uuid.UUID]*spm.TaskInfo{}
	}
	return f.mu.Unlock
}

// ConnectServer connects places beneath Root.
func (f *Fake) ConnectServer(_ context.Context, _ spm.DomainType, c []spm.Connection) ([]spm.ConnectionResult, error) {
	defer f.lock()()
	return each(c, func(where string) (bool, error) {
		if f.Root != "" && !strings.HasPrefix(filepath.Clean(where)+"/", filepath.Clean(f.Root)+"/") {
			return false, fail(spm.CodeOutsideRoots, "%s: expected a place beneath %s", where, f.Root)
		}
		was := f.connected[where]
		f.connected[where] = true
		return was, nil
	}), nil
}

// DisconnectServer forgets places.
func (f *Fake) DisconnectServer(_ context.Context, _ spm.DomainType, c []spm.Connection) ([]spm.ConnectionResult, error) {
	defer f.lock()()
	return each(c, func(where string) (bool, error) {
		was := !f.connected[where]
		delete(f.connected, where)
		return was, nil
	}), nil
}

func each(c []spm.Connection, do func(where string) (was bool, err error)) []spm.ConnectionResult {
	out := make([]spm.ConnectionResult, len(c))
	for i, one := range c {
		was, err := do(one.Address)
		out[i] = spm.ConnectionResult{ID: one.ID, Was: was, Err: err}
	}
	return out
}

// CreateDomain makes a domain in a connected place.
func (f *Fake) CreateDomain(_ context.Context, r spm.CreateDomain) error {
	defer f.lock()()
	if f.domains[r.ID] != nil {
		return fail(spm.CodeExists, "domain %s is there", r.ID)
	}
	if !f.connected[r.Where] {
		return fail(spm.CodeNotConnected, "%s is not connected", r.Where)
	}
	for _, d := range f.domains {
		if d.Where == r.Where {
			return fail(spm.CodeForeign, "%s: domain %s lies there", r.Where, d.ID)
		}
	}
	f.domains[r.ID] = &domain{
		DomainInfo: spm.DomainInfo{ID: r.ID, Type: r.Type, Class: "Data", Name: r.Name, Role: "Regular", Version: 5, State: spm.DomainUnattached, Where: r.Where},
		capacity:   max(r.Capacity, 64*Granted), volumes: map[uuid.UUID]*spm.VolumeInfo{}, prepared: map[uuid.UUID]spm.Prepared{},
	}
	return nil
}

// find returns a domain, of a pool unless that is uuid.Nil. The caller has the lock.
func (f *Fake) find(pool, id uuid.UUID) (*domain, error) {
	d := f.domains[id]
	switch {
	case d == nil:
		return nil, fail(spm.CodeUnknownDomain, "there is no domain %s", id)
	case pool != uuid.Nil && f.pools[pool] == nil:
		return nil, fail(spm.CodeNotConnected, "pool %s is not connected", pool)
	case pool != uuid.Nil && d.Pool != pool:
		return nil, fail(spm.CodeNotInPool, "domain %s is not one of pool %s", id, pool)
	}
	return d, nil
}

// FormatDomain removes a domain of no pool.
func (f *Fake) FormatDomain(_ context.Context, id uuid.UUID) error {
	defer f.lock()()
	d, err := f.find(uuid.Nil, id)
	switch {
	case err != nil:
		return err
	case d.Pool != uuid.Nil:
		return fail(spm.CodeAttached, "domain %s is of pool %s", id, d.Pool)
	}
	delete(f.domains, id)
	return nil
}

// AttachDomain attaches a domain of no pool.
func (f *Fake) AttachDomain(_ context.Context, pool, id uuid.UUID) error {
	defer f.lock()()
	if _, err := f.managed(pool); err != nil {
		return err
	}
	d, err := f.find(uuid.Nil, id)
	switch {
	case err != nil:
		return err
	case d.Pool == pool:
		return nil
	case d.Pool != uuid.Nil:
		return fail(spm.CodeAttached, "domain %s is of pool %s", id, d.Pool)
	}
	d.Pool, d.State = pool, spm.DomainAttached
	return nil
}

// DetachDomain detaches one that is not in use.
func (f *Fake) DetachDomain(_ context.Context, pool, id uuid.UUID) error {
	defer f.lock()()
	d, err := f.member(pool, id)
	switch {
	case err != nil:
		return err
	case d.Role == "Master":
		return fail(spm.CodeIsMaster, "domain %s is the master", id)
	case d.State == spm.DomainActive:
		return fail(spm.CodeActive, "domain %s is active", id)
	}
	d.Pool, d.State = uuid.Nil, spm.DomainUnattached
	return nil
}

// member returns a domain of a pool that this host manages. The caller has the lock.
func (f *Fake) member(pool, id uuid.UUID) (*domain, error) {
	if _, err := f.managed(pool); err != nil {
		return nil, err
	}
	return f.find(pool, id)
}

// ActivateDomain brings an attached domain into use.
func (f *Fake) ActivateDomain(_ context.Context, pool, id uuid.UUID) error {
	defer f.lock()()
	d, err := f.member(pool, id)
	if err == nil {
		d.State = spm.DomainActive
	}
	return err
}

// DeactivateDomain takes a domain out of use.
func (f *Fake) DeactivateDomain(_ context.Context, pool, id, newMaster uuid.UUID, version int64) error {
	defer f.lock()()
	d, err := f.member(pool, id)
	if err == nil {
		err = d.idle()
	}
	if err != nil {
		return err
	}
	if d.Role == "Master" {
		next, p := f.domains[newMaster], f.pools[pool]
		switch {
		case next == nil || next.Pool != pool || next == d || next.State != spm.DomainActive:
			return fail(spm.CodeIsMaster, "domain %s is the master", id)
		case version <= p.version:
			return fail(spm.CodeWrongVersion, "the master's version is %d, expected more, found %d", p.version, version)
		}
		d.Role, next.Role, next.Master = "Regular", "Master", version
		p.master, p.version = newMaster, version
	}
	d.State = spm.DomainAttached
	return nil
}

// idle refuses a domain of which an image is served.
func (d *domain) idle() error {
	for image := range d.prepared {
		return fail(spm.CodeInUse, "image %s of domain %s is served", image, d.ID)
	}
	return nil
}

// DomainInfo is a domain.
func (f *Fake) DomainInfo(_ context.Context, id uuid.UUID) (spm.DomainInfo, error) {
	defer f.lock()()
	d, err := f.find(uuid.Nil, id)
	if err != nil {
		return spm.DomainInfo{}, err
	}
	return d.DomainInfo, nil
}

// DomainStats counts a domain's volumes.
func (f *Fake) DomainStats(_ context.Context, id uuid.UUID) (spm.DomainStats, error) {
	defer f.lock()()
	d, err := f.find(uuid.Nil, id)
	if err != nil {
		return spm.DomainStats{}, err
	}
	return d.stats(), nil
}

func (d *domain) stats() spm.DomainStats {
	s := spm.DomainStats{Capacity: d.capacity, Reserve: Granted, Volumes: len(d.volumes), Level: "ok"}
	s.Granted = int64(len(d.volumes)) * Granted
	s.Free = s.Capacity - s.Granted
	for _, v := range d.volumes {
		s.Virtual += v.Capacity
		s.Used += v.Used
	}
	s.Ratio = float64(s.Virtual) / float64(s.Capacity)
	return s
}

// Domains are the domains, of a pool unless that is uuid.Nil.
func (f *Fake) Domains(_ context.Context, id uuid.UUID) (map[uuid.UUID]spm.DomainState, error) {
	defer f.lock()()
	if id != uuid.Nil {
		if _, err := f.attached(id); err != nil {
			return nil, err
		}
	}
	return f.states(id), nil
}

func (f *Fake) states(id uuid.UUID) map[uuid.UUID]spm.DomainState {
	out := map[uuid.UUID]spm.DomainState{}
	for _, d := range f.domains {
		if id == uuid.Nil || d.Pool == id {
			out[d.ID] = d.State
		}
	}
	return out
}

// sorted returns the values of a map in the order of their keys.
func sorted[V any](m map[uuid.UUID]V) []V {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	out := make([]V, len(keys))
	for i, k := range keys {
		out[i] = m[k]
	}
	return out
}
