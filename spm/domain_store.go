package spm

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// An editor replaces the metadata of a domain, durably.
type editor func(ctx context.Context, change func(domainMeta) error) error

// withStore lets do change a domain: through its manager if it is active, otherwise
// with a lease of its own.
func (h *Host) withStore(ctx context.Context, f found, do func(s store, edit editor) error) error {
	if m := h.active(f.id); m != nil {
		return do(m.store, m.edit)
	}
	s, err := f.site.open(ctx, f.id, h.o.Options, h.o.Leases)
	if err != nil {
		return err
	}
	meta, err := s.readDomain(ctx)
	if err == nil && meta[keySDUUID] != f.meta[keySDUUID] {
		err = errorf(CodeUnknownDomain, "%s is not there any more", at(f.id, f))
	}
	if err == nil {
		err = do(s, func(ctx context.Context, change func(domainMeta) error) error {
			if err := change(meta); err != nil {
				return err
			}
			return s.writeDomain(ctx, meta)
		})
	}
	if err = errors.Join(err, s.close()); err == nil {
		return nil
	}
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	return internal(err, "change %s", at(f.id, f))
}

func (h *Host) editDomain(ctx context.Context, f found, change func(domainMeta) error) error {
	return h.withStore(ctx, f, func(_ store, edit editor) error { return edit(ctx, change) })
}

// active is the manager of a domain, nil if it has none.
func (h *Host) active(domain uuid.UUID) *Manager {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil {
		return nil
	}
	return h.pool.managers[domain]
}

// holdAll takes every volume of a domain that is not active, so that nobody has one
// open.
func holdAll(ctx context.Context, s store, domain uuid.UUID) (release func(), err error) {
	ids, err := s.volumes(ctx)
	if err != nil {
		return nil, internal(err, "list the volumes of domain %s", domain)
	}
	var held []func() error
	release = func() {
		for _, r := range held {
			_ = r() // what was held is gone, or as it was
		}
	}
	for _, v := range ids {
		r, err := s.hold(v)
		switch {
		case errors.Is(err, block.ErrInUse):
			release()
			return nil, &Error{Code: CodeInUse, err: err, Message: "domain " + domain.String() + ": " + err.Error() + ": stop who has it open, then repeat"}
		case err != nil:
			release()
			return nil, internal(err, "domain %s", domain)
		}
		held = append(held, r)
	}
	return release, nil
}

// standing is where a domain stands, seen from a pool. all is what is connected.
func (h *Host) standing(f found, pool uuid.UUID, all []found) standing {
	p := h.believed(all, pool)
	if p == nil {
		return standingOf(f.is.pool, pool, "", false)
	}
	return standingOf(f.is.pool, pool, p.members[f.id], p.master == f.id)
}
