package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// A site is where a domain lies, or may: a directory or a volume group that is
// connected.
type site interface {
	name() string
	kind() DomainType
	// read looks what domain is there, and changes nothing.
	read(ctx context.Context) found
	// open opens the place for changes, with the lease of that domain.
	open(ctx context.Context, domain uuid.UUID, o Options, l Leases) (store, error)
}

// found is what a place holds.
type found struct {
	site site
	id   uuid.UUID  // as far as it is known; uuid.Nil: there is no domain, or nobody knows
	meta domainMeta // of a domain that can be used
	is   domainState
	err  error // why it cannot be used; nil: it can, or there is none
}

// there reports whether there is a domain that can be used.
func (f found) there() bool { return f.meta != nil && f.err == nil }

// judge validates what was read.
func (f found) judge(meta domainMeta, err error) found {
	switch {
	case err != nil:
		var own *Error
		if !errors.As(err, &own) {
			err = &Error{Code: CodeDamaged, Message: err.Error(), err: err}
		}
	case meta == nil:
		return f
	default:
		f.meta = meta
		if f.is, err = meta.state(string(f.site.kind())); err == nil {
			f.id = f.is.domain
			return f
		}
	}
	f.err = &Error{Code: CodeOf(err), Message: f.site.name() + ": " + err.Error(), err: err}
	return f
}

// A dirSite is a directory, which stays the one that was connected: held is it.
type dirSite struct {
	path string
	root string   // that it was connected beneath; "": the administrator has named path
	held *os.File // nil: the administrator has named it
}

func (p *dirSite) name() string     { return p.path }
func (p *dirSite) kind() DomainType { return DomainLocal }

func (p *dirSite) read(context.Context) found {
	f := found{site: p}
	if err := p.same(); err != nil {
		return f.judge(nil, err)
	}
	d, err := findDomain(p.path)
	if err != nil || d == "" {
		return f.judge(nil, err)
	}
	f.id, _ = uuid.Parse(d.uuid())
	return f.judge(readDomain(d))
}

// same makes sure that the path still leads to the directory that was connected.
func (p *dirSite) same() error {
	if p.held == nil {
		return nil
	}
	was, err := p.held.Stat()
	if err != nil {
		return err
	}
	is, err := os.Lstat(p.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errorf(CodeNotFound, "%s is not there any more: connect it again when it is", p.path)
	case err != nil:
		return err
	case !os.SameFile(was, is):
		return errorf(CodeOutsideRoots, "%s is not the directory that was connected: disconnect it, and connect it again", p.path)
	}
	return nil
}

func (p *dirSite) open(ctx context.Context, domain uuid.UUID, o Options, l Leases) (store, error) {
	if err := p.same(); err != nil {
		return nil, err
	}
	lease, err := l.Acquire(ctx, LeaseOf{Domain: domain, Dir: p.path})
	if err != nil {
		return nil, leaseError(err)
	}
	s, err := openDir(p.boundary(), p.path, lease, o)
	return orClose(s, err)
}

// A groupSite is a volume group. Its tags are read without opening it.
type groupSite struct {
	label, uuid string
	tags        []string
	get         func(ctx context.Context) (VolumeGroup, error)
}

func (p *groupSite) name() string     { return "volume group " + p.label }
func (p *groupSite) kind() DomainType { return DomainBlock }

func (p *groupSite) read(context.Context) found {
	f := found{site: p}
	m, err := domainOfTags(p.tags)
	if m != nil || err != nil {
		f.id = idOfTags(p.tags)
	}
	return f.judge(m, err)
}

func (p *groupSite) open(ctx context.Context, domain uuid.UUID, o Options, l Leases) (store, error) {
	g, err := p.get(ctx)
	if err != nil {
		return nil, internal(err, "open %s", p.name())
	}
	lease, err := l.Acquire(ctx, LeaseOf{Domain: domain, Dir: g.RunDir()})
	if err != nil {
		return nil, leaseError(err)
	}
	s, err := openGroup(ctx, g, lease, o)
	return orClose(s, err)
}

// orClose closes a store that could not be opened as a whole.
func orClose(s store, err error) (store, error) {
	if err != nil {
		return nil, internal(errors.Join(err, s.close()), "open %s", s.name())
	}
	return s, nil
}

func leaseError(err error) error {
	if errors.Is(err, block.ErrInUse) {
		return &Error{Code: CodeInUse, Message: err.Error(), err: err}
	}
	return internal(err, "lease of a domain")
}

// at says which domain an error is about.
func at(id uuid.UUID, f found) string { return fmt.Sprintf("domain %s in %s", id, f.site.name()) }
