package qcow2

import (
	"cmp"
	"fmt"
	"slices"

	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// A staged write is a copy of a piece of metadata on its way to the file.
type staged struct {
	off  int64
	data []byte
}

func writeStaged(write func(p []byte, off int64) (int, error), writes []staged) error {
	slices.SortFunc(writes, func(a, b staged) int { return cmp.Compare(a.off, b.off) })
	for _, w := range writes {
		if _, err := write(w.data, w.off); err != nil {
			return err
		}
	}
	return nil
}

// A push is one writing of the dirty tables.
type push struct {
	slices []*slice
	whole  []staged // slices of tables that are copies: before everything else
	tables []staged // other L2 slices
	l1     []staged
}

// pushTables writes the dirty L2 slices and L1 sectors, without a Sync behind
// them (C2, C3; W4, D2 where there is no ring). What it wrote is in the host's
// cache and need not be in the ring any more. One at a time, so that an older copy
// never overwrites a newer one; whoever had to wait may find that his changes were
// written by the one before him. commits says that this begins a commit.
func (im *Image) pushTables(commits bool) error {
	im.tableIO.Lock()
	defer im.tableIO.Unlock()
	return im.pushTablesLocked(commits)
}

// pushTablesLocked needs tableIO.
func (im *Image) pushTablesLocked(commits bool) error {
	if err := im.poisoned.Load(); err != nil {
		return *err // what is not dirty any more may be what could not be written
	}
	logged := im.logHead()
	if mutant.On("ring-trimmed-early") {
		im.trimLog(logged)
	}
	p := im.stage(commits)
	if err := im.writePush(p); err != nil && !mutant.On("table-write-error-ignored") {
		// The slices stay as they are, so that reads go on to find them.
		return im.poison(fmt.Errorf("write L2 and L1 tables: %w", err))
	}
	for _, s := range p.slices {
		s.mu.Lock()
		s.writing = false
		s.mu.Unlock()
	}
	im.dirty.count.Add(-int64(len(p.slices)))
	im.trimLog(logged)
	return nil
}

// stage copies what is dirty. The L1 sectors and the list of slices are of one
// moment: an L1 entry that names a copied table comes with all of the copy.
func (im *Image) stage(commits bool) *push {
	p := &push{}
	t := &im.tab
	t.mu.Lock()
	p.l1 = im.stageL1Locked()
	d := &im.dirty
	d.mu.Lock()
	p.slices, d.slices = d.slices, nil
	if commits {
		d.commits.Add(1)
	}
	d.mu.Unlock()
	t.mu.Unlock()
	for _, s := range p.slices {
		s.mu.Lock()
		w := staged{s.off, s.encodeLocked(im.geo)}
		if s.whole {
			p.whole = append(p.whole, w)
		} else {
			p.tables = append(p.tables, w)
		}
		s.dirty, s.writing, s.whole = false, true, false
		s.mu.Unlock()
	}
	return p
}

// writePush writes what was staged. What a pointer on disk will reach, and is not
// durable yet, comes first, with a Sync behind it: tables that are copies, and the
// data of copied clusters, which was written before its entry was published. The
// barrier is looked at after the copies were made, so it covers every entry in
// them.
func (im *Image) writePush(p *push) error {
	barrier := im.barrier.Swap(false)
	if mutant.On("barrier-skipped") {
		barrier = false
	}
	if len(p.whole) > 0 {
		if err := writeStaged(im.file.WriteAt, p.whole); err != nil {
			return err
		}
		barrier = !mutant.On("copied-table-unsynced")
	}
	steps.At("C2")
	if barrier {
		if err := im.syncUnless(false); err != nil {
			return err
		}
	}
	if err := writeStaged(im.file.WriteAt, p.tables); err != nil {
		return err
	}
	steps.At("C3")
	return writeStaged(im.file.WriteAt, p.l1)
}

// stageL1Locked copies the dirty sectors of the L1 table. Its caller holds tab.mu.
func (im *Image) stageL1Locked() []staged {
	t := &im.tab
	if len(t.l1Dirty) == 0 {
		return nil
	}
	im.mu.Lock()
	at := im.header.L1Offset
	im.mu.Unlock()
	writes := make([]staged, 0, len(t.l1Dirty))
	const per = format.SectorSize / 8
	for n := range t.l1Dirty {
		sector := make([]byte, format.SectorSize)
		format.EncodeTable(sector, t.l1[n*per:min((n+1)*per, len(t.l1))])
		writes = append(writes, staged{at + int64(n)*format.SectorSize, sector})
	}
	clear(t.l1Dirty)
	return writes
}
