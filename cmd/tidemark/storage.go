package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"

	"tidemark/spm"
)

// A storage is a connection to the host whose domains, pools and volumes the
// options name. It asks with the verbs of docs/api.md.
type storage struct {
	client *spm.Client
	path   string
}

type storageDialer func() (*storage, error)

// dialStorage is for the socket at path, or that of the environment. It asks
// nothing yet.
func dialStorage(path string) (*storage, error) {
	if path = cmp.Or(path, os.Getenv("TIDEMARK_SPM")); path == "" {
		return nil, errors.New("which host? give --spm PATH, the socket of its manager, or set TIDEMARK_SPM; start a manager with: tidemark spm")
	}
	return &storage{spm.NewClient(path), path}, nil
}

// Close drops the connections that are idle.
func (s *storage) Close() { s.client.Close() } //nolint:errcheck // returns nil

type named = map[string]any

// ask asks a verb.
func (s *storage) ask(ctx context.Context, verb string, args named, out any) error {
	if out == nil {
		out = &struct{}{}
	}
	if args == nil {
		args = named{}
	}
	return s.client.Call(ctx, verb, args, out)
}

// decimalBytes is a size that a verb answers as a decimal string. In our own output
// it is a number.
type decimalBytes int64

// UnmarshalJSON takes a decimal string, or a number.
func (d *decimalBytes) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(strings.Trim(string(b), `"`), 10, 64)
	*d = decimalBytes(n)
	return err
}

// A domainView is what the verbs tell of a domain.
type domainView struct {
	UUID    string   `json:"uuid"`
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Role    string   `json:"role"`
	State   string   `json:"state"`
	Pools   []string `json:"pool"`
	Version string   `json:"version"`
	Master  int64    `json:"master_ver"`
	Path    string   `json:"remotePath,omitempty"`
	Group   string   `json:"vgName,omitempty"`

	Stats *statsView `json:"stats,omitempty"`
}

// pool is the domain's, or "".
func (d domainView) pool() string { return strings.Join(d.Pools, ",") }

// where is its directory, or its volume group.
func (d domainView) where() string { return cmp.Or(d.Path, d.Group) }

func (d domainView) keys() []string { return []string{d.Name, d.Path, d.Group} }

func (d domainView) id() string { return d.UUID }

// A statsView is how a domain, or a pool, is used.
type statsView struct {
	Capacity   decimalBytes `json:"disktotal"`
	Free       decimalBytes `json:"diskfree"`
	Granted    decimalBytes `json:"granted"`
	Reserve    decimalBytes `json:"reserve"`
	Virtual    decimalBytes `json:"virtual"`
	Used       decimalBytes `json:"used"`
	Ratio      float64      `json:"ratio"`
	Growth     float64      `json:"growth"`
	TimeToFull float64      `json:"time_to_full"`
	Volumes    int          `json:"volumes"`
	Level      string       `json:"level"`
	Waiting    int          `json:"waiting"`
}

// A volumeView is what the verbs tell of a volume.
type volumeView struct {
	UUID        string       `json:"uuid"`
	Name        string       `json:"name,omitempty"`
	Image       string       `json:"image"`
	Domain      string       `json:"domain"`
	Parent      string       `json:"parent"`
	ParentImage string       `json:"parentImage"`
	Children    []string     `json:"children"`
	Capacity    decimalBytes `json:"capacity"`
	Granted     decimalBytes `json:"apparentsize"`
	Used        decimalBytes `json:"truesize"`
	Bound       decimalBytes `json:"bound"`
	Format      string       `json:"format"`
	Alloc       string       `json:"type"`
	Type        string       `json:"voltype"`
	Legality    string       `json:"legality"`
	Generation  int          `json:"generation"`
	Description string       `json:"description"`
	Priority    int          `json:"priority"`
	Served      bool         `json:"served"`
	Unanswered  string       `json:"servedUnknown,omitempty"` // why it is not known; then Served is true
	Path        string       `json:"path"`
	Damaged     string       `json:"damaged,omitempty"`

	pool string // the domain's
}

func (v volumeView) id() string     { return v.UUID }
func (v volumeView) domain() string { return v.Domain }

// keys are a volume's name, and if it is a leaf its image.
func (v volumeView) keys() []string {
	if len(v.Children) == 0 {
		return []string{v.Name, v.Image}
	}
	return []string{v.Name}
}

// at names the volume in the arguments of a verb.
func (v volumeView) at() named {
	return named{"spUUID": v.pool, "sdUUID": v.Domain, "imgUUID": v.Image, "volUUID": v.UUID}
}

// domains are the domains that the host has found, in the order of their names.
func (s *storage) domains(ctx context.Context) ([]domainView, error) {
	var r struct {
		Domains []struct {
			Info  domainView `json:"info"`
			Stats *statsView `json:"stats"`
		} `json:"domains"`
	}
	if err := s.ask(ctx, "getStorageDomainsDetails", nil, &r); err != nil {
		return nil, err
	}
	out := make([]domainView, len(r.Domains))
	for i, d := range r.Domains {
		out[i] = d.Info
		out[i].Stats = d.Stats
	}
	slices.SortStableFunc(out, func(a, b domainView) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// domain is the one with that name, place or UUID.
func (s *storage) domain(ctx context.Context, name string) (domainView, error) {
	all, err := s.domains(ctx)
	if err != nil {
		return domainView{}, err
	}
	return match("domain", name, all)
}

// volumes are those of the domains in use, or of one domain. Those of a pool that is
// not connected, beside one that is, nobody uses here.
func (s *storage) volumes(ctx context.Context, domain string) ([]volumeView, error) {
	domains, err := s.domains(ctx)
	if err != nil {
		return nil, err
	}
	if domain != "" {
		d, err := match("domain", domain, domains)
		if err != nil {
			return nil, err
		}
		return s.volumesOf(ctx, d)
	}
	connected, err := s.connected(ctx)
	if err != nil {
		return nil, err
	}
	domains = slices.DeleteFunc(domains, func(d domainView) bool {
		return d.State != string(spm.DomainActive) || len(connected) > 0 && !slices.Contains(connected, d.pool())
	})
	all, errs := make([][]volumeView, len(domains)), make([]error, len(domains))
	var asking sync.WaitGroup // side by side: in each of them a server may hang
	for i, d := range domains {
		asking.Go(func() { all[i], errs[i] = s.volumesOf(ctx, d) })
	}
	asking.Wait()
	return slices.Concat(all...), errors.Join(errs...)
}

func (s *storage) volumesOf(ctx context.Context, d domainView) ([]volumeView, error) {
	var r struct {
		Volumes []volumeView `json:"volumes"`
	}
	err := s.ask(ctx, "getVolumesDetails", named{"sdUUID": d.UUID}, &r)
	for i := range r.Volumes {
		v := &r.Volumes[i]
		v.pool = d.pool()
		if v.Name == v.Image { // nobody has given it one
			v.Name = ""
		}
	}
	return r.Volumes, err
}

// volume is the one with that name or UUID, or the leaf of the image, in the domain if
// name says one: DOMAIN/NAME.
func (s *storage) volume(ctx context.Context, name string) (volumeView, error) {
	domain, rest := inDomain(name)
	all, err := s.volumes(ctx, domain)
	if err != nil {
		return volumeView{}, err
	}
	return match("volume", rest, all)
}

// What is stored has a UUID, and keys by which it is found as well.
type stored interface {
	id() string
	keys() []string
}

// prefixMin is how many characters of a UUID name an object, if only one has them.
const prefixMin = 4

// match finds the object that name means: by its UUID, else by a key, else by how
// its UUID begins.
func match[T stored](what, name string, all []T) (T, error) {
	var found []T
	for _, means := range []func(T) bool{
		func(o T) bool { return o.id() == name },
		func(o T) bool { return name != "" && slices.Contains(o.keys(), name) },
		func(o T) bool { return len(name) >= prefixMin && strings.HasPrefix(o.id(), name) },
	} {
		if len(found) > 0 {
			break
		}
		for _, o := range all {
			if means(o) {
				found = append(found, o)
			}
		}
	}
	var none T
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1 && oneID(found):
		return none, fmt.Errorf("there are %d %ss %q of one UUID: say of which domain, as DOMAIN/%s: %s", len(found), what, name, name, list(found))
	case len(found) > 1:
		return none, fmt.Errorf("there are %d %ss %q: name one by its UUID: %s", len(found), what, name, list(found))
	case len(all) == 0:
		return none, fmt.Errorf("there is no %s %q, and there are no others", what, name)
	}
	return none, fmt.Errorf("there is no %s %q; there are %s", what, name, list(all))
}

// oneID reports whether objects have the same UUID: of an image, and of its volumes,
// there may be one in each domain.
func oneID[T stored](all []T) bool {
	return !slices.ContainsFunc(all, func(o T) bool { return o.id() != all[0].id() })
}

// inDomain splits DOMAIN/NAME. Without a domain that is "".
func inDomain(name string) (domain, rest string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// list names objects, not more than fit, and the domains of those that have the same UUID.
func list[T stored](all []T) string {
	const most = 8
	var names []string
	same := len(all) > 1 && oneID(all)
	for i, o := range all {
		if i == most {
			names = append(names, fmt.Sprintf("and %d more", len(all)-most))
			break
		}
		name := o.id()
		if key := o.keys()[0]; key != "" {
			name = key + " (" + name + ")"
		}
		if l, lies := any(o).(interface{ domain() string }); lies && same {
			name += " in domain " + l.domain()
		}
		names = append(names, name)
	}
	return strings.Join(names, ", ")
}

// newID is the UUID of a new object: the one that was asked for, if any.
func newID(asked string) (string, error) {
	if asked == "" {
		return uuid.NewString(), nil
	}
	id, err := uuid.Parse(asked)
	if err != nil || id == uuid.Nil {
		return "", fmt.Errorf("--id %s: expected a UUID that is not blank", asked)
	}
	return id.String(), nil
}

// blank is the UUID of nothing.
var blank = uuid.Nil.String()
