package spm

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// HostOptions are those of a host. Options are those of its managers.
type HostOptions struct {
	Options
	// Roots are the directories beneath which those must lie that clients connect,
	// and Devices the devices on which their volume groups must.
	Roots   []string
	Devices []string
	// Groups finds volume groups; nil: there are domains in directories only.
	Groups Groups
	// State is a directory for a cache of what is connected, so that a host that
	// starts again connects it again, and has the role that it had; "": none. One host
	// has it at a time.
	State string
	// Leases gives the right to change a domain. Default: locks on this host.
	Leases Leases
	// Jobs and Servers are the tools for what is in volumes. Default: what needs them is
	// refused.
	Jobs    ImageJobs
	Servers ImageServers
	// LockPatience is how long a request that is no task waits for one on the same image,
	// or on the domain that it is to take out of use.
	// Default: 5 s.
	LockPatience time.Duration
	// ServerPatience is how long a request waits for who serves an image to say what it
	// does, or for all together who serve the images that it is about. Default: 2 s.
	ServerPatience time.Duration
	// At is that of the tasks' engine (see task.Options). For tests.
	At func(point string)
}

// A Host is the storage of a host: what is connected, the pool that it is of, and
// the managers of the pool's domains while it has the SPM role.
type Host struct {
	o         HostOptions
	ops       *operations
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc
	state     *fileLock       // of HostOptions.State; nil: none
	requests  context.Context // of those who are served; ends when they have been told to go
	hangUp    context.CancelFunc
	changing  chan struct{}  // see the package comment
	starting  sync.WaitGroup // of an SPM, in the background
	recalling bool           // the host is about to be what it was; only while it is opened

	groups struct {
		sync.Mutex
		open map[string]VolumeGroup // by UUID
	}

	mu          sync.Mutex
	closed      bool
	connections []*connection
	pool        *connectedPool // nil: none
	starts      map[uuid.UUID]*spmStart
	masters     map[uuid.UUID]int64      // the highest versions that were seen of masters, by pool
	told        map[uuid.UUID]task.State // the states of tasks that were told to those who watch
	servers     []*http.Server
}

var (
	_ API     = (*Host)(nil)
	_ Storage = (*Host)(nil)
)

// OpenHost starts a host, with what it remembers.
func OpenHost(o HostOptions) (*Host, error) {
	o.Capacity = 0
	h, err := newHost(o)
	if err != nil {
		return nil, err
	}
	if err := h.lockState(); err != nil {
		return nil, err
	}
	h.recall()
	return h, nil
}

func newHost(o HostOptions) (*Host, error) {
	o.Options = o.Options.withDefaults()
	o.LockPatience = cmp.Or(o.LockPatience, lockPatience)
	if o.Leases == nil {
		o.Leases = localLeases{}
	}
	if o.Jobs == nil {
		o.Jobs = noJobs{}
	}
	if o.Servers == nil {
		o.Servers = noServers{}
	}
	roots := make([]string, len(o.Roots))
	for i, r := range o.Roots {
		abs, err := filepath.Abs(r)
		if err != nil {
			return nil, err
		}
		if st, err := os.Stat(abs); err != nil {
			return nil, err
		} else if !st.IsDir() {
			return nil, errorf(CodeInvalid, "root %s: expected a directory", r)
		}
		roots[i] = abs
	}
	o.Roots = roots
	h := &Host{o: o, changing: make(chan struct{}, 1), starts: map[uuid.UUID]*spmStart{}, masters: map[uuid.UUID]int64{},
		told: map[uuid.UUID]task.State{}}
	h.groups.open = map[string]VolumeGroup{}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	h.requests, h.hangUp = context.WithCancel(context.Background())
	h.ops = newOperations(h.manager, h.everyActive, h.locks, o.Jobs, o.Servers)
	h.ops.patience = cmp.Or(o.ServerPatience, serverPatience)
	return h, nil
}

// OpenDir starts a host whose only storage is a directory, with one domain that is a
// pool of its own, which it manages. Both are made if there is none.
func OpenDir(dir string, o HostOptions) (*Host, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, modeDir); err != nil {
		return nil, err
	}
	h, err := newHost(o)
	if err != nil {
		return nil, err
	}
	d := &dirSite{path: dir}
	return h.alone(&connection{kind: DomainLocal, address: dir, dir: d}, d)
}

// OpenGroup starts a host whose only storage is a volume group, as OpenDir does.
func OpenGroup(ctx context.Context, g VolumeGroup, o HostOptions) (*Host, error) {
	if err := g.Read(ctx); err != nil {
		return nil, err
	}
	h, err := newHost(o)
	if err != nil {
		return nil, err
	}
	state := g.State()
	h.groups.open[state.UUID] = g
	h.o.Groups = oneGroup{g}
	return h.alone(&connection{kind: DomainBlock, address: state.Name}, h.groupSite(*state, nil))
}

// oneGroup is the only group of a host.
type oneGroup struct{ g VolumeGroup }

func (o oneGroup) List(ctx context.Context, _ []string) ([]GroupState, error) {
	return []GroupState{*o.g.State()}, nil
}

func (o oneGroup) Open(context.Context, string, []string) (VolumeGroup, error) { return o.g, nil }

// Close ends the requests that wait, stops serving, and lets go of the pool. Who has
// the role takes it again at the next start.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return errorf(CodeStopping, "the host is closed already")
	}
	h.closed = true
	servers := h.servers
	h.mu.Unlock()
	h.cancel()
	h.starting.Wait()
	h.changing <- struct{}{} // for ever
	h.mu.Lock()
	p := h.pool
	h.mu.Unlock()
	var err error
	if p != nil {
		err = h.dropRole(p)
	}
	err = errors.Join(err, shutDown(servers))
	h.hangUp()
	for _, c := range h.connections {
		err = errors.Join(err, c.close())
	}
	return errors.Join(err, h.unlockState())
}

// begin takes the right to change connections, domains, the pool or the role.
func (h *Host) begin(ctx context.Context) (done func(), err error) {
	select {
	case h.changing <- struct{}{}:
		return func() { <-h.changing }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-h.ctx.Done():
		return nil, errorf(CodeStopping, "the host is stopping: repeat the request when it is back")
	}
}

// masterLocked is the master of the pool that the host is of, or uuid.Nil.
func (h *Host) masterLocked() uuid.UUID {
	if h.pool == nil {
		return uuid.Nil
	}
	return h.pool.meta.master
}

// manager is that of a domain that is active. Tasks that are recovered ask for it before
// the host has the role.
func (h *Host) manager(domain uuid.UUID) (*Manager, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil {
		return nil, roleTable[roleStranger][verbUse].refusal("the pool")
	}
	if r := roleTable[h.pool.role][verbUse]; r.act == refused && h.pool.managers == nil {
		return nil, r.refusal("pool " + h.pool.meta.id.String())
	}
	if m := h.pool.managers[domain]; m != nil {
		return m, nil
	}
	if _, listed := h.pool.meta.members[domain]; listed {
		return nil, errorf(CodeNotActive, "domain %s is not active: activate it first", domain)
	}
	return nil, errorf(CodeUnknownDomain, "domain %s is not of pool %s", domain, h.pool.meta.id)
}
