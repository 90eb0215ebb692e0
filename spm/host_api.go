package spm

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// unmanaged says that there is no manager to ask. It may be repeated: a client that
// waits for space waits for the SPM as well.
func (h *Host) unmanaged() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.ctx.Err() != nil:
		return errorf(CodeStopping, "the host is stopping: repeat the request when it is back")
	case h.pool == nil:
		return errorf(CodeStopping, "this host has no pool: connect one, and start the SPM")
	case h.pool.role != roleSPM:
		return errorf(CodeStopping, "pool %s is not managed by this host: start the SPM", h.pool.meta.id)
	}
	return nil
}

// managers are those of the active domains, the master's first.
func (h *Host) activeManagers() ([]*Manager, error) {
	if err := h.unmanaged(); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil || h.pool.managers[h.pool.meta.master] == nil {
		return nil, errorf(CodeStopping, "the SPM is stopping: repeat the request when there is one")
	}
	master := h.pool.meta.master
	return slices.SortedFunc(maps.Values(h.pool.managers), func(a, b *Manager) int {
		if (a.ident.domain == master) != (b.ident.domain == master) {
			if a.ident.domain == master {
				return -1
			}
			return 1
		}
		return strings.Compare(a.ident.domain.String(), b.ident.domain.String())
	}), nil
}

// managerOf is that of the volume which a request is about, or the master's, which
// says that there is none. Only a request that names no domain can be ambiguous.
func (h *Host) managerOf(r VolumeRef) (*Manager, error) {
	all, err := h.activeManagers()
	if err != nil {
		return nil, err
	}
	if r.DomainUUID != "" {
		domain, err := uuid.Parse(r.DomainUUID)
		if err != nil {
			return nil, errorf(CodeInvalid, "volume %q in domain %q: expected the UUID of a domain", r.Volume, r.DomainUUID)
		}
		return h.manager(domain)
	}
	var of *Manager
	for _, m := range all {
		switch {
		case !m.has(r.Volume):
		case of != nil:
			return nil, ambiguous(r.Volume, of, m)
		default:
			of = m
		}
	}
	if of == nil {
		of = all[0]
	}
	return of, nil
}

// ambiguous refuses a name that two domains know. An image may be in both, with the same
// UUIDs.
func ambiguous(volume string, one, other *Manager) error {
	do := "name it by its UUID"
	if one.uuidOf(volume) == other.uuidOf(volume) {
		do = "both have its UUID: name the domain as well, as DOMAIN/NAME, or tidemark nbd --domain UUID"
	}
	return errorf(CodeInvalid, "volume %q is in domains %s and %s: %s", volume, one.ident.domain, other.ident.domain, do)
}

// uuidOf is the UUID of a volume that is known by that name, image UUID or volume UUID.
func (m *Manager) uuidOf(volume string) uuid.UUID {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.lookLocked(volume); v != nil {
		return v.id
	}
	return uuid.Nil
}

// has reports whether a volume is known by that name, image UUID or volume UUID.
func (m *Manager) has(volume string) bool { return m.uuidOf(volume) != uuid.Nil }

// CreateVolume makes an image with one volume, in the master unless the request names
// a domain.
func (h *Host) CreateVolume(ctx context.Context, r VolumeCreateRequest) (VolumeReply, error) {
	if _, err := h.activeManagers(); err != nil {
		return VolumeReply{}, err
	}
	h.mu.Lock()
	domain := h.masterLocked()
	h.mu.Unlock()
	if r.DomainUUID != "" {
		id, err := uuid.Parse(r.DomainUUID)
		if err != nil {
			return VolumeReply{}, errorf(CodeInvalid, "create %s: domain %q: expected a UUID", r.Name, r.DomainUUID)
		}
		domain = id
	}
	m, err := h.manager(domain)
	if err != nil {
		return VolumeReply{}, err
	}
	release, err := h.reserveName(ctx, m, r.Name)
	if err != nil {
		return VolumeReply{}, err
	}
	defer release()
	return m.CreateVolume(ctx, r)
}

// ListVolumes returns the volumes of all active domains.
func (h *Host) ListVolumes(ctx context.Context, r VolumeListRequest) (VolumeListReply, error) {
	all, err := h.activeManagers()
	if err != nil {
		return VolumeListReply{}, err
	}
	reply := VolumeListReply{Volumes: []Volume{}}
	for _, m := range all {
		l, err := m.ListVolumes(ctx, r)
		if err != nil {
			return VolumeListReply{}, err
		}
		reply.Header = l.Header
		reply.Volumes = append(reply.Volumes, l.Volumes...)
	}
	slices.SortStableFunc(reply.Volumes, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return reply, nil
}

// GetVolumeInfo returns one volume.
func (h *Host) GetVolumeInfo(ctx context.Context, r VolumeInfoRequest) (VolumeReply, error) {
	m, err := h.managerOf(r.VolumeRef)
	if err != nil {
		return VolumeReply{}, err
	}
	reply, err := m.GetVolumeInfo(ctx, r)
	if err == nil && reply.ReadOnly == "" {
		reply.ReadOnly = h.taken(m, reply.ImageUUID)
	}
	return reply, err
}

// taken says that a task changes an image, so that nobody may begin to write to it: what a
// merge, or a move, has read counts, and not what is written afterwards. Who opens a volume
// asks when he has it, and a task looks who has it when it has its locks.
func (h *Host) taken(m *Manager, image string) string {
	id, err := uuid.Parse(image)
	if err != nil {
		return ""
	}
	e, err := h.engine()
	switch {
	case err != nil: // the tasks are moving, and nobody knows what they have
		return err.Error()
	case !e.Locks().Alone(imageLock(m.ident.domain, id, true).Name):
		return ""
	}
	return taken(id).Error()
}

// ExtendVolume makes a volume larger, or holds the request while its domain is full.
func (h *Host) ExtendVolume(ctx context.Context, r VolumeExtendRequest) (VolumeExtendReply, error) {
	m, err := h.managerOf(r.VolumeRef)
	if err != nil {
		return VolumeExtendReply{}, err
	}
	return m.ExtendVolume(ctx, r)
}

// ReduceVolume makes a volume shorter, because its holder gives space back.
func (h *Host) ReduceVolume(ctx context.Context, r VolumeReduceRequest) (VolumeReply, error) {
	m, err := h.managerOf(r.VolumeRef)
	if err != nil {
		return VolumeReply{}, err
	}
	return m.ReduceVolume(ctx, r)
}

// GetPoolInfo returns the state of the pool: of its active domains together, without
// those that have vanished. Where it is says the master.
func (h *Host) GetPoolInfo(ctx context.Context, r PoolInfoRequest) (PoolReply, error) {
	all, err := h.activeManagers()
	if err != nil {
		return PoolReply{}, err
	}
	there := slices.DeleteFunc(slices.Clone(all), func(m *Manager) bool { return m.store.there() != nil })
	if len(there) > 0 {
		all = there
	}
	var sum PoolReply
	var last int64
	for i, m := range all {
		p, err := m.GetPoolInfo(ctx, r)
		if err != nil {
			return PoolReply{}, err
		}
		if i == 0 {
			sum, last = p, m.lastExtension()
			if len(all) > 1 {
				sum.Domains = []DomainUse{p.use()}
			}
			continue
		}
		sum.add(p)
		sum.Domains = append(sum.Domains, p.use())
		if at := m.lastExtension(); at > last {
			last, sum.LastExtension, sum.LastExtended = at, p.LastExtension, p.LastExtended
		}
	}
	return sum, nil // who waits: of each domain in the order in which it serves them
}

// add counts another domain in.
func (p *PoolReply) add(o PoolReply) {
	p.Volumes += o.Volumes
	p.Capacity += o.Capacity
	p.Granted += o.Granted
	p.Free += o.Free
	p.HostFree += o.HostFree
	p.Waiting = append(p.Waiting, o.Waiting...)
	p.Tight = p.Tight || o.Tight
	p.Extensions += o.Extensions
}

// lastExtension is when the domain's manager has extended a volume last, in
// nanoseconds; 0: never.
func (m *Manager) lastExtension() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lastAt.IsZero() {
		return 0
	}
	return m.lastAt.UnixNano()
}

// WatchPool returns the events of all active domains that have to do with waiting for
// space after one, or waits for the next.
func (h *Host) WatchPool(ctx context.Context, r PoolWatchRequest) (PoolWatchReply, error) {
	all, err := h.activeManagers()
	if err != nil {
		return PoolWatchReply{}, err
	}
	if err := all[0].check(r.Header); err != nil {
		return PoolWatchReply{}, err
	}
	reply, err := h.o.journal.watch(ctx, r, all[0].ctx.Done())
	if errors.Is(err, errStopped) {
		err = all[0].stopping()
	}
	reply.Header = all[0].header(r.Header)
	for _, m := range all {
		reply.Tight = reply.Tight || m.isTight()
	}
	return reply, err
}

// WatchStorage returns the events after a number, of every kind.
func (h *Host) WatchStorage(ctx context.Context, after int64) ([]Event, error) {
	found, _, err := h.o.journal.all.wait(ctx, after, nil, h.ctx.Done())
	if errors.Is(err, errStopped) {
		err = errorf(CodeStopping, "the host is stopping: repeat the request when it is back")
	}
	return found, err
}

// Volume looks a volume up.
func (h *Host) Volume(ctx context.Context, r VolumeRef) (*VolumeHandle, error) {
	return openVolume(ctx, h, r)
}
