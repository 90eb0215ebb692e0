package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// dropping are the kinds of a fault for which the storage itself fails, as Linux does:
// what was pending is lost, and the next sync succeeds.
const dropping = faultfile.Syncs

// The faults that operations meet.
func faults() map[string]faultfile.Fault {
	return map[string]faultfile.Fault{
		"EIO once":          {Err: syscall.EIO},
		"EIO for ever":      {Err: syscall.EIO, Sticky: true},
		"EIO, half a write": {Err: syscall.EIO, Short: 700},
		"EIO, done":         {Err: syscall.EIO, Late: true},
		"ENOSPC once":       {Err: block.ErrNoSpace, Kinds: faultfile.Mutations},
		"ENOSPC for ever":   {Err: block.ErrNoSpace, Kinds: faultfile.Mutations, Sticky: true},
		"sync drops":        {Err: syscall.EIO, Kinds: dropping},
	}
}

// TestFaults lets every operation of the file fail in turn, while an image is opened
// that a process left which died, its ring replayed and what it had reserved
// settled, while it is used, made larger and closed: nothing is corrupted, what was
// flushed is there, and what completed unless the image stopped; and errors say
// which operation failed. Under -short it takes a stride.
func TestFaults(t *testing.T) {
	_, rng := testenv.Seed(t)
	for _, subject := range subjectsOf(sweepSize) {
		for _, ring := range []bool{false, true} {
			name := subject.name
			if ring {
				name += ", ring"
			}
			s := newSweep(t, subject.make(t), ring)
			stride := 1
			if testing.Short() {
				stride = 41
			}
			from := 1 + rng.IntN(stride)
			t.Run(name, func(t *testing.T) {
				if !subject.zstd() {
					t.Parallel()
				}
				for what, fault := range faults() {
					t.Run(what, func(t *testing.T) { s.faults(t, fault, from, stride) })
				}
			})
		}
	}
}

// faults runs the scenario with every stride-th operation failing.
func (s *sweep) faults(t *testing.T, fault faultfile.Fault, from, stride int) {
	dir := filepath.Join(t.TempDir(), "redo")
	for fault.At = from; ; fault.At += stride {
		met := false
		s.m.bubble(t, func(t *testing.T) { met = s.run(t, dir, fault) })
		if !met {
			break
		}
	}
	if stride == 1 {
		require.Greater(t, fault.At, 5, "the scenario became too small")
	}
}

// An ordeal is one scenario with one fault.
type ordeal struct {
	s     *sweep
	t     *testing.T
	fault faultfile.Fault
	file  *faultfile.File
	disk  *simdisk.Disk
	g     *guest

	mu  sync.Mutex   // the file's operations overlap
	met faultfile.Op // the operation that failed first, N 0: none
}

func (o *ordeal) hit() faultfile.Op {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.met
}

// run does the scenario with a fault and looks, without it, at what is left. It
// reports whether the fault was met.
func (s *sweep) run(t *testing.T, dir string, fault faultfile.Fault) bool {
	drops := fault.Kinds == dropping
	o := &ordeal{s: s, t: t, fault: fault, disk: s.newDisk()}
	writeFiles(t, dir, s.redo)
	o.g = newGuest(nil, s.power.clone(), s.death.clone(), 100)
	o.begin(drops)
	im, err := s.m.tryOpen(t, o.file, s.options(dir))
	var closed error
	var poisoned error
	if err == nil {
		o.g.im = im
		o.g.work(s.m.fixed())
		<-im.Settled()
		closed = im.Close()
		poisoned = im.Stats().Poisoned
	}
	o.judgeErrors(append(o.g.errs, err, closed))
	if err == nil {
		o.judgePoison(poisoned, closed)
	}
	rings := readFiles(t, dir)
	o.judgePowerCuts()
	switch {
	case err == nil && closed == nil:
		o.judgeContent(o.disk.Crash(simdisk.KeepAll), o.g.death, "closed")
		if leaks, problems := leaksOf(t, o.disk); errors.Is(fault.Err, block.ErrNoSpace) {
			require.LessOrEqual(t, leaks, s.leaks, "%s: %q", o.what("closed"), problems)
		}
	case len(rings) == 0 && !drops: // what completed is in the file
		o.judgeContent(o.disk.Crash(simdisk.KeepAll), o.g.death, "the process died, without a ring")
	case len(rings) > 0:
		o.judgeReplay(dir, poisoned)
	}
	return o.hit().N > 0
}

// begin puts the fault below the image.
func (o *ordeal) begin(drops bool) {
	if !drops {
		o.file = faultfile.New(o.disk, o.fault)
		o.file.Hook(nil, func(op faultfile.Op, err error) {
			o.mu.Lock()
			defer o.mu.Unlock()
			if err != nil && o.met.N == 0 && o.file.Injected() > 0 {
				o.met = op
			}
		})
		return
	}
	// The fault of Linux: what was pending is lost, and the next sync succeeds.
	o.file = faultfile.New(o.disk, faultfile.Fault{})
	syncs := 0
	o.file.Hook(func(op faultfile.Op) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if op.Kind&o.fault.Kinds == 0 {
			return
		}
		if syncs++; syncs == o.fault.At {
			o.met = op
			o.disk.FailSync(fmt.Errorf("injected into %v: %w", op, o.fault.Err))
		}
	}, nil)
}

func (o *ordeal) what(where string) string {
	return fmt.Sprintf("%+v met %v; %s", o.fault, o.hit(), where)
}

// judgeErrors requires that every error says what failed.
func (o *ordeal) judgeErrors(errs []error) {
	for _, err := range errs {
		if err == nil || errors.Is(err, block.ErrNoSpace) && errors.Is(o.fault.Err, block.ErrNoSpace) {
			continue
		}
		require.ErrorContains(o.t, err, "injected into", o.what("an error names its cause"))
	}
}

// judgePoison requires that a failed sync is final, and that nothing else is which
// can be waited for or be without.
func (o *ordeal) judgePoison(poisoned, closed error) {
	full := errors.Is(o.fault.Err, block.ErrNoSpace)
	switch {
	case o.fault.Sticky: // what failed behind the first one may be anything
	case poisoned != nil:
		require.Error(o.t, closed, o.what("closing"))
		require.NotZero(o.t, o.hit().Kind&^(faultfile.Discard|faultfile.Grow|faultfile.Shrink), o.what(poisoned.Error()))
		if full {
			require.NotEqual(o.t, faultfile.Zeroes, o.hit().Kind, o.what(poisoned.Error()))
		}
		require.False(o.t, o.isData(o.hit()), o.what(poisoned.Error()))
	case o.hit().Kind == faultfile.Sync, o.hit().Kind == faultfile.WriteSync && !full:
		require.Fail(o.t, "a failed sync is not final", o.what(""))
	}
	if full && !o.fault.Sticky && poisoned == nil && o.hit().Kind&(faultfile.Grow|faultfile.Shrink) == 0 {
		require.Empty(o.t, o.g.errs, o.what("space came back, so nobody fails"))
	}
}

// isData reports whether an operation was about a host cluster of the guest's.
func (o *ordeal) isData(op faultfile.Op) bool {
	if op.Kind&(faultfile.Read|faultfile.Write|faultfile.Zeroes|faultfile.Discard) == 0 {
		return false
	}
	im, err := o.s.m.tryOpen(o.t, o.disk.Crash(simdisk.KeepAll), qcow2.Options{ReadOnly: true})
	require.NoError(o.t, err)
	for off := int64(0); off < im.Info().Size; {
		extents, err := im.AppendExtents(o.t.Context(), nil, off, im.Info().Size-off)
		require.NoError(o.t, err)
		for _, e := range extents {
			if off = e.End(); e.Depth == 0 && e.Host >= 0 && op.Off < e.Host+e.Len && op.Off+op.Len > e.Host {
				return true
			}
		}
	}
	return false
}

// judgePowerCuts looks at what is left when the power is cut now.
func (o *ordeal) judgePowerCuts() {
	random := testenv.Rand(uint64(o.fault.At))
	for what, keep := range map[string]simdisk.Keep{"nothing": simdisk.DropAll, "half": simdisk.KeepRandom(random, 0.5), "all": simdisk.KeepAll} {
		o.judgeContent(o.disk.Crash(keep), o.g.power, "the power was cut, and "+what+" of what was pending landed")
	}
}

// judgeContent requires a disk without corruptions, with legal content and snapshots
// as they were.
func (o *ordeal) judgeContent(d *simdisk.Disk, legal *history, where string) {
	res, err := qcow2.Check(o.t.Context(), d, qcow2.CheckOptions{})
	require.NoError(o.t, err, o.what(where))
	require.Zero(o.t, res.Corruptions+res.CheckErrors, "%s: %q", o.what(where), res.Problems)
	im, err := o.s.m.tryOpen(o.t, d, qcow2.Options{ReadOnly: true})
	require.NoError(o.t, err, o.what(where))
	o.judgeImage(im, legal, where)
	require.NoError(o.t, im.Close())
	o.s.m.judgeSnapshots(o.t, d, o.what(where))
}

func (o *ordeal) judgeImage(im *qcow2.Image, legal *history, where string) {
	got := make([]byte, im.Info().Size)
	require.NoError(o.t, im.ReadAt(o.t.Context(), got, 0, 0), o.what(where))
	require.NoError(o.t, legal.judge(got, o.fault.Short > 0), o.what(where))
}

// named is a disk under the name of another one.
type named struct {
	*simdisk.Disk
	id string
}

func (d named) Info() block.FileInfo {
	info := d.Disk.Info()
	info.ID = d.id
	return info
}

// judgeReplay opens the image as the next process does: with the ring that is left.
func (o *ordeal) judgeReplay(dir string, poisoned error) {
	d := o.disk.Crash(simdisk.KeepAll)
	im, err := o.s.m.tryOpen(o.t, named{d, o.disk.Info().ID}, o.s.options(dir))
	var distrust *qcow2.DistrustError
	if errors.As(err, &distrust) {
		require.NotZero(o.t, o.hit().Kind&(faultfile.Read|faultfile.Mutations|faultfile.Sync), o.what("distrusted"))
		return
	}
	require.NoError(o.t, err, o.what("opening with the ring"))
	if poisoned != nil { // but not before all was durable
		o.judgeContent(o.disk.Crash(simdisk.DropAll), o.g.death, "an image that stopped is not opened as if nothing had been")
	}
	o.judgeImage(im, o.g.death, "the process died, and its ring was replayed")
	<-im.Settled()
	require.NoError(o.t, im.Close())
	o.judgeContent(d, o.g.death, "replayed and closed")
}

// TestPoison: after a failed sync nothing is acknowledged, and reads go on.
func TestPoison(t *testing.T) {
	ctx := context.Background()
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 1 << 20}))
	im, err := qcow2.Open(ctx, d, qcow2.Options{})
	require.NoError(t, err)
	require.NoError(t, im.WriteAt(ctx, []byte{42}, 0, block.FUA))
	require.NoError(t, im.WriteAt(ctx, []byte{43}, 0, 0))
	im.WaitIdle() // a reservation would take the failure, and a File latches it where this one does not
	d.FailSync(syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO, "the storage would say that all is well now")
	require.ErrorIs(t, im.WriteAt(ctx, []byte{1}, 0, 0), syscall.EIO)
	require.ErrorIs(t, im.Discard(ctx, 0, 1<<16, 0), syscall.EIO)
	require.NoError(t, im.ReadAt(ctx, make([]byte, 1), 0, 0))
	require.ErrorIs(t, im.Stats().Poisoned, syscall.EIO)
	require.ErrorIs(t, im.Close(), syscall.EIO)
}
