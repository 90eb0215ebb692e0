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
// an operation with FUA itself. After a kill every sector of a slot must hold
// what the last durable operation or a later one left there.
type ledger struct {
	slots  []*slot
	proven atomic.Int64 // operations that a FLUSH or FUA made durable
}

// The first slots are smaller than a cluster and share some; the others are
// whole clusters, so that a discard gives space back.
const (
	sectorSize                         = 512
	smallSlots, smallSize, smallStride = 256, 8 << 10, 24 << 10
	largeSlots, largeSize, largeFrom   = 48, 128 << 10, 8 * mib
	ledgerWorkers                      = 6
)

func newLedger() *ledger {
	l := &ledger{}
	add := func(off, size int64) {
		l.slots = append(l.slots, &slot{number: uint64(len(l.slots)), off: off, size: size, history: []operation{{}}})
	}
	for i := range int64(smallSlots) {
		add(i*smallStride, smallSize)
	}
	for i := range int64(largeSlots) {
		add(largeFrom+i*largeSize, largeSize)
	}
	return l
}

// run uses the disk over two connections until the server is dead, which wait
// waits for. busy is closed when three flushes have succeeded.
func (l *ledger) run(s *server, rng *rand.Rand) (busy <-chan struct{}, wait func()) {
	ctx := s.t.Context()
	clients := []*nbd.Client{s.dial(), s.dial()}
	flushed := make(chan struct{})
	var all sync.WaitGroup
	for w := range ledgerWorkers {
		random := rand.New(rand.NewPCG(rng.Uint64(), uint64(w)))
		all.Go(func() {
			for {
				i := random.IntN(len(l.slots)/ledgerWorkers)*ledgerWorkers + w
				if l.step(ctx, clients[w%2], l.slots[i], random) != nil {
					return
				}
			}
		})
	}
	all.Go(func() {
		pause := time.NewTicker(20 * time.Millisecond)
		defer pause.Stop()
		for i := 1; l.flush(ctx, clients[0]) == nil; i++ {
			if i == 3 {
				close(flushed)
			}
			<-pause.C
		}
	})
	return flushed, all.Wait
}

// step does one operation on a slot of the caller's.
func (l *ledger) step(ctx context.Context, c *nbd.Client, s *slot, rng *rand.Rand) error {
	var f block.Flags
	if rng.IntN(8) == 0 {
		f = block.FUA
	}
	var err error
	switch dice := rng.IntN(20); {
	case dice < 16:
		s.begin(operation{version: s.seq() + 1})
		err = c.WriteAt(ctx, s.content(s.seq()), s.off, f)
	case dice < 18:
		s.begin(operation{discard: true})
		err = c.Discard(ctx, s.off, s.size, f)
	default:
		s.begin(operation{})
		err = c.WriteZeroes(ctx, s.off, s.size, f|block.MayUnmap)
	}
	if err != nil {
		return err
	}
	l.proven.Add(s.end(f.Has(block.FUA)))
	return nil
}

// flush makes durable what has been answered on any connection.
func (l *ledger) flush(ctx context.Context, c *nbd.Client) error {
	answered := make([]uint64, len(l.slots))
	for i, s := range l.slots {
		answered[i] = s.lastAnswered()
	}
	if err := c.Flush(ctx); err != nil {
		return err
	}
	for i, s := range l.slots {
		l.proven.Add(s.durable(answered[i]))
	}
	return nil
}

// verify reads every slot, and fails at the first sector that holds what it may
// not. It returns how many sectors hold something newer than what is durable.
func (l *ledger) verify(t *testing.T, c *nbd.Client) (newer int) {
	t.Helper()
	for _, s := range l.slots {
		got := make([]byte, s.size)
		require.NoError(t, c.ReadAt(t.Context(), got, s.off, 0))
		for i := int64(0); i < s.size; i += sectorSize {
			durable, ok := s.allows(i, got[i:i+sectorSize])
			if !ok {
				t.Fatalf("slot %d, byte %d of the disk: found version %d (%s...), allowed are %+v",
					s.number, s.off+i, versionOf(got[i:]), hex(got[i:]), s.history)
			}
			if !durable {
				newer++
			}
		}
	}
	return newer
}

// An operation leaves its version in every sector, or zeroes; a discard zeroes
// or what was there.
type operation struct {
	version uint64 // 0: zeroes
	discard bool
}

// A slot is a range of the disk and what was done to it.
type slot struct {
	number    uint64
	off, size int64

	mu sync.Mutex // guards what follows
	// history begins with the last operation that is durable, and not a
	// discard; in the beginning with the zeroes of a new disk.
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
		if n := seq - s.first; !s.history[n].discard {
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
		if op.version != 0 {
			s.sector(want, op.version, i)
		}
		if bytes.Equal(want, p) {
			return n == 0, true
		}
	}
	return false, false
}
