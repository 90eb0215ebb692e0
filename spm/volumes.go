package spm

import (
	"context"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
)

// header answers a request's header with who we are.
func (m *Manager) header(r Header) Header {
	return Header{
		Version: WireVersion, RequestID: r.RequestID, PoolUUID: m.ident.pool.String(), SPMEpoch: m.ident.epoch,
		HostID: localHostID, HostGeneration: localHostGeneration,
	}
}

// check refuses what is not for us.
func (m *Manager) check(r Header) error {
	switch {
	case r.Version > WireVersion:
		return errorf(CodeNewerVersion, "the request has version %d, newer than %d, the newest that this manager knows: use a newer one",
			r.Version, WireVersion)
	case r.Version < 0:
		return errorf(CodeInvalid, "the request has version %d, expected 1 to %d", r.Version, WireVersion)
	case r.PoolUUID != "" && !strings.EqualFold(r.PoolUUID, m.ident.pool.String()):
		return errorf(CodeWrongPool, "the request is for pool %s, this manager has pool %s: use the socket of the other one",
			r.PoolUUID, m.ident.pool)
	case r.SPMEpoch > m.ident.epoch:
		return errorf(CodeStopping, "the request has seen a manager of epoch %d, this one has epoch %d and is obsolete: use the newer one",
			r.SPMEpoch, m.ident.epoch)
	case m.ctx.Err() != nil:
		return m.stopping()
	}
	return nil
}

// find checks a request and returns its volume.
func (m *Manager) find(h Header, r VolumeRef) (*volume, error) {
	if err := m.check(h); err != nil {
		return nil, err
	}
	if r.DomainUUID != "" && !strings.EqualFold(r.DomainUUID, m.ident.domain.String()) {
		return nil, errorf(CodeUnknownDomain, "the request is about domain %s, this manager has domain %s", r.DomainUUID, m.ident.domain)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.lookLocked(r.Volume)
	if v == nil || !v.ready {
		return nil, errorf(CodeNotFound, "no volume has the name, image UUID or volume UUID %q: %s", r.Volume, m.whatExistsLocked())
	}
	if r.Generation != nil && *r.Generation != v.meta().Generation {
		return nil, errorf(CodeStale, "the request is about generation %d of volume %s, which has %d: look it up again",
			*r.Generation, v.name(), v.meta().Generation)
	}
	return v, nil
}

// whole is called with Manager.mu held.
func (v *volume) whole() error {
	if v.damaged == nil {
		return nil
	}
	return errorf(CodeDamaged, "volume %s is damaged: %v: mend that and start the manager again, or remove the volume", v.name(), v.damaged)
}

// whole refuses a volume that is damaged, now.
func (m *Manager) whole(v *volume) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return v.whole()
}

// lookLocked finds a volume by a name, an image UUID or a volume UUID.
func (m *Manager) lookLocked(s string) *volume {
	id, err := uuid.Parse(s)
	if v := m.names[s]; err != nil && v != nil {
		if shown, ok := m.familyLocked().shown(v.image); ok {
			return m.volumes[shown]
		}
		return v // it is being made
	}
	if v := m.volumes[id]; v != nil {
		return v
	}
	shown, _ := m.familyLocked().shown(id)
	return m.volumes[shown]
}

// namesShown is how many names an error lists.
const namesShown = 8

func (m *Manager) whatExistsLocked() string {
	var names []string
	for name, v := range m.names {
		if v.ready {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "the pool has no volumes; make one with: tidemark volume create --size SIZE NAME"
	}
	slices.Sort(names)
	more := ""
	if len(names) > namesShown {
		names, more = names[:namesShown], ", ..."
	}
	return "there are " + strings.Join(names, ", ") + more
}

// describeLocked is what the wire says of a volume.
func (m *Manager) describeLocked(v *volume) Volume {
	d := Volume{
		Name: v.name(), ImageUUID: v.image.String(), VolumeUUID: v.id.String(), Generation: v.meta().Generation,
		DomainUUID: m.ident.domain.String(), Format: v.meta().wireFormat(), Size: v.meta().Capacity,
		Granted: v.size, Bound: v.bound, Created: time.Unix(v.meta().Created, 0).UTC(),
		Extensions: v.extensions, Changes: v.changes, PatienceMS: m.o.Patience.Milliseconds(),
	}
	if v.damaged != nil {
		d.Damaged, d.Format = v.damaged.Error(), ""
	} else {
		d.Illegal = v.meta().Legality != Legal
		f := m.familyLocked()
		if err := f.mayWrite(f.all[v.id]); err != nil {
			d.ReadOnly = err.Error()
		} else if v.giving > 0 {
			d.ReadOnly = "it becomes shorter, as who had it open last has asked: open it again in a moment"
		}
	}
	if parent := v.meta().Parent; parent != uuid.Nil {
		d.ParentUUID = parent.String()
		if p := m.volumes[parent]; p != nil { // else whoever opens the chain is told so
			d.ParentImage = p.image.String()
		}
	}
	if p, _ := m.placeOfLocked(v); p != nil {
		w := p.waiting()
		d.Waiting = &w
	}
	return d
}

// describe adds what the store says.
func (m *Manager) describe(v *volume) Volume {
	m.mu.Lock()
	d := m.describeLocked(v)
	m.mu.Unlock()
	m.store.describe(v, &d)
	return d
}

// ListVolumes returns every volume.
func (m *Manager) ListVolumes(_ context.Context, r VolumeListRequest) (VolumeListReply, error) {
	if err := m.check(r.Header); err != nil {
		return VolumeListReply{}, err
	}
	reply := VolumeListReply{Header: m.header(r.Header), Volumes: []Volume{}}
	for _, v := range m.sorted() {
		if m.isReady(v) {
			reply.Volumes = append(reply.Volumes, m.describe(v))
		}
	}
	return reply, nil
}

func (m *Manager) isReady(v *volume) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return v.ready && !v.gone
}

// GetVolumeInfo returns one volume.
func (m *Manager) GetVolumeInfo(_ context.Context, r VolumeInfoRequest) (VolumeReply, error) {
	v, err := m.find(r.Header, r.VolumeRef)
	if err != nil {
		return VolumeReply{}, err
	}
	return VolumeReply{Header: m.header(r.Header), Volume: m.describe(v)}, nil
}

// GetPoolInfo returns the state of the pool.
func (m *Manager) GetPoolInfo(_ context.Context, r PoolInfoRequest) (PoolReply, error) {
	if err := m.check(r.Header); err != nil {
		return PoolReply{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	host, err := m.store.carry(m.volumes)
	if err != nil {
		return PoolReply{}, internal(err, "read the free space of %s", m.store.name())
	}
	p := PoolReply{
		Header: m.header(r.Header), DomainUUID: m.ident.domain.String(), Volumes: len(m.volumes),
		Capacity: m.capacity, Granted: m.granted, Free: max(m.capacity-m.granted, 0), HostFree: host,
		Waiting: m.waitingLocked(), Tight: m.tight, Extensions: m.extensions,
		LastExtension: m.lastLatency.Seconds(), LastExtended: m.lastExtended,
		SPMStarted: m.began.UTC().Format(time.RFC3339), SPMPID: os.Getpid(),
	}
	m.store.describePool(&p)
	return p, nil
}
