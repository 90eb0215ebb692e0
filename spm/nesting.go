package spm

import (
	"context"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
)

// A domain in a directory lies neither inside another one nor around it: what is removed
// with one of them would be the other's. Of two places of which one lies beneath the
// other, one has a domain at most. What is connected is known; what is not is found by
// the names on disk, upwards as far as the host's root, and in what is to be removed.

// within reports whether a path is that directory, or lies beneath it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// domainAbove is the directory of a domain that path lies in, or is; "": it lies in none
// beneath root. One that is being made or removed is one.
func domainAbove(root, path string) domainDir {
	for at := path; within(at, root); at = filepath.Dir(at) {
		name := filepath.Base(at)
		if id, doomed := cutDoomed(name); doomed && isUUID(id) {
			return domainDir(at)
		}
		if isUUID(name) {
			if has, err := hasMetadata(domainDir(at)); has || err != nil {
				return domainDir(at)
			}
		}
		if at == root {
			break
		}
	}
	return ""
}

// cutDoomed takes the prefix off a name of what the next start removes.
func cutDoomed(name string) (rest string, doomed bool) {
	for _, p := range []string{prefixNew, prefixRemoved} {
		if rest, ok := strings.CutPrefix(name, p); ok {
			return rest, true
		}
	}
	return name, false
}

func isUUID(name string) bool {
	_, err := uuid.Parse(name)
	return err == nil
}

// domainsIn are the directories of domains that lie inside one.
func domainsIn(d domainDir) (all []domainDir, err error) {
	err = filepath.WalkDir(string(d), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() || e.Name() != dirMeta && e.Name() != dirImages {
			return err
		}
		if of := filepath.Dir(path); of != string(d) && isUUID(filepath.Base(of)) {
			all = append(all, domainDir(of))
			return fs.SkipDir
		}
		return nil
	})
	return all, err
}

// nested refuses a directory for a domain, which it has or is to have, where that would lie
// inside another one, or around one.
func (p *dirSite) nested(has uuid.UUID, others []found) error {
	if in := domainAbove(p.boundary(), p.path); in != "" {
		return errorf(CodeForeign, "%s lies in the directory of a domain, %s: choose another place", p.path, in)
	}
	for _, f := range others {
		o, is := f.site.(*dirSite)
		switch {
		case !is || o.path == p.path:
		case has != uuid.Nil && f.id != uuid.Nil && (within(p.path, o.path) || within(o.path, p.path)):
			return errorf(CodeForeign, "%s, for domain %s, and %s, which has domain %s, lie one in the other: choose another place, or disconnect that one",
				p.path, has, o.path, f.id)
		case has != uuid.Nil && within(o.path, filepath.Join(p.path, has.String())):
			return errorf(CodeForeign, "%s, which is connected, lies in the directory of domain %s in %s: disconnect it first", o.path, has, p.path)
		}
	}
	return nil
}

// boundary is the directory above which nothing is looked at.
func (p *dirSite) boundary() string {
	if p.root != "" {
		return p.root
	}
	return p.path
}

// readAll reads every place, also those that have no domain.
func (h *Host) readAll(ctx context.Context) (all []found, errs []error) {
	sites, errs := h.sites(ctx)
	for _, p := range sites {
		all = append(all, p.read(ctx))
	}
	return all, errs
}

// refuseCopies lets nobody use a domain that is in several places: nobody knows which of
// them is the right one, and in what they differ.
func refuseCopies(all []found) {
	places := map[uuid.UUID][]string{}
	for _, f := range all {
		if f.id != uuid.Nil {
			places[f.id] = append(places[f.id], f.site.name())
		}
	}
	for i, f := range all {
		if in := places[f.id]; len(in) > 1 {
			all[i].err = errorf(CodeForeign, "domain %s is in %d places: %s: all but one are copies: disconnect those, until then it is used in none",
				f.id, len(in), strings.Join(in, ", "))
		}
	}
}

// led reports whether a domain says that it is the master of a pool, also one that cannot
// be used.
func led(all []found, pool uuid.UUID) (by found, ok bool) {
	i := slices.IndexFunc(all, func(f found) bool { return f.meta != nil && f.is.pool == pool && f.is.master })
	if i < 0 {
		return found{}, false
	}
	return all[i], true
}

// mayFormat refuses to remove a domain with one inside it.
func mayFormat(f found) error {
	p, is := f.site.(*dirSite)
	if !is {
		return nil
	}
	inner, err := domainsIn(domainDir(filepath.Join(p.path, f.id.String())))
	if err != nil {
		return internal(err, "look for domains inside %s", at(f.id, f))
	}
	if len(inner) > 0 {
		return errorf(CodeForeign, "format domain %s: another domain lies in its directory: %s: move that elsewhere first", f.id, inner[0])
	}
	return nil
}
