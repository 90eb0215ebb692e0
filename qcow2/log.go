package qcow2

import (
	"crypto/rand"
	"encoding/binary"
	"errors"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/internal/redo"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// The redo ring keeps what has been published in memory and is not in the file
// yet, so that the next process in the same boot finds it (rule 9). It says
// nothing after a power cut; then the ring is gone, and what was not flushed may
// be.
//
// The image says which ring is its own: a number in a private header extension,
// believed while a private autoclear bit is set. A program that does not know the
// bit clears it when it opens the image for writing (specification,
// autoclear_features), so a ring is never replayed over what others wrote.
//
//	L1  write the number, Sync; make the ring; set the bit, Sync
//	L2  every change of an entry or of the L1 table is stored in the ring
//	    before another request can see it, and build on it: its slice is marked
//	    dirty, the record stored, then the entry changed
//	L3  what has been written to the tables in the file, synced or not, is
//	    trimmed from the ring
//	L4  closing clears the bit, Sync, and removes the ring
//
// A record is the state of an entry after a change. Only the last one for an
// entry counts: the file may hold any of those before it.

// A change is what one mutation does to the tables. Its owner publishes with it
// and finishes it when it has let go of all locks.
type change struct {
	ring *redo.Ring // nil: there is none, so the tables are written instead
	room int        // records that may still be stored
	made bool       // something was changed
	// frees: it takes no data, so it may have the tables that data leaves to it.
	frees bool
}

const (
	recordEntry = 1 + iota // A: guest cluster, B and C: the pair
	recordTable            // A: L1 index, B: host cluster of the L2 table
)

const recordKindShift = 56

// startChange begins a change of at most n entries and a table; false: the ring
// is full, and writing the tables will make room.
func (im *Image) startChange(n int64) (change, bool) {
	r := im.ring.Load()
	if r == nil {
		im.unlogged.Add(1)
		return change{}, true
	}
	if r.Crowded() {
		im.pushSoon()
	}
	room := int(min(n+1, int64(max(r.Slots()/4, 3))))
	return change{ring: r, room: room}, r.Reserve(room)
}

// waitChange is startChange for who can wait.
func (im *Image) waitChange(n int64) (change, error) {
	for {
		c, ok := im.startChange(n)
		if ok {
			return c, nil
		}
		if err := im.pushTables(false); err != nil {
			return c, err
		}
	}
}

// finish ends a change: what was published survives the process from here on.
func (im *Image) finish(c *change) error {
	if c.ring != nil {
		c.ring.Release(c.room)
		return nil
	}
	defer im.unlogged.Add(-1)
	if !c.made || mutant.On("tables-left-to-commit") {
		return nil
	}
	return im.pushTables(false)
}

// survive is for a request that has written through entries which others may have
// published and not finished: without a ring, the tables are written first. Where that
// has failed, for whomever, the image has stopped before unlogged says that nobody is
// left.
func (im *Image) survive() error {
	if im.unlogged.Load() != 0 && im.dirty.count.Load() != 0 {
		return im.pushTables(false)
	}
	if err := im.poisoned.Load(); err != nil {
		return *err
	}
	return nil
}

// entries bounds how many entries may be changed at once.
func (c *change) entries(want int64) int64 {
	if c.ring == nil {
		return want
	}
	return min(want, int64(c.room-1))
}

// entry stores that guest cluster gc is about to have a new entry. Its caller holds
// the slice and has marked it dirty: a commit that trims the record waits for the
// entry.
func (c *change) entry(gc int64, p format.L2Pair) {
	c.made = true
	c.store(recordEntry, gc, uint64(p.Entry), uint64(p.Sub))
}

// table stores that L1 entry i is about to name cluster at. Its caller holds tab.mu.
func (c *change) table(i, at int64) {
	c.made = true
	c.store(recordTable, i, uint64(at), 0)
}

func (c *change) store(kind uint64, a int64, b, d uint64) {
	if c.ring != nil {
		c.room--
		c.ring.Append(redo.Record{A: kind<<recordKindShift | uint64(a), B: b, C: d})
		steps.At("L2")
	}
}

// logHead is up to where the ring was filled.
func (im *Image) logHead() uint64 {
	if r := im.ring.Load(); r != nil {
		return r.Head()
	}
	return 0
}

// trimLog forgets what has been written. Its caller holds tableIO.
func (im *Image) trimLog(upTo uint64) {
	if r := im.ring.Load(); r != nil {
		r.Trim(upTo)
		steps.At("L3")
	}
}

// startLog makes the ring (L1), once. Its caller holds allocating. An image that
// cannot have one does without.
func (im *Image) startLog() error {
	if im.opts.RedoDir == "" || im.logTried || im.geo.Version < 3 {
		return nil
	}
	im.logTried = true
	data := make([]byte, format.RedoLen)
	if _, err := rand.Read(data); err != nil {
		return err
	}
	format.PutRedo(data, binary.BigEndian.Uint64(data))
	id, _ := format.DecodeRedo(data)
	ok, err := im.putExtension(format.ExtRedo, data, false)
	if err != nil || !ok {
		im.logTried = !errors.Is(err, block.ErrNoSpace) // then again, with the next reservation
		return im.fatalUnlessNoSpace(err)
	}
	if err := im.syncUnless(false); err != nil {
		return err
	}
	r, err := redo.Create(im.opts.RedoDir, id, im.opts.RedoSlots)
	if err != nil {
		im.log.Warn("no redo ring: tables are written before each write completes, which is slower", "error", err)
		return nil
	}
	if err := im.switchHeader(func(h *format.Header) { h.Autoclear |= format.AutoclearRedo }); err != nil {
		return errors.Join(err, r.Remove())
	}
	steps.At("L1")
	im.ring.Store(r)
	return nil
}

// takeLog takes the ring away from everybody: who trims it holds tableIO, and who
// appends to it is in progress.
func (im *Image) takeLog() *redo.Ring {
	im.tableIO.Lock()
	defer im.tableIO.Unlock()
	return im.ring.Swap(nil)
}

// leaveLog lets go of the ring and leaves it to the next process.
func (im *Image) leaveLog() {
	if r := im.takeLog(); r != nil {
		_ = r.Close()
	}
}

// endLog is L4.
func (im *Image) endLog() error {
	r := im.takeLog()
	if r == nil {
		return nil
	}
	if err := im.switchHeader(func(h *format.Header) { h.Autoclear &^= format.AutoclearRedo }); err != nil {
		_ = r.Close()
		return err
	}
	steps.At("L4")
	if err := r.Remove(); err != nil {
		im.log.Warn("the redo ring stays behind; it is not used any more", "error", err)
	}
	return nil
}
