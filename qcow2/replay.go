package qcow2

import (
	"errors"
	"fmt"
	"slices"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/internal/redo"
	"tidemark/qcow2/format"
)

// LeftBehind reports whether the last writer of the image in f, which nobody has open for
// writing, has left something in dir for the next one: a redo ring, or a mark that what
// reads return may not be on the disk. Something else may be there too: it was left over an
// image that is gone, and the storage calls this one as it did that.
func LeftBehind(f block.File, dir string) (bool, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return false, err
	}
	if h.Autoclear&format.AutoclearRedo != 0 {
		return true, nil
	}
	return redo.Marked(dir, f.Info().ID)
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
// must be counted once, as the process had left it, and be no metadata. An image that
// was put in the place of the ring's own has its number, and other clusters.
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
		named := im.tab.l1[i].Offset() == c<<im.geo.ClusterBits // it is on disk already
		if err := im.replayable(c, named); err != nil {
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
		if err := im.replayable(e.Entry.Offset()>>im.geo.ClusterBits, false); err != nil {
			return p, err
		}
	}
	return p, nil
}

// replayable returns an error unless cluster c is counted once, and holds no metadata
// if it is not a table.
func (im *Image) replayable(c int64, table bool) error {
	if _, meta := slices.BinarySearch(im.refs.metadata, c); c < 1 || c >= im.alloc.openEnd || meta && !table {
		return misfit("cluster %d: expected one before %d that holds no metadata", c, im.alloc.openEnd)
	}
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
		im.tab.seen.add(n)
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
