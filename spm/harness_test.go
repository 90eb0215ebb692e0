package spm

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/uuid"
)

// openManager opens the manager of a domain in a directory that is a pool of its own,
// and makes it if there is none: a host without what is around its managers.
func openManager(dir string, o Options) (*Manager, error) {
	o = o.withDefaults()
	if err := os.MkdirAll(dir, modeDir); err != nil {
		return nil, err
	}
	return openAlone(&dirSite{path: dir}, o)
}

// openGroupManager does that on a volume group.
func openGroupManager(g VolumeGroup, o Options) (*Manager, error) {
	if err := g.Read(context.Background()); err != nil {
		return nil, err
	}
	return openAlone(&groupSite{label: "vg0", get: func(context.Context) (VolumeGroup, error) { return g, nil }}, o.withDefaults())
}

func openAlone(p site, o Options) (*Manager, error) {
	ctx := context.Background()
	s, err := p.open(ctx, uuid.Nil, o, localLeases{})
	if err != nil {
		return nil, err
	}
	meta, err := s.readDomain(ctx)
	if err == nil && meta == nil {
		meta = newDomainMeta(uuid.New(), ownName, o.Capacity)
		err = s.makeDomain(ctx, meta)
	}
	if err == nil {
		var is domainState
		if is, err = meta.identity(); err == nil && is.pool == uuid.Nil {
			meta.lead(poolMeta{id: uuid.New(), name: ownName, master: is.domain, version: 1,
				members: map[uuid.UUID]DomainState{is.domain: DomainActive}})
			err = s.writeDomain(ctx, meta)
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("pool %s: %w", s.name(), err), s.close())
	}
	is, err := meta.state(s.kind())
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	h := &Host{o: HostOptions{Options: o}}
	m, _, err := h.raiseEpoch(ctx, s, is.pool)
	return m, err
}
