//go:build linux

package main_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/nbd"
)

// A ledger is a client that knows what may be on a disk after its server was
// killed. The beginning of the disk is divided into slots. Each has a history of
// operations, to which the worker that owns it adds one before it is sent. A
// FLUSH that succeeds makes durable what had been answered before it was sent,
// an operation with FUA itself. The death of the server loses nothing that was
// answered, flushed or not: a guest goes on with that. After a kill every sector of a
// slot must hold what the last answered operation or a later one left there.
type ledger struct {
	base     uint64       // the pattern of the backing file below, 0: there is none
	proven   atomic.Int64 // operations that a FLUSH or FUA made durable
	survived atomic.Int64 // operations that were answered, not flushed, and not lost
	answered atomic.Int64 // operations

	mu    sync.Mutex // guards slots, which only becomes longer
	slots []*slot
	fresh int64 // how many of them lie where nothing was before
}

// The first slots are smaller than a cluster and share some; the next are whole
// clusters, so that a discard gives space back. Behind them each write into a fresh
// slot takes a cluster, and many a table.
const (
	sectorSize                         = 512
	smallSlots, smallSize, smallStride = 256, 8 << 10, 24 << 10
	largeSlots, largeSize, largeFrom   = 48, 128 << 10, 8 * mib
	fixedSlots                         = smallSlots + largeSlots
	ledgerSize                         = largeFrom + largeSlots*largeSize
	freshFrom, freshSize, freshStride  = 2 * gib, 16 << 10, 24 * mib
	ledgerWorkers, ledgerConnections   = 8, 4
)

func newLedger(base uint64) *ledger {
	l := &ledger{base: base}
	for i := range int64(smallSlots) {
		l.add(i*smallStride, smallSize, operation{initial: true})
	}
	for i := range int64(largeSlots) {
		l.add(largeFrom+i*largeSize, largeSize, operation{initial: true})
	}
	return l
}

func (l *ledger) add(off, size int64, first operation) *slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &slot{number: uint64(len(l.slots)), base: l.base, off: off, size: size, history: []operation{first}}
	l.slots = append(l.slots, s)
	return s
}

func (l *ledger) all() []*slot {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.slots
}

// addFresh adds a slot where nothing was before, nil if a disk of size has no more.
func (l *ledger) addFresh(size int64) *slot {
	l.mu.Lock()
	off := freshFrom + l.fresh*freshStride
	l.fresh++
	l.mu.Unlock()
	if off+freshSize > size {
		return nil
	}
	return l.add(off, freshSize, operation{})
}

// run uses the disk over some connections until the server is dead, which wait waits
// for; with flushes, or without any. busy is closed when it is in the middle of it.
func (l *ledger) run(s *server, rng *rand.Rand, flushes bool) (busy <-chan struct{}, wait func()) {
	ctx := s.t.Context()
	var clients []*nbd.Client
	for range ledgerConnections {
		clients = append(clients, s.dial())
	}
	size := clients[0].Info().Size
	middle := make(chan struct{})
	var once sync.Once
	begun := l.answered.Load()
	var all sync.WaitGroup
	for w := range ledgerWorkers {
		random := rand.New(rand.NewPCG(rng.Uint64(), uint64(w)))
		all.Go(func() {
			for l.work(ctx, clients[w%len(clients)], w, size, random) == nil {
				if !flushes && l.answered.Load() > begun+200 {
					once.Do(func() { close(middle) })
				}
			}
		})
	}
	if flushes {
		all.Go(func() {
			pause := time.NewTicker(20 * time.Millisecond)
			defer pause.Stop()
			for i := 1; l.flush(ctx, clients[0]) == nil; i++ {
				if i == 3 {
					once.Do(func() { close(middle) })
				}
				<-pause.C
			}
		})
	}
	return middle, all.Wait
}

// work does one operation of worker w on a disk of size bytes.
func (l *ledger) work(ctx context.Context, c *nbd.Client, w int, size int64, rng *rand.Rand) error {
	if rng.IntN(8) == 0 {
		if s := l.addFresh(size); s != nil {
			return l.write(ctx, c, s, 0)
		}
	}
	i := rng.IntN(fixedSlots/ledgerWorkers)*ledgerWorkers + w
	return l.step(ctx, c, l.all()[i], rng)
}

func (l *ledger) write(ctx context.Context, c *nbd.Client, s *slot, f block.Flags) error {
	s.begin(operation{version: s.seq() + 1})
	return l.end(s, c.WriteAt(ctx, s.content(s.seq()), s.off, f), f)
}

func (l *ledger) end(s *slot, err error, f block.Flags) error {
	if err != nil {
		return err
	}
	l.answered.Add(1)
	l.proven.Add(s.end(f.Has(block.FUA)))
	return nil
}

// step does one operation on a slot of the caller's.
func (l *ledger) step(ctx context.Context, c *nbd.Client, s *slot, rng *rand.Rand) error {
	var f block.Flags
	if rng.IntN(8) == 0 {
		f = block.FUA
	}
	switch dice := rng.IntN(20); {
	case dice < 16:
		return l.write(ctx, c, s, f)
	case dice < 18:
		s.begin(operation{discard: true})
		return l.end(s, c.Discard(ctx, s.off, s.size, f), f)
	default:
		s.begin(operation{})
		return l.end(s, c.WriteZeroes(ctx, s.off, s.size, f|block.MayUnmap), f)
	}
}

// flush makes durable what has been answered on any connection.
func (l *ledger) flush(ctx context.Context, c *nbd.Client) error {
	slots := l.all()
	answered := make([]uint64, len(slots))
	for i, s := range slots {
		answered[i] = s.lastAnswered()
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	for i, s := range slots {
		l.proven.Add(s.durable(answered[i]))
	}
	return nil
}

// serverDied notes that the server is dead, and nobody is waiting for it any more:
// what it had answered is there.
func (l *ledger) serverDied() {
	for _, s := range l.all() {
		l.survived.Add(s.durable(s.lastAnswered()))
	}
}

// verify reads every slot, and fails at the first sector that holds what it may
// not. It returns how many sectors hold what was not answered. Between the slots
// everything is as it was in the beginning.
func (l *ledger) verify(t *testing.T, c *nbd.Client) (newer int) {
	t.Helper()
	for _, s := range l.all() {
		got := make([]byte, s.size)
		require.NoError(t, c.ReadAt(t.Context(), got, s.off, 0))
		for i := int64(0); i < s.size; i += sectorSize {
			certain, ok := s.allows(i, got[i:i+sectorSize])
			if !ok {
				t.Fatalf("slot %d, byte %d of the disk: found version %d (%s...), allowed are %+v",
					s.number, s.off+i, versionOf(got[i:]), hex(got[i:]), s.history)
			}
			if !certain {
				newer++
			}
		}
	}
	gap := make([]byte, smallStride-smallSize)
	for i := int64(1); i < smallSlots; i++ {
		off := i*smallStride - int64(len(gap))
		require.NoError(t, c.ReadAt(t.Context(), gap, off, 0))
		want := make([]byte, len(gap))
		if l.base != 0 {
			want = patterned(l.base, off, len(gap))
		}
		require.True(t, bytes.Equal(want, gap), "bytes %d to %d, to which nobody has written", off, off+int64(len(gap)))
	}
	return newer
}

// An operation leaves its version in every sector, or zeroes; a discard zeroes
// or what was there.
type operation struct {
	version  uint64 // 0: zeroes
	discard  bool
	initial  bool // none: what was there in the beginning
	answered bool // otherwise the server died meanwhile, and it may be done or not
}

// A slot is a range of the disk and what was done to it.
type slot struct {
	number    uint64
	base      uint64 // as that of the ledger
	off, size int64

	mu sync.Mutex // guards what follows
	// history begins with the last operation that is certain to be there, and not
	// a discard; in the beginning with what a new disk has.
	history  []operation
	first    uint64 // sequence number of history[0]
	answered uint64 // sequence number of the last operation that was answered
}

// seq is the number of the last operation.
func (s *slot) seq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seqLocked()
}

func (s *slot) seqLocked() uint64 { return s.first + uint64(len(s.history)) - 1 }

func (s *slot) begin(op operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = append(s.history, op)
}

// end notes that the last operation was answered, and returns how many became
// durable.
func (s *slot) end(durable bool) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answered = s.seqLocked()
	s.history[len(s.history)-1].answered = true
	if !durable {
		return 0
	}
	return s.durableLocked(s.answered)
}

func (s *slot) lastAnswered() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

// durable forgets what can no longer be found since operation seq is durable.
func (s *slot) durable(seq uint64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durableLocked(seq)
}

func (s *slot) durableLocked(seq uint64) int64 {
	for ; seq > s.first; seq-- {
		if n := seq - s.first; s.history[n].answered && !s.history[n].discard {
			s.history, s.first = append([]operation(nil), s.history[n:]...), seq
			return int64(n)
		}
	}
	return 0
}

// content is what a write of this version writes.
func (s *slot) content(version uint64) []byte {
	p := make([]byte, s.size)
	for i := int64(0); i < s.size; i += sectorSize {
		s.sector(p[i:i+sectorSize], version, i)
	}
	return p
}

// sector fills p with the sector at byte i of the slot: the version, and a
// pattern made of version and place.
func (s *slot) sector(p []byte, version uint64, i int64) {
	copy(p, patterned(version, s.off+i, sectorSize))
	binary.LittleEndian.PutUint64(p, version)
}

func versionOf(p []byte) uint64 { return binary.LittleEndian.Uint64(p) }

// allows reports whether p may be found at byte i of the slot, and whether that
// is what the durable operation left there.
func (s *slot) allows(i int64, p []byte) (durable, ok bool) {
	want := make([]byte, sectorSize)
	for n, op := range s.history {
		clear(want)
		switch {
		case op.version != 0:
			s.sector(want, op.version, i)
		case op.initial && s.base != 0:
			copy(want, patterned(s.base, s.off+i, sectorSize))
		}
		if bytes.Equal(want, p) {
			return n == 0, true
		}
	}
	return false, false
}
