package spm

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// While there is one host, it is this one.
const (
	localHostID         = 1
	localHostGeneration = 1
)

// API is what a pool can be asked for its volumes, of a [Host] in the same process
// or of a [Client].
type API interface {
	CreateVolume(context.Context, VolumeCreateRequest) (VolumeReply, error)
	ListVolumes(context.Context, VolumeListRequest) (VolumeListReply, error)
	GetVolumeInfo(context.Context, VolumeInfoRequest) (VolumeReply, error)
	ExtendVolume(context.Context, VolumeExtendRequest) (VolumeExtendReply, error)
	ReduceVolume(context.Context, VolumeReduceRequest) (VolumeReply, error)
	RemoveVolume(context.Context, VolumeRemoveRequest) (VolumeRemoveReply, error)
	GetPoolInfo(context.Context, PoolInfoRequest) (PoolReply, error)
	WatchPool(context.Context, PoolWatchRequest) (PoolWatchReply, error)
}

var (
	_ API = (*Manager)(nil)
	_ API = (*Client)(nil)
)

// CreateImage describes the image that a new volume holds.
type CreateImage struct {
	Size   int64  // virtual, bytes
	Format string // FormatQCOW2 or FormatRaw
	// Backing is what a qcow2 image says it is based on; nil: on nothing.
	Backing *BackingRef
}

// Images makes images. The manager itself knows no format.
type Images interface {
	// Create makes the image in f, which is as long as the volume is granted
	// and takes no more. Whether it reads zero says its Info.
	Create(ctx context.Context, f block.File, o CreateImage) error
	// Bound is the size in bytes that the file of such an image never needs
	// to exceed.
	Bound(o CreateImage) int64
	// Backing is what the header of the qcow2 image in f says that it is based on: a name
	// as in [BackingRef], "" if it is on nothing. It fails if that cannot be read.
	Backing(f block.File) (name string, err error)
	// WriterDied says by the header of the qcow2 image in f, which nobody has open for
	// writing, whether a process that had has died, and nobody has put it in order since.
	WriterDied(f block.File) (bool, error)
}

// Options of a pool. The zero value opens one that exists.
type Options struct {
	// Capacity is the sum of the granted sizes, in bytes, that the pool never
	// exceeds. It is kept; given again it may only be larger. A new pool needs
	// it.
	Capacity int64
	// Patience is how long a write to a volume of this pool may wait for space
	// until its guest gets ENOSPC. The manager only tells it to those that
	// serve volumes. Default: it is for them to say.
	Patience time.Duration
	// Images makes qcow2 images; without it there are raw volumes only.
	Images Images
	// Warn is how little may be free until headroom is recalled, in bytes. Default:
	// a sixteenth of the capacity.
	Warn int64
	// Reserve is what merging and removing may use of a full pool and nobody else, in
	// bytes. Default: a 64th of the capacity, at least two units of granting and at
	// most 1 GiB, and nothing of one below 1 GiB; negative: nothing.
	Reserve int64
	// WarnAt and CriticalAt are the parts of the capacity from which on, if they are
	// granted, the pool says so. Default: 0.85 and 0.95.
	WarnAt, CriticalAt float64
	// Holder tells who holds a volume. Default: by QEMU's image locks.
	Holder Holder
	// Remains removes what servers that died have left of a volume that goes. Default:
	// nothing is left.
	Remains Remains
	// HostFree returns the bytes that the file system of dir has left.
	// Default: statfs.
	HostFree func(dir string) (int64, error)
	// Poll is how often the host's space is read again while a request waits.
	// Default: 0.5 s.
	Poll time.Duration
	// Grace is how long the place of a client is kept between two requests.
	// Default: 1 s.
	Grace time.Duration
	// Now is the clock for latencies and times of creation. Default: time.Now.
	Now func() time.Time
	// Log gets one line per change of state. Default: none.
	Log *slog.Logger

	sync    func(*os.File) error // fsync, unless a test watches it
	journal *journal             // of the host; a manager alone has its own
}

func (o Options) withDefaults() Options {
	if o.Holder == nil {
		o.Holder = imageLocks{}
	}
	if o.Remains == nil {
		o.Remains = noRemains{}
	}
	if o.HostFree == nil {
		o.HostFree = statfsFree
	}
	o.WarnAt, o.CriticalAt = cmp.Or(o.WarnAt, warnAt), cmp.Or(o.CriticalAt, criticalAt)
	o.Poll = cmp.Or(o.Poll, 500*time.Millisecond)
	o.Grace = cmp.Or(o.Grace, time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.sync == nil {
		o.sync = (*os.File).Sync
	}
	if o.journal == nil {
		o.journal = newJournal()
	}
	return o
}

// A Manager manages one domain that is active, in a pool that this host manages.
type Manager struct {
	store   store
	ident   domainState // the capacity in it is the one at start
	o       Options
	began   time.Time
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	watched chan struct{} // closed when nobody looks at the place any more
	// changing is held by whoever changes the domain's metadata, also across I/O.
	changing chan struct{}

	mu       sync.Mutex
	closed   bool
	meta     domainMeta // of the domain
	capacity int64
	granted  int64 // of all volumes, and what is reserved for requests in progress
	volumes  map[uuid.UUID]*volume
	names    map[string]*volume
	kinship  *family  // of the volumes, as familyLocked has made it; nil: something has changed
	queue    []*place // in the order in which they are served
	arrivals int64
	tight    bool          // headroom is recalled
	level    string        // of the watermarks
	meter    meter         // of granted
	changed  chan struct{} // closed and replaced when a waiting request should look again

	extensions   int64
	lastLatency  time.Duration
	lastExtended string
	lastAt       time.Time
}

// A volume in memory. sem is held by whoever changes it, and guards unsynced and
// unwritten; the other fields are guarded by Manager.mu, but for those that never change.
type volume struct {
	id, image uuid.UUID
	createID  string // the request that made it, if this manager did
	said      atomic.Pointer[said]

	sem      chan struct{} // capacity 1
	unsynced bool          // the volume may not have size, or not durably
	// unwritten: writing its metadata has failed, so that on disk they may be other
	// ones than said.
	unwritten bool

	size       int64 // granted; of the volume, unless reserved is more
	bound      int64
	damaged    error // why nobody can know what is in it; nil: it is whole
	lost       bool  // of a damaged one: nobody knows what it is based on
	gone       bool
	ready      bool // false while it is being made: it has a name and space only
	extensions int64
	changes    int64 // of size
	giving     int   // requests to make it shorter that are not over
	used       int64 // of size by its image, as its server has said last; 0: it has not
}

// said is what a volume is called and what its metadata says. It is replaced as a
// whole, under Manager.mu, and read by anybody.
type said struct {
	name string
	meta volumeMeta
}

func (v *volume) name() string     { return v.said.Load().name }
func (v *volume) meta() volumeMeta { return v.said.Load().meta }

// Close ends the requests that wait, stops serving and releases the domain.
func (m *Manager) Close() error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return errorf(CodeStopping, "pool %s: closed already", m.store.name())
	}
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	<-m.watched
	for _, v := range m.sorted() {
		v.sem <- struct{}{} // a change in progress ends first
	}
	m.o.Log.Info("pool closed", "dir", m.store.name())
	return m.store.close()
}

// sorted returns the volumes in the order of their names.
func (m *Manager) sorted() []*volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]*volume, 0, len(m.volumes))
	for _, v := range m.volumes {
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b *volume) int { return cmp.Compare(a.name(), b.name()) })
	return all
}

// RaiseCapacity makes the domain larger, durably, and lets what waits go on.
func (m *Manager) RaiseCapacity(ctx context.Context, capacity int64) error {
	return m.edit(ctx, func(meta domainMeta) error {
		is, err := meta.identity()
		if err == nil {
			err = raiseCapacity(meta, &is, capacity)
		}
		return err
	})
}

// edit replaces the domain's metadata, durably, or changes nothing.
func (m *Manager) edit(ctx context.Context, change func(domainMeta) error) error {
	select {
	case m.changing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-m.changing }()
	m.mu.Lock()
	meta := maps.Clone(m.meta)
	m.mu.Unlock()
	if err := change(meta); err != nil {
		return err
	}
	if err := m.store.writeDomain(context.WithoutCancel(ctx), meta); err != nil {
		return internal(err, "write the metadata of the domain in %s", m.store.name())
	}
	is, err := meta.identity()
	if err != nil {
		return internal(err, "the metadata of the domain in %s", m.store.name())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meta = meta
	if c := m.store.capacity(is.capacity); c != m.capacity {
		m.o.Log.Info("capacity changed", "dir", m.store.name(), "from", m.capacity, "to", c)
		m.capacity = c
		m.wakeLocked()
	}
	return nil
}
