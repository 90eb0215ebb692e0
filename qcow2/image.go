package qcow2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/lockorder"
	"tidemark/internal/mutant"
	"tidemark/internal/redo"
	"tidemark/qcow2/format"
)

// Options are the choices when an image is opened. The zero value opens it for
// reading and writing.
type Options struct {
	ReadOnly bool
	// Backing is what clusters read from that the image does not have; it
	// reads zero behind its end. An image that names a backing file is not
	// opened without it. The Image only reads it, and does not close it.
	Backing block.Device
	// RedoDir is a directory, best on a tmpfs, for the ring that lets completed
	// writes survive the death of the process; "" means none: then the tables
	// that a write changes are written before it completes, which is slower. It is
	// this file's alone: a copy of an image that was open names the same ring.
	RedoDir string
	// DropRedo removes a ring that was left behind instead of replaying it, and
	// forgets that the file was not to be trusted; after a [DistrustError], when the
	// host's cache of the file has been dropped.
	DropRedo bool
	// RedoSlots is how many changed entries the ring holds between two commits;
	// 0 means 16,384, which is 512 KiB.
	RedoSlots int
	// IgnoreDiscard makes Discard do nothing; zeroing may still unmap.
	IgnoreDiscard bool
	// CacheBytes bounds the memory for all metadata together; 0 means 64 MiB, in which
	// 768 GiB of a disk are mapped with clusters of 64 KiB. Where the tables that must be
	// there take more than half of it (small clusters, and a disk that is large), half of
	// it comes on top.
	CacheBytes int64
	// ReserveBytes bounds how much is reserved at a time, ahead of use; 0 means
	// 64 MiB. The next reservation is made while the last one is used, so that less
	// than twice as much is reserved.
	ReserveBytes int64
	// CommitInterval is how long what completed may stay volatile if nobody
	// flushes; 0 means 5 s, a negative value for ever.
	CommitInterval time.Duration
	// Settling is told how far what Open began by itself is (see Settled), in bytes of the
	// disks of which the tables have been read; nil tells nobody.
	Settling func(done, total int64)
	// Logger receives one line per state change; nil discards them.
	Logger *slog.Logger
}

const (
	defaultCacheBytes     = 64 << 20
	defaultReserveBytes   = 64 << 20
	defaultCommitInterval = 5 * time.Second
	// minReserveBytes is the first reservation; it doubles while it is used up
	// quickly.
	minReserveBytes = 8 << 20
)

func (o Options) withDefaults() Options {
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.ReserveBytes <= 0 {
		o.ReserveBytes = defaultReserveBytes
	}
	if o.CommitInterval == 0 {
		o.CommitInterval = defaultCommitInterval
	}
	if o.RedoSlots <= 0 {
		o.RedoSlots = redo.DefaultSlots
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// countShare: of the memory for metadata one part in so many is for reference counts,
// which are looked at a batch at a time.
const countShare = 64

// The ranks of the locks, outermost first; see the package comment.
const (
	_ lockorder.Rank = iota
	rankTableIO
	rankRefcountIO
	rankReaper
	rankTables
	rankSlice
	rankMu
	rankRefs
	rankDirty
)

// An Image is an open QCOW2 image. It is a [block.Device].
type Image struct {
	file        block.File
	opts        Options
	log         *slog.Logger
	geo         format.Geometry // does not change
	compression uint8           // does not change
	snapshots   []format.Snapshot
	direct      bool         // I/O of file is never in a page cache
	backingEnd  atomic.Int64 // size of the backing file in bytes, 0 without one
	diskSize    atomic.Int64 // header.Size, for who holds no lock

	// ctx ends when the image closes: what the engine does by itself stops. alive ends
	// then, and when the image stops accepting writes: nobody waits for space any more.
	ctx, alive   context.Context
	cancel, stop context.CancelFunc
	tasks        sync.WaitGroup // goroutines of the engine
	// syncing is held by the Sync in progress. One that fails may have dropped
	// what another one, beside it, covers and does not complain about.
	syncing sync.Mutex
	// durables knows the durable writes in progress: one that fails may have dropped what
	// a Sync beside it covers.
	durables *grace
	taskMu   sync.Mutex // orders the start of a task and the closing

	poisoned atomic.Pointer[error]
	closed   atomic.Bool
	// requests is held shared by what is in progress and knows no host cluster
	// (flushes, resizes), so that Close can wait for it. Requests for data are
	// in grace.
	requests sync.RWMutex
	grace    *grace

	// completed counts mutations, raised after the bytes are written and before
	// the request returns. durable is the value of completed that the last
	// commit covers. "Is it durable?" is always this comparison, or that of
	// lastCommit, the number of the last commit, with a slice's epoch.
	completed, durable, lastCommit atomic.Uint64
	// barrier: data was written that an entry in memory names and no Sync
	// covers; the entry must not be written before one.
	barrier     atomic.Bool
	unlogged    atomic.Int64 // changes in progress that are not in a ring
	pushing     atomic.Bool  // tables are written in the background
	writingBack atomic.Bool  // used-up reservations are written back
	commitArmed atomic.Bool  // a commit will begin by itself

	allocating semaphore // see the package comment
	copying    semaphore
	commits    committer
	copies     claims
	tableIO    lockorder.Mutex
	refcountIO lockorder.Mutex
	reaper     lockorder.Mutex

	tab   tables
	dirty dirtyList
	refs  refcounts

	// ring is the redo ring, nil if there is none (yet). See log.go.
	ring     atomic.Pointer[redo.Ring]
	logTried bool // whoever holds allocating reads and sets it
	l1Filled bool // likewise; see fillL1

	mu     lockorder.Mutex // guards all below
	header *format.Header
	alloc  allocator
	gone   []run // clusters that no entry in memory names any more; see reap.go
	going  bool  // the commit in progress has some that are neither in gone nor parted
	parted []parted
	reaped chan struct{} // closed when the reaper has ended, nil if there is none
	// listed is what the last list of reserved clusters had, without owed: that is
	// what it had at open, until that is settled. See settle.go.
	listed   []run
	owed     []format.ClusterRange
	suspects *clusterSet   // nil when they are settled
	settled  chan struct{} // closed when settling has ended
}

// Open opens the image in f. It reads the header, the L1 tables and the refcount
// table, nothing else, and opens no other file. The Image does not close f.
//
// A feature that is missing here is refused by an [UnsupportedError] and the
// image is left as it is.
func Open(ctx context.Context, f block.File, o Options) (*Image, error) {
	im := newImage(f, o)
	if f.Info().ReadOnly && !o.ReadOnly {
		return nil, fmt.Errorf("open image for writing: %w", block.ErrReadOnly)
	}
	h, err := ReadHeader(f)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	im.header, im.geo, im.compression = h, h.Geometry, h.CompressionType
	im.diskSize.Store(h.Size)
	// A process that died before this one may have left completed writes in the
	// host's cache. The first flush covers them, as if they were ours.
	im.completed.Store(1)
	if err := im.open2(ctx); err != nil {
		im.cancel()
		return nil, fmt.Errorf("open image: %w", err)
	}
	return im, nil
}

func newImage(f block.File, o Options) *Image {
	im := &Image{file: f, opts: o.withDefaults(), direct: f.Info().Direct, grace: newGrace(), durables: newGrace()}
	im.log = im.opts.Logger
	im.allocating, im.copying, im.commits.token = newSemaphore(), newSemaphore(), newSemaphore()
	im.ctx, im.cancel = context.WithCancel(context.Background())
	im.alive, im.stop = context.WithCancel(im.ctx)
	im.tab.l1Dirty = map[int]struct{}{}
	im.tab.loading = map[int64]*sliceLoad{}
	if o.Backing != nil {
		im.backingEnd.Store(o.Backing.Info().Size)
	}
	for m, r := range map[*lockorder.Mutex]lockorder.Rank{
		&im.tableIO: rankTableIO, &im.refcountIO: rankRefcountIO, &im.reaper: rankReaper, &im.tab.mu: rankTables,
		&im.mu: rankMu, &im.refs.mu: rankRefs, &im.dirty.mu: rankDirty,
	} {
		m.SetRank(r)
	}
	return im
}

// open2 decides whether the image can be opened and reads its tables.
func (im *Image) open2(ctx context.Context) error {
	if err := checkFeatures(im.header, im.opts); err != nil {
		return err
	}
	if err := im.loadL1(); err != nil {
		return err
	}
	im.tab.mostDirty = max((im.opts.CacheBytes-im.opts.CacheBytes/countShare)/im.sliceBytes(), minSlices) / 2
	if im.opts.ReadOnly {
		im.boundCache()
		return nil
	}
	if err := im.loadRefcountTable(); err != nil {
		return err
	}
	if err := im.listMetadata(); err != nil {
		return err
	}
	im.boundCache()
	if err := im.startAllocator(ctx); err != nil {
		return err
	}
	if err := im.mayTrust(); err != nil {
		return err
	}
	im.findSuspects()
	redone, err := im.redoLog()
	if err != nil {
		return err
	}
	if !redone {
		if err := im.clearAutoclear(); err != nil {
			return err
		}
	}
	im.startSettling()
	return nil
}

// enter begins what knows no host cluster; exit ends it.
func (im *Image) enter(mutates bool) error {
	im.requests.RLock()
	err := im.usable(mutates)
	if err != nil {
		im.requests.RUnlock()
	}
	return err
}

func (im *Image) exit() { im.requests.RUnlock() }

// begin begins a request for n bytes at off; grace.leave ends it.
func (im *Image) begin(mutates bool, verb string, off, n int64) (ticket, error) {
	t := im.grace.enter(off)
	err := im.usable(mutates)
	if mutates && mutant.On("completed-counted-early") {
		im.completed.Add(1)
	}
	if err == nil {
		if err = block.CheckRange(off, n, im.size()); err == nil {
			return t, nil
		}
		err = fmt.Errorf("%s %d bytes at %d: %w", verb, n, off, err)
	}
	im.grace.leave(t)
	return t, err
}

func (im *Image) usable(mutates bool) error {
	if im.closed.Load() {
		return block.ErrClosed
	}
	if !mutates {
		return nil
	}
	if im.opts.ReadOnly {
		return block.ErrReadOnly
	}
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	return nil
}

// Info describes the disk.
func (im *Image) Info() block.DeviceInfo {
	rw := !im.opts.ReadOnly
	return block.DeviceInfo{
		Size:     im.size(),
		MinBlock: 1, PreferredBlock: int(min(im.geo.ClusterSize(), 64<<10)),
		ReadOnly: !rw,
		CanFlush: true, CanFUA: rw, CanDiscard: rw, CanZero: rw, CanFastZero: rw,
		MultiConn: true,
	}
}

// Header is a copy of the image's header.
func (im *Image) Header() format.Header {
	im.mu.Lock()
	defer im.mu.Unlock()
	return *im.header
}

// readFull reads len(p) bytes; bytes behind the file's end are an error.
func readFull(f block.File, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	return n, errors.Join(fmt.Errorf("at offset %d: expected %d bytes, found %d", off, len(p), n), err)
}
