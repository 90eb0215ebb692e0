package crashlab

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"

	"tidemark/internal/block"
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
)

// A depth says how much is done with a state.
type depth struct {
	external bool // another program's check too
	onward   bool // it is written to, cut again, and mended
	again    bool // recovering is cut, and judged
	cuts     int  // how often the power was cut: never if the process died
	// beside is what the process left beside the image when it died.
	beside folder
}

// A judge holds states against the oracle. It is used by one goroutine.
type judge struct {
	engine  Engine
	options simdisk.Options
	path    string // where states are exported to
	beside  string // directory whose files survive the process, "" for none
	rng     *rand.Rand
	again   func(hash uint64) // is told of every recovery that was cut
	buffer  []byte
	next    version // of what is written to recovered disks
	counts  counts
}

// counts are what a judge has done.
type counts struct {
	external, onward, again int64
}

func newJudge(s Setup, dir string) *judge {
	j := &judge{engine: s.Engine, options: s.Options, path: filepath.Join(dir, "state"), again: func(uint64) {}}
	if s.BesideIn != "" {
		j.beside = filepath.Join(dir, "beside")
		_ = os.Mkdir(j.beside, 0o700) // a failure is an error of whatever is done in it
	}
	return j
}

// begin makes what the judge does next depend on nothing but its arguments.
func (j *judge) begin(seed, n uint64) {
	j.rng, j.next = rand.New(rand.NewPCG(seed, n+1)), 1<<30
}

// judge returns what is wrong with a state, nil if nothing is.
func (j *judge) judge(ctx context.Context, s simdisk.State, al *allowance, d depth) *Fault {
	if err := d.beside.restore(j.beside); err != nil {
		return asFault(err, 1, "restore what is beside the image")
	}
	disk := simdisk.NewDisk(s, j.options)
	if f := j.check(ctx, disk, s, d.external); f != nil {
		return f
	}
	if d.again {
		rec := record.New(disk, record.Options{})
		content, f := j.recover(ctx, rec, al)
		if f != nil {
			return f
		}
		if f := j.recoverAgain(ctx, s, rec.Log(), content); f != nil {
			return f
		}
	} else if _, f := j.recover(ctx, disk, al); f != nil {
		return f
	}
	if !d.onward {
		return nil
	}
	return j.onward(ctx, disk, d.cuts+1)
}

// check is what can be said of a state without opening it.
func (j *judge) check(ctx context.Context, disk *simdisk.Disk, s simdisk.State, external bool) *Fault {
	found, err := j.engine.Check(ctx, disk, false)
	switch {
	case err != nil:
		return asFault(err, 1, "check")
	case found.Corruptions > 0:
		return faultf(1, "the check calls it corrupt: %s", found.Details)
	}
	if j.engine.Audit != nil {
		if err := j.engine.Audit(ctx, disk); err != nil {
			return asFault(err, 5, "audit")
		}
	}
	if !external || j.engine.External == nil {
		return nil
	}
	j.counts.external++
	if err := s.Export(j.path); err != nil {
		return asFault(err, 1, "export")
	}
	defer os.Remove(j.path)
	theirs, err := j.engine.External(ctx, j.path)
	switch {
	case err != nil:
		return asFault(err, 1, "the other program's check")
	case theirs.class() != found.class():
		return faultf(1, "the checks disagree: ours says %s (%s), the other program %s (%s)", found.class(), found.Details, theirs.class(), theirs.Details)
	case theirs.Corruptions > 0:
		return faultf(1, "the other program calls it corrupt: %s", theirs.Details)
	}
	return nil
}

// recover opens the image, lets it settle, reads it, and closes it. What it
// returns is used again by the next call.
func (j *judge) recover(ctx context.Context, f block.File, al *allowance) ([]byte, *Fault) {
	d, err := j.engine.Open(ctx, f, j.beside)
	if err != nil {
		return nil, asFault(err, 1, "open")
	}
	content, fault := j.look(ctx, d, al)
	if fault == nil {
		if err := d.Settle(ctx); err != nil {
			fault = asFault(err, 1, "settle")
		}
	}
	if err := d.Close(); err != nil && fault == nil {
		fault = asFault(err, 1, "close")
	}
	return content, fault
}

// look reads the disk and judges what it reads.
func (j *judge) look(ctx context.Context, d Disk, al *allowance) ([]byte, *Fault) {
	size := d.Info().Size
	if int64(cap(j.buffer)) < size {
		j.buffer = make([]byte, size)
	}
	content := j.buffer[:size]
	if err := d.ReadAt(ctx, content, 0, 0); err != nil {
		return nil, asFault(err, 2, "read")
	}
	if err := al.judge(content); err != nil {
		return nil, asFault(err, 2, "read")
	}
	return content, nil
}

// recoverAgain cuts the recovery that log shows, from s on, and recovers from
// that: it must be as good as without.
func (j *judge) recoverAgain(ctx context.Context, s simdisk.State, log record.Log, content []byte) *Fault {
	al := exactly(append([]byte(nil), content...))
	seen := map[uint64]bool{s.Hash(): true}
	w := newWalk(s, j.options)
	for n, e := range log {
		ch := w.step(e)
		with, ok := ch.index(w.model)
		if !ok {
			continue
		}
		for c := range choices(w.model.Pending(), with, Limits{All: 3, Random: 10}, j.rng) {
			again := c.state(w.model)
			if seen[again.Hash()] {
				continue
			}
			seen[again.Hash()] = true
			j.counts.again++
			j.again(again.Hash())
			disk := simdisk.NewDisk(again, j.options)
			f := j.check(ctx, disk, again, false)
			if err := folder(nil).restore(j.beside); err != nil {
				return asFault(err, 1, "cut what is beside the image")
			}
			if f == nil {
				_, f = j.recover(ctx, disk, al)
			}
			if f == nil {
				continue
			}
			if f.Oracle == 2 { // what had been read is not read any more
				f.Oracle = 6
			}
			f.Text = "recovering was cut behind event " + describeEvent(log, n) + ", with " + c.describe(w.model.Pending()) + ", and then: " + f.Text
			return f
		}
	}
	return nil
}

// onward uses a recovered disk again: reads what was read before, writes here and
// there, flushes, and cuts the power so that nothing else is left.
func (j *judge) onward(ctx context.Context, disk *simdisk.Disk, cuts int) *Fault {
	j.counts.onward++
	want := append([]byte(nil), j.buffer...)
	d, err := j.engine.Open(ctx, disk, j.beside)
	if err != nil {
		return asFault(err, 6, "open a second time")
	}
	size := d.Info().Size
	want = want[:size]
	if _, f := j.look(ctx, d, exactly(want)); f != nil {
		f.Oracle = max(f.Oracle, 6)
		f.Text = "opened a second time: " + f.Text
		_ = d.Close() // the fault is what matters
		return f
	}
	err = j.write(ctx, d, want)
	if err == nil {
		err = d.Flush(ctx)
	}
	cut := disk.Crash(simdisk.DropAll)
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return asFault(err, 1, "write to it and flush")
	}
	if err := folder(nil).restore(j.beside); err != nil {
		return asFault(err, 1, "cut what is beside the image")
	}
	if f := j.mended(ctx, cut, exactly(want), cuts); f != nil {
		f.Text = "written to after the recovery, flushed, and cut again: " + f.Text
		return f
	}
	return nil
}

// write writes to a few places of a disk that holds want.
func (j *judge) write(ctx context.Context, d Disk, want []byte) error {
	sectors := int64(len(want)) / sector
	for range 6 {
		first := j.rng.Int64N(sectors)
		n := min(1+j.rng.Int64N(1+j.rng.Int64N(24)), sectors-first)
		p := want[first*sector : (first+n)*sector]
		j.next++
		stamp(p, first, j.next)
		if err := d.WriteAt(ctx, p, first*sector, 0); err != nil {
			return err
		}
	}
	return nil
}

// mended recovers a disk that holds exactly what is allowed, mends its leaks, and
// expects that nothing is left to be mended.
func (j *judge) mended(ctx context.Context, disk *simdisk.Disk, al *allowance, cuts int) *Fault {
	if f := j.check(ctx, disk, disk.State(), false); f != nil {
		return f
	}
	if _, f := j.recover(ctx, disk, al); f != nil {
		return f
	}
	for mend := range 2 {
		found, err := j.engine.Check(ctx, disk, mend == 0)
		switch {
		case err != nil:
			return asFault(err, 1, "mend")
		case found.Corruptions > 0, found.Leaks > 0 && mend == 1:
			return faultf(1, "it is not clean when the leaks are mended: %s", found.Details)
		}
	}
	if j.engine.Limit == nil {
		return nil
	}
	switch limit, err := j.engine.Limit(disk, cuts); {
	case err != nil:
		return asFault(err, 5, "limit")
	case disk.Size() > limit:
		return faultf(5, "the image takes %d bytes after %d power cuts; its bound is %d", disk.Size(), cuts, limit)
	}
	return nil
}
