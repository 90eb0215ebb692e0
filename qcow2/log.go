package qcow2

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

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
		return im.fatalUnlessNoSpace(err)
	}
	if err := im.file.Sync(); err != nil {
		return im.poison(fmt.Errorf("sync: %w", err))
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

// leaveLog lets go of the ring and leaves it to the next process.
func (im *Image) leaveLog() {
	if r := im.ring.Swap(nil); r != nil {
		_ = r.Close()
	}
}

// endLog is L4.
func (im *Image) endLog() error {
	r := im.ring.Swap(nil)
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

// redoLog replays the ring that a process has left behind, and commits that. It
// reports whether the ring goes on to be used.
func (im *Image) redoLog() (bool, error) {
	e, ok := im.header.FindExtension(format.ExtRedo)
	if !ok || im.opts.RedoDir == "" {
		return false, nil
	}
	id, err := format.DecodeRedo(e.Data)
	if err != nil {
		return false, nil // of another version: not ours
	}
	if im.header.Autoclear&format.AutoclearRedo == 0 {
		return false, im.dropLog(id)
	}
	r, records, err := redo.Open(im.opts.RedoDir, id)
	if errors.Is(err, redo.ErrNone) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if im.opts.DropRedo {
		return false, r.Remove()
	}
	if r.Distrusted() {
		return false, errors.Join(&DistrustError{}, r.Close())
	}
	im.ring.Store(r) // so that what poisons from here on is noted in it
	todo, err := im.planReplay(records)
	var other *misfitError
	if errors.As(err, &other) {
		im.log.Warn("the redo ring does not fit the image, which somebody else has changed; what was completed and not flushed may be lost", "error", err)
		im.ring.Store(nil)
		return false, r.Remove()
	}
	if err == nil {
		err = im.replay(todo)
		// Among the entries may be some of X3, whose bytes are in the host's cache and
		// nowhere else.
		im.barrier.Store(!mutant.On("replayed-without-barrier"))
	}
	if err == nil && !mutant.On("replayed-uncommitted") {
		err = im.commit()
	}
	if err != nil {
		im.leaveLog()
		return false, fmt.Errorf("replay what a process that died had completed: %w", err)
	}
	r.Trim(r.Head())
	im.logTried = true
	im.log.Info("replayed what a process that died had completed", "records", len(records))
	return true, nil
}

// dropLog removes a ring that is not the image's any more, because another program has
// opened that for writing, and says so if something is lost with it.
func (im *Image) dropLog(id uint64) error {
	r, records, err := redo.Open(im.opts.RedoDir, id)
	if err != nil {
		return nil // there is none, or none that says anything
	}
	if len(records) > 0 {
		im.log.Warn("another program has opened the image for writing since a process died that served it; what that one had completed and not flushed may be lost", "records", len(records))
	}
	return r.Remove()
}

// A misfitError says that a ring is not of the image as it is. Other errors while
// it is replayed say nothing about it, and leave it to the next opening.
type misfitError struct{ what string }

func (e *misfitError) Error() string { return e.what }

func misfit(format string, args ...any) error { return &misfitError{fmt.Sprintf(format, args...)} }

// A replayPlan is the last state of every L1 and L2 entry that a ring has.
type replayPlan struct {
	tables  map[int64]int64 // L1 index -> host cluster
	entries map[int64]format.L2Pair
}

// planReplay reads the records and checks them against the image: what they name
// must be counted once, as the process had left it.
func (im *Image) planReplay(records []redo.Record) (replayPlan, error) {
	p := replayPlan{map[int64]int64{}, map[int64]format.L2Pair{}}
	for _, r := range records {
		a := int64(r.A & (1<<recordKindShift - 1))
		switch r.A >> recordKindShift {
		case recordTable:
			p.tables[a] = int64(r.B)
		case recordEntry:
			p.entries[a] = format.L2Pair{Entry: format.L2Entry(r.B), Sub: format.Subclusters(r.C)}
		default:
			return p, misfit("record of kind %d: expected %d or %d", r.A>>recordKindShift, recordEntry, recordTable)
		}
	}
	for i, c := range p.tables {
		if i >= int64(len(im.tab.l1)) {
			return p, misfit("L1 entry %d: expected less than %d", i, len(im.tab.l1))
		}
		if err := im.replayable(c); err != nil {
			return p, err
		}
	}
	for gc, e := range p.entries {
		if gc >= im.geo.Clusters(im.size()) {
			return p, misfit("guest cluster %d: expected less than %d", gc, im.geo.Clusters(im.size()))
		}
		if _, made := p.tables[im.l1Index(gc)]; !made && !im.tab.l1[im.l1Index(gc)].Copied() {
			return p, misfit("guest cluster %d: expected an L2 table of the disk's own", gc)
		}
		kind := e.Entry.Kind(im.geo)
		if kind == format.Compressed || im.geo.SubclusterKind(e.Entry, e.Sub, 0) == format.Invalid {
			return p, misfit("entry 0x%016x of guest cluster %d: expected one that we write", uint64(e.Entry), gc)
		}
		if e.Entry.Offset() == 0 {
			continue
		}
		if err := im.replayable(e.Entry.Offset() >> im.geo.ClusterBits); err != nil {
			return p, err
		}
	}
	return p, nil
}

// replayable returns an error unless cluster c is counted once.
func (im *Image) replayable(c int64) error {
	im.refs.mu.Lock()
	defer im.refs.mu.Unlock()
	n, err := im.refcountLocked(c)
	if err == nil && n != 1 {
		err = misfit("cluster %d: counted %d times, expected 1", c, n)
	}
	return err
}

// replay puts the plan into the tables in memory.
func (im *Image) replay(p replayPlan) error {
	for i, c := range p.tables {
		if err := im.replayTable(i, c); err != nil {
			return err
		}
	}
	for gc, e := range p.entries {
		if err := im.replayEntry(gc, e); err != nil {
			return err
		}
	}
	return nil
}

func (im *Image) replayTable(i, c int64) error {
	old := im.tab.l1[i]
	if old.Offset() == c<<im.geo.ClusterBits {
		return nil
	}
	im.addMetadata(c)
	if old != 0 {
		_, err := im.copyTable(i, c, &change{})
		return err
	}
	im.tab.mu.Lock()
	defer im.tab.mu.Unlock()
	im.setL1Locked(i, c)
	// What the process had written into it may be there; the rest reads zero.
	for _, n := range im.slicesOfTable(i) {
		im.tab.seen[n] = struct{}{}
	}
	return nil
}

func (im *Image) replayEntry(gc int64, p format.L2Pair) error {
	s, err := im.slice(gc)
	if err != nil {
		return err
	}
	if s == nil || s.shared.Load() {
		return fmt.Errorf("guest cluster %d: expected an L2 table of the disk's own", gc)
	}
	_, i := im.sliceOf(gc)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.loadLocked(i)
	if old == p {
		return nil
	}
	delete(s.bad, i)
	s.storeLocked(i, p)
	im.markDirtyLocked(s)
	if !samePlace(old, p) {
		im.mu.Lock()
		defer im.mu.Unlock()
		im.unlinkPairLocked(old)
	}
	return nil
}
