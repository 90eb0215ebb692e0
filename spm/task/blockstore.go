package task

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"unsafe"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// A BlockStore keeps records in the fixed slots of a device, such as the logical
// volume "master" of a volume group. The layout is in blockformat.go.
//
// A slot has two copies, and the valid one of the higher generation counts. Save
// writes the other one and flushes it; so a crash in the middle, with any of its
// sectors old or new, leaves the old record or the new. Delete writes a copy
// without a record in the same way. After a write that has failed nobody knows
// what its copy is; the next one goes to the same place, so that the copy that
// counted is not touched before another is durable.
//
// Load flushes the device before it looks: what it finds may be in a cache only,
// and the next Save writes over the older copy.
//
// A device of 16 MiB has 511 slots.
type BlockStore struct {
	f   block.File
	h   header
	log *slog.Logger

	mu     sync.Mutex // guards the slots, not the I/O: a slot has one user at a time
	slots  []slot
	of     map[uuid.UUID]int
	loaded bool
}

// A slot is a place for a record.
type slot struct {
	used       bool
	generation uint64 // the highest that was written, or tried
	good       int    // the copy that counts; -1: none is valid
}

var _ Store = (*BlockStore)(nil)

// FormatBlockStore makes an empty store on a device, whatever it holds. It is
// durable when it returns; a crash leaves what was there, or the new store.
func FormatBlockStore(f block.File) error {
	h := header{slots: int(min(f.Size()/slotSize-1, slotsMax)), id: uuid.New()}
	if h.slots < 1 {
		return fmt.Errorf("format a store of tasks: the device has %d bytes, expected at least %d", f.Size(), 2*slotSize)
	}
	p, err := alignedTo(f, h.encode())
	if err == nil {
		_, err = f.WriteAtSync(p, 0)
	}
	if err != nil {
		return fmt.Errorf("format a store of tasks: %w", err)
	}
	return nil
}

// OpenBlockStore returns the store on a device; the error is ErrUnformatted if
// there is none. It does not close the device.
func OpenBlockStore(f block.File, log *slog.Logger) (*BlockStore, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	p, err := alignedTo(f, make([]byte, sectorSize))
	if err != nil {
		return nil, err
	}
	if _, err := f.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("store of tasks: %w", err)
	}
	h, err := decodeHeader(p, f.Size())
	if err != nil {
		return nil, err
	}
	return &BlockStore{f: f, h: h, log: log}, nil
}

// Load is described at Store.
func (s *BlockStore) Load(ctx context.Context) ([]Record, error) {
	if err := s.f.Sync(); err != nil {
		return nil, fmt.Errorf("store of tasks: %w", err)
	}
	p, err := alignedTo(s.f, make([]byte, slotSize))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.slots, s.of, s.loaded = make([]slot, s.h.slots), map[uuid.UUID]int{}, false
	var records []Record
	for i := range s.slots {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if _, err := s.f.ReadAt(p, slotAt(i)); err != nil {
			return nil, fmt.Errorf("store of tasks: slot %d: %w", i, err)
		}
		r, err := s.readLocked(i, p)
		switch {
		case err != nil:
			s.log.Warn("not a task, left alone", "slot", i, "err", err)
		case r.ID != uuid.Nil:
			records = append(records, r)
			s.of[r.ID] = i
		}
	}
	s.loaded = true
	return records, nil
}

// readLocked finds out what is in a slot. A record without an id is none.
func (s *BlockStore) readLocked(i int, p []byte) (Record, error) {
	at := &s.slots[i]
	best, good, bad, err := choose(p, s.h, i)
	at.good, at.generation = good, best.generation
	switch {
	case bad == 2:
		at.used = true
		return Record{}, fmt.Errorf("both copies are damaged: %w", err)
	case good < 0 || len(best.record) == 0:
		return Record{}, nil // a first Save that was torn has not happened
	}
	at.used = true
	r, err := decode(best.record)
	if err != nil {
		return Record{}, err
	}
	if other, twice := s.of[r.ID]; twice {
		return Record{}, fmt.Errorf("slot %d has task %s already", other, r.ID)
	}
	return r, nil
}

// choose returns the copy of a slot that counts, good is its number or -1; bad
// copies are ours and not valid, and err says why.
func choose(p []byte, h header, slot int) (best copyOf, good, bad int, err error) {
	good = -1
	for k := range 2 {
		c, ours, cerr := decodeCopy(p[k*copySize:(k+1)*copySize], h, slot)
		switch {
		case cerr != nil:
			bad++
			err = errors.Join(err, cerr)
		case ours && (good < 0 || c.generation > best.generation):
			best, good = c, k
		}
	}
	return best, good, bad, err
}

// Save is described at Store.
func (s *BlockStore) Save(_ context.Context, r Record) error {
	p, err := encode(r)
	if err != nil {
		return err
	}
	i, err := s.slotFor(r.ID)
	if err != nil {
		return err
	}
	return s.write(i, p)
}

// Delete is described at Store.
func (s *BlockStore) Delete(_ context.Context, id uuid.UUID) error {
	s.mu.Lock()
	i, there := s.of[id]
	s.mu.Unlock()
	if !there {
		return nil
	}
	if err := s.write(i, nil); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
	s.slots[i].used = false
	return nil
}

// slotFor returns the slot of a task, or a free one, which is its from now on.
func (s *BlockStore) slotFor(id uuid.UUID) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.loaded {
		return 0, errors.New("store of tasks: nothing may be saved before Load")
	}
	if i, there := s.of[id]; there {
		return i, nil
	}
	for i := range s.slots {
		if !s.slots[i].used {
			s.slots[i].used = true
			s.of[id] = i
			return i, nil
		}
	}
	return 0, fmt.Errorf("store of tasks: all %d slots are used: %w", len(s.slots), block.ErrNoSpace)
}

// write makes p what a slot has.
func (s *BlockStore) write(i int, p []byte) error {
	s.mu.Lock()
	at := &s.slots[i]
	at.generation++
	c := copyOf{at.generation, p}
	k := 0
	if at.good == 0 {
		k = 1
	}
	s.mu.Unlock()
	b, err := alignedTo(s.f, c.encode(s.h, i))
	if err != nil {
		return err
	}
	if _, err := s.f.WriteAtSync(b, slotAt(i)+int64(k)*copySize); err != nil {
		return fmt.Errorf("store of tasks: slot %d: %w", i, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at.good = k
	return nil
}

func slotAt(i int) int64 { return int64(1+i) * slotSize }

// alignedTo returns p in memory and of a length that f takes, with zeroes behind.
func alignedTo(f block.File, p []byte) ([]byte, error) {
	align := max(f.Info().Align, sectorSize)
	if align > copySize || align&(align-1) != 0 {
		return nil, fmt.Errorf("store of tasks: the device wants an alignment of %d bytes, expected a power of two up to %d", align, copySize)
	}
	n := (len(p) + align - 1) / align * align
	b := make([]byte, n+align)
	if over := int(uintptr(unsafe.Pointer(unsafe.SliceData(b))) & uintptr(align-1)); over != 0 {
		b = b[align-over:]
	}
	copy(b, p)
	return b[:n:n], nil
}
