package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// Groups finds volume groups. A group is opened once, and stays open.
type Groups interface {
	// List reads which groups lie on the devices; a state has Name, UUID and Tags.
	List(ctx context.Context, devices []string) ([]GroupState, error)
	Open(ctx context.Context, uuid string, devices []string) (VolumeGroup, error)
}

// A connection is a directory, or devices, that a client has made known.
type connection struct {
	kind    DomainType
	address string
	dir     *dirSite // of a directory
	devices []string // of groups
}

// ConnectServer makes storage known. Repeated it does nothing.
func (h *Host) ConnectServer(ctx context.Context, t DomainType, all []Connection) ([]ConnectionResult, error) {
	return h.eachConnection(ctx, t, all, h.connect)
}

// DisconnectServer forgets storage, unless a domain there is in use. What is not
// connected is no error.
func (h *Host) DisconnectServer(ctx context.Context, t DomainType, all []Connection) ([]ConnectionResult, error) {
	return h.eachConnection(ctx, t, all, h.disconnect)
}

func (h *Host) eachConnection(ctx context.Context, t DomainType, all []Connection,
	do func(context.Context, DomainType, string) (was bool, err error)) ([]ConnectionResult, error) {
	if t != DomainLocal && t != DomainBlock {
		return nil, errorf(CodeUnsupported, "connections of type %q: there are %s and %s", t, DomainLocal, DomainBlock)
	}
	done, err := h.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	results := make([]ConnectionResult, len(all))
	for i, c := range all {
		was, err := do(ctx, t, c.Address)
		results[i] = ConnectionResult{ID: c.ID, Was: was, Err: err}
	}
	if h.pool != nil && h.pool.role == roleSPM {
		h.tellFormer(ctx, h.pool.meta)
	}
	h.remember()
	return results, nil
}

func (h *Host) connect(ctx context.Context, t DomainType, address string) (was bool, err error) {
	c, err := h.resolve(t, address)
	if err != nil {
		return false, err
	}
	h.mu.Lock()
	was = slices.ContainsFunc(h.connections, func(o *connection) bool { return o.kind == t && o.address == c.address })
	h.mu.Unlock()
	if was {
		return true, c.close()
	}
	if err := h.mayConnect(ctx, c); err != nil {
		_ = c.close() // the first error is the one that counts
		return false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.connections = append(h.connections, c)
	h.o.Log.Info("storage connected", "type", t, "address", c.address)
	return false, nil
}

// mayConnect refuses what has a domain where none may be, beside what is connected, and
// a copy of one that is active. Another copy is said: neither is used then.
func (h *Host) mayConnect(ctx context.Context, c *connection) error {
	others, _ := h.readAll(ctx)
	if c.dir != nil {
		if err := c.dir.nested(c.dir.read(ctx).id, others); err != nil {
			return errorf(CodeOf(err), "connect %v", err)
		}
	}
	sites, err := h.sitesOf(ctx, c)
	if err != nil {
		return nil // as for what is there already, who looks for a domain is told
	}
	for _, p := range sites {
		f := p.read(ctx)
		i := slices.IndexFunc(others, func(o found) bool { return f.id != uuid.Nil && o.id == f.id && where(o.site) != where(p) })
		switch {
		case i < 0:
		case h.active(f.id) != nil:
			return errorf(CodeActive, "connect %s: domain %s there is active in %s: one of them is a copy: deactivate the domain and disconnect that place first, if this is the right one",
				p.name(), f.id, others[i].site.name())
		default:
			h.o.Log.Error("the domain is in two places that are connected, and is used in neither: disconnect one", "domain", f.id,
				"in", others[i].site.name(), "and", p.name())
		}
	}
	return nil
}

// resolve checks that a host may use what lies at an address.
func (h *Host) resolve(t DomainType, address string) (*connection, error) {
	if t == DomainLocal {
		d, err := openBeneath(h.o.Roots, address)
		if err != nil {
			return nil, err
		}
		return &connection{kind: t, address: d.path, dir: d}, nil
	}
	devices, err := chooseDevices(h.o.Devices, address)
	if err != nil {
		return nil, err
	}
	return &connection{kind: t, address: strings.Join(devices, ","), devices: devices}, nil
}

func (c *connection) close() error {
	if c.dir != nil && c.dir.held != nil {
		return c.dir.held.Close()
	}
	return nil
}

// openBeneath opens a directory beneath one of the roots, or a root itself. The
// kernel resolves it, and follows no symbolic link and no .. that leaves the root.
func openBeneath(roots []string, path string) (*dirSite, error) {
	if !filepath.IsAbs(path) {
		return nil, errorf(CodeInvalid, "connect %q: expected a path from the root of the file system", path)
	}
	path = filepath.Clean(path)
	for _, root := range roots {
		rel, err := filepath.Rel(root, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		at, err := os.Open(root)
		if err != nil {
			return nil, internal(err, "connect %s", path)
		}
		fd, err := unix.Openat2(int(at.Fd()), rel, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		at.Close()
		if err != nil {
			return nil, beneathError(path, root, err)
		}
		return &dirSite{path: path, root: root, held: os.NewFile(uintptr(fd), path)}, nil
	}
	if len(roots) == 0 {
		return nil, errorf(CodeOutsideRoots, "connect %s: this host has no roots for domains in directories: start it with --root DIR", path)
	}
	return nil, errorf(CodeOutsideRoots, "connect %s: expected a directory beneath a root of this host: %s", path, strings.Join(roots, ", "))
}

func beneathError(path, root string, err error) error {
	switch {
	case errors.Is(err, unix.EXDEV):
		return errorf(CodeOutsideRoots, "connect %s: it leaves %s", path, root)
	case errors.Is(err, unix.ELOOP):
		return errorf(CodeOutsideRoots, "connect %s: expected no symbolic link beneath %s, found one", path, root)
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Code: CodeNotFound, Message: fmt.Sprintf("connect %s: there is no such directory", path), err: err}
	case errors.Is(err, unix.ENOTDIR):
		return errorf(CodeInvalid, "connect %s: it is not a directory", path)
	}
	return internal(err, "connect %s", path)
}

// chooseDevices are those that an address names, each of which the host must have.
func chooseDevices(allowed []string, address string) ([]string, error) {
	var chosen []string
	for name := range strings.SplitSeq(address, ",") {
		name = filepath.Clean(strings.TrimSpace(name))
		if !slices.Contains(allowed, name) {
			return nil, errorf(CodeOutsideRoots, "connect %s: it is no device of this host, which has %s", name,
				orNone(strings.Join(allowed, ", "), "none: start it with --devices DEVICE,..."))
		}
		if !slices.Contains(chosen, name) {
			chosen = append(chosen, name)
		}
	}
	slices.Sort(chosen)
	return chosen, nil
}

func orNone(s, none string) string {
	if s == "" {
		return none
	}
	return s
}

func (h *Host) disconnect(ctx context.Context, t DomainType, address string) (was bool, err error) {
	key := address
	if t == DomainLocal {
		key = filepath.Clean(address)
	} else if chosen, err := chooseDevices(h.o.Devices, address); err == nil {
		key = strings.Join(chosen, ",")
	}
	h.mu.Lock()
	i := slices.IndexFunc(h.connections, func(c *connection) bool { return c.kind == t && c.address == key })
	if i < 0 {
		h.mu.Unlock()
		return true, nil
	}
	c := h.connections[i]
	h.mu.Unlock()
	sites, err := h.sitesOf(ctx, c)
	if err != nil {
		return false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range sites {
		if id := h.usedLocked(p); id != uuid.Nil {
			return false, errorf(CodeActive, "disconnect %s: domain %s there is active: deactivate it, or stop the SPM first", address, id)
		}
	}
	h.connections = slices.Delete(h.connections, i, i+1)
	h.o.Log.Info("storage disconnected", "type", t, "address", key)
	return false, c.close()
}

// usedLocked is the domain that is active there, or uuid.Nil.
func (h *Host) usedLocked(p site) uuid.UUID {
	if h.pool == nil {
		return uuid.Nil
	}
	for id, m := range h.pool.managers {
		if m.store.where() == where(p) {
			return id
		}
	}
	return uuid.Nil
}

// where tells places apart.
func where(p site) string {
	if g, ok := p.(*groupSite); ok {
		return g.uuid
	}
	return p.name()
}

// sitesOf is where domains may lie in a connection.
func (h *Host) sitesOf(ctx context.Context, c *connection) ([]site, error) {
	if c.dir != nil {
		return []site{c.dir}, nil
	}
	if h.o.Groups == nil {
		return nil, errorf(CodeUnsupported, "this host knows no volume groups")
	}
	groups, err := h.o.Groups.List(ctx, c.devices)
	if err != nil {
		return nil, internal(err, "look for volume groups on %s", c.address)
	}
	sites := make([]site, len(groups))
	for i, g := range groups {
		sites[i] = h.groupSite(g, c.devices)
	}
	return sites, nil
}

func (h *Host) groupSite(g GroupState, devices []string) *groupSite {
	return &groupSite{label: g.Name, uuid: g.UUID, tags: g.Tags, get: func(ctx context.Context) (VolumeGroup, error) {
		h.groups.Lock()
		defer h.groups.Unlock()
		if open := h.groups.open[g.UUID]; open != nil {
			return open, nil
		}
		opened, err := h.o.Groups.Open(ctx, g.UUID, devices)
		if err == nil {
			h.groups.open[g.UUID] = opened
		}
		return opened, err
	}}
}

// places are all that are connected. What cannot be looked at is in errs.
func (h *Host) sites(ctx context.Context) (all []site, errs []error) {
	h.mu.Lock()
	connections := slices.Clone(h.connections)
	h.mu.Unlock()
	seen := map[string]bool{}
	for _, c := range connections {
		found, err := h.sitesOf(ctx, c)
		if err != nil {
			errs = append(errs, err)
		}
		for _, p := range found {
			if !seen[where(p)] {
				all = append(all, p)
			}
			seen[where(p)] = true
		}
	}
	return all, errs
}

// look reads every place, and returns the domains.
func (h *Host) look(ctx context.Context) (all []found, errs []error) {
	places, errs := h.readAll(ctx)
	refuseCopies(places)
	for _, f := range places {
		if f.err != nil {
			errs = append(errs, f.err)
		}
		if f.err != nil || f.meta != nil {
			all = append(all, f)
		}
	}
	return all, errs
}

// find looks a domain up among the places.
func (h *Host) find(ctx context.Context, id uuid.UUID) (found, error) {
	all, errs := h.look(ctx)
	i := slices.IndexFunc(all, func(f found) bool { return id != uuid.Nil && f.id == id })
	if i >= 0 {
		return all[i], all[i].err
	}
	text := ""
	if len(errs) > 0 {
		text = "; what could not be read: " + errors.Join(errs...).Error()
	}
	return found{}, errorf(CodeUnknownDomain, "domain %s is in no place that is connected: connect its server first%s", id, text)
}
