package spm

import (
	"context"
	"path/filepath"

	"github.com/google/uuid"
)

// CreateDomain makes a domain of no pool, in a place that is connected and has none.
func (h *Host) CreateDomain(ctx context.Context, r CreateDomain) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := checkCreateDomain(r); err != nil {
		return err
	}
	if f, err := h.find(ctx, r.ID); CodeOf(err) != CodeUnknownDomain {
		return errorf(CodeExists, "create domain: %s is there already", at(r.ID, f))
	}
	p, err := h.siteNamed(ctx, r)
	if err != nil {
		return err
	}
	if f := p.read(ctx); f.err != nil {
		return f.err
	} else if f.meta != nil {
		return errorf(CodeExists, "create domain %s: %s has domain %s, and one is all that it can have: choose another place", r.ID, p.name(), f.id)
	}
	if d, is := p.(*dirSite); is {
		others, _ := h.readAll(ctx)
		if err := d.nested(r.ID, others); err != nil {
			return errorf(CodeOf(err), "create domain %s: %v", r.ID, err)
		}
	}
	s, err := p.open(ctx, r.ID, h.o.Options, h.o.Leases)
	if err != nil {
		return err
	}
	meta := newDomainMeta(r.ID, r.Name, r.Capacity)
	err = h.makeDomain(ctx, s, meta)
	if cerr := s.close(); err == nil && cerr != nil {
		err = internal(cerr, "close %s", p.name())
	}
	if err == nil {
		h.o.Log.Info("domain created", "domain", r.ID, "name", r.Name, "in", p.name())
	}
	return err
}

// makeDomain makes one unless there is one now that the lease is ours.
func (h *Host) makeDomain(ctx context.Context, s store, meta domainMeta) error {
	other, err := s.readDomain(ctx)
	if err == nil && other != nil {
		return errorf(CodeExists, "%s has domain %s already", s.name(), other[keySDUUID])
	}
	if err == nil {
		err = s.makeDomain(ctx, meta)
	}
	if err != nil {
		return internal(err, "make a domain in %s", s.name())
	}
	return nil
}

// capacityMax is more than any file system holds, and so little that sums of sizes fit.
const capacityMax = 1 << 60

func checkCreateDomain(r CreateDomain) error {
	what := "create domain " + r.ID.String()
	if err := checkLabel(r.Name); err != nil {
		return errorf(CodeInvalid, "%s: %v", what, err)
	}
	switch {
	case r.ID == uuid.Nil:
		return errorf(CodeInvalid, "create domain: expected its UUID")
	case r.Type != DomainLocal && r.Type != DomainBlock:
		return errorf(CodeUnsupported, "%s: type %q: there are %s and %s", what, r.Type, DomainLocal, DomainBlock)
	case r.Version != 0 && r.Version != domainVersion:
		return errorf(CodeUnsupported, "%s: version %d: only %d is made", what, r.Version, domainVersion)
	case r.Capacity < 0 || r.Capacity > 0 && r.Type != DomainLocal:
		return errorf(CodeInvalid, "%s: capacity %d: expected one for a directory, or 0", what, r.Capacity)
	case r.Capacity > capacityMax:
		return errorf(CodeInvalid, "%s: capacity %d: expected at most %d, or 0 for what the file system has", what, r.Capacity, int64(capacityMax))
	case r.Capacity > 0 && r.Capacity < chunkSize:
		return errorf(CodeDomainTooSmall, "%s: capacity %d: expected at least %d, which is what a new volume begins with", what, r.Capacity, int64(chunkSize))
	}
	return nil
}

// siteNamed finds the connected place that a request names: a directory, or a
// volume group by its name or UUID.
func (h *Host) siteNamed(ctx context.Context, r CreateDomain) (site, error) {
	sites, errs := h.sites(ctx)
	for _, p := range sites {
		switch p := p.(type) {
		case *dirSite:
			if r.Type == DomainLocal && p.path == filepath.Clean(r.Where) {
				return p, nil
			}
		case *groupSite:
			if r.Type == DomainBlock && (p.label == r.Where || p.uuid == r.Where) {
				return p, nil
			}
		}
	}
	for _, err := range errs {
		return nil, err
	}
	if r.Type == DomainBlock {
		return nil, errorf(CodeNotConnected, "create domain %s: there is no volume group %s on the devices that are connected: connect its devices first, or make one with vgcreate",
			r.ID, r.Where)
	}
	return nil, errorf(CodeNotConnected, "create domain %s: %s is not connected: connect its server first", r.ID, r.Where)
}

// FormatDomain removes a domain that is of no pool, with its volumes, of which
// nobody may have one open.
func (h *Host) FormatDomain(ctx context.Context, domain uuid.UUID) error {
	done, err := h.begin(ctx)
	if err != nil {
		return err
	}
	defer done()
	all, _ := h.look(ctx)
	f, err := h.find(ctx, domain)
	if err != nil {
		return err
	}
	if rule := domainTable[h.standing(f, f.is.pool, all)][verbFormat]; rule.act == refused {
		return rule.refusal("domain " + domain.String())
	}
	return h.withStore(ctx, f, func(s store, _ editor) error {
		release, err := holdAll(ctx, s, domain)
		if err != nil {
			return err
		}
		defer release()
		if err := mayFormat(f); err != nil {
			return err
		}
		volumes, err := s.volumes(ctx)
		if err != nil {
			return internal(err, "list the volumes of %s", at(domain, f))
		}
		remove := remainsOf(h.o.Remains, domain, s, volumes)
		if err := s.removeDomain(ctx); err != nil {
			return internal(err, "format %s", at(domain, f))
		}
		remove(volumes)
		for _, v := range volumes {
			h.o.Remains.OfImage(v.image.String())
		}
		h.o.Log.Info("domain removed", "domain", domain, "in", f.site.name())
		return nil
	})
}
