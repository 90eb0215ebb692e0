package qcow2

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// Options are the choices when an image is opened. The zero value opens it for
// reading and writing.
type Options struct {
	ReadOnly bool
	// IgnoreDiscard makes Discard do nothing; zeroing may still unmap.
	IgnoreDiscard bool
	// CacheBytes bounds the memory for L2 tables and for refcount blocks, each;
	// 0 means 32 MiB.
	CacheBytes int64
	// ReserveBytes bounds how much is reserved ahead of use; 0 means 64 MiB.
	ReserveBytes int64
	// Logger receives one line per state change; nil discards them.
	Logger *slog.Logger
}

const (
	defaultCacheBytes   = 32 << 20
	defaultReserveBytes = 64 << 20
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
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// An Image is an open QCOW2 image. It is a [block.Device].
type Image struct {
	file block.File
	opts Options
	log  *slog.Logger
	geo  format.Geometry // does not change

	// ctx ends when the image closes: what the engine does by itself stops.
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup // goroutines of the engine

	poisoned atomic.Pointer[error]
	syncing  sync.Mutex // held by the sync in progress
	closed   atomic.Bool
	// requests is held shared by every request in progress, so that Close can
	// wait for them.
	requests sync.RWMutex

	// completed counts mutations, raised after the bytes are written and before
	// the request returns. durable is the value of completed that the last
	// commit covers. "Is it durable?" is always this comparison.
	completed, durable atomic.Uint64

	allocating semaphore // see the package comment
	commits    committer
	region     sync.RWMutex
	tableIO    sync.Mutex
	refcountIO sync.Mutex

	mu      sync.Mutex // guards all below
	header  *format.Header
	l1      []format.L1Entry
	l1Dirty map[int]struct{} // numbers of 512-byte sectors of the L1 table
	l2      *sliceCache[format.L2Entry]
	seen    map[int64]struct{} // L2 slices that were validated when they were loaded
	refs    refcounts
	// badSlices counts the L2 slices with bad entries.
	badSlices int
	alloc     allocator
	gone      []run // clusters that no entry names any more; the next commit frees them
	// listAt is where the list of reserved clusters is in the file, 0 if the
	// image has none. suspects are what it listed at open, nil when that is
	// settled. See settle.go.
	listAt   int64
	listed   []run // by the last list, without suspects
	suspects *clusterSet
	settled  chan struct{} // closed when settling has ended
}

// Open opens the image in f. It reads the header, the L1 table and the refcount
// table, nothing else, and opens no other file. The Image does not close f.
//
// A feature that is missing here is refused by an [UnsupportedError] and the
// image is left as it is.
func Open(ctx context.Context, f block.File, o Options) (*Image, error) {
	im := &Image{file: f, opts: o.withDefaults(), l1Dirty: map[int]struct{}{}, seen: map[int64]struct{}{}}
	im.log = im.opts.Logger
	im.allocating, im.commits.token = newSemaphore(), newSemaphore()
	im.ctx, im.cancel = context.WithCancel(context.Background())
	if f.Info().ReadOnly && !o.ReadOnly {
		return nil, fmt.Errorf("open image for writing: %w", block.ErrReadOnly)
	}
	h, err := ReadHeader(f)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	im.header, im.geo = h, h.Geometry
	// A process that died before this one may have left completed writes in the
	// host's cache. The first flush covers them, as if they were ours.
	im.completed.Store(1)
	if err := im.load(ctx); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	return im, nil
}

// load decides whether the image can be opened and reads its tables.
func (im *Image) load(ctx context.Context) error {
	if err := checkFeatures(im.header, !im.opts.ReadOnly); err != nil {
		return err
	}
	if err := im.loadL1(); err != nil {
		return err
	}
	im.l2 = newSliceCache[format.L2Entry](im.opts.CacheBytes / 8)
	if im.opts.ReadOnly {
		return nil
	}
	if err := im.loadRefcountTable(); err != nil {
		return err
	}
	if err := im.checkMetadataOverlap(); err != nil {
		return err
	}
	if err := im.startAllocator(ctx); err != nil {
		return err
	}
	if err := im.clearAutoclear(); err != nil {
		return err
	}
	im.startSettling()
	return nil
}

// poison latches the first error after which nothing may be reported as
// written, and returns what every later mutation returns.
func (im *Image) poison(err error) error {
	err = fmt.Errorf("image stopped accepting writes: %w", err)
	if im.poisoned.CompareAndSwap(nil, &err) {
		im.log.Error("image stopped accepting writes; what was not flushed may be lost: check the storage, then open the image again", "cause", err)
	}
	return *im.poisoned.Load()
}

// sync makes everything that was written before it durable, on behalf of what is
// being done. An error poisons. A Sync that fails may have dropped what another
// one, beside it or behind it, covers and does not complain about: so they run one
// at a time, and none is believed once one has failed.
func (im *Image) sync(what string) error {
	im.syncing.Lock()
	defer im.syncing.Unlock()
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	if err := im.file.Sync(); err != nil {
		return im.poison(fmt.Errorf("sync, to %s: %w", what, err))
	}
	return nil
}

// enter begins a request; im.requests.RUnlock ends it.
func (im *Image) enter(mutates bool) error {
	im.requests.RLock()
	err := im.usable(mutates)
	if err != nil {
		im.requests.RUnlock()
	}
	return err
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

// size of the virtual disk in bytes.
func (im *Image) size() int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.header.Size
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

// Close waits for the requests in progress, of which those that wait for space
// are cancelled, commits, gives reserved space back and shrinks the file to the
// image's end. It does not close the file.
func (im *Image) Close() error {
	if !im.closed.CompareAndSwap(false, true) {
		return block.ErrClosed
	}
	im.cancel()
	im.requests.Lock()
	defer im.requests.Unlock()
	im.tasks.Wait()
	if im.opts.ReadOnly {
		return nil
	}
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	if err := im.commit(); err != nil {
		return err
	}
	return im.giveBack()
}

// readFull reads len(p) bytes; bytes behind the file's end are an error.
func readFull(f block.File, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	return n, errors.Join(fmt.Errorf("at offset %d: expected %d bytes, found %d", off, len(p), n), err)
}
