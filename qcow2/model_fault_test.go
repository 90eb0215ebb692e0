package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestModelMeetsFaults: several clients at once are in the middle of their requests
// when an operation of the file fails: nothing is corrupted, what completed is there
// if the image did not stop, and in the host's cache if it did, and what failed is
// done, or a part of it, or not.
func TestModelMeetsFaults(t *testing.T) {
	seed, _ := testenv.Seed(t)
	all := subjectsOf(modelSize)
	met, stopped := 0, 0
	sequences := scaled(720)
	for i := range sequences {
		s := all[i%len(all)]
		m := s.make(t)
		rng := testenv.Rand(seed + uint64(i))
		c := newModelCase(rng, s)
		end := phasesOf(c.ops)[0][1] - 1
		c.ops = c.ops[:end]
		kinds := faults()
		what := []string{"EIO once", "EIO for ever", "EIO, half a write", "EIO, done", "ENOSPC once", "ENOSPC for ever", "sync drops"}[rng.IntN(7)]
		fault := kinds[what]
		fault.At = 1 + rng.IntN(rng.IntN(200)+1)
		s.bubble(t, func(t *testing.T) {
			hit, poisoned, err := c.runFaulty(t, m, fault)
			if err != nil {
				t.Fatalf("seed %d, sequence %d, %s at %d: %v\n%s", seed, i, what, fault.At, err, c)
			}
			if hit {
				met++
			}
			if poisoned {
				stopped++
			}
		})
	}
	t.Logf("%d cases met their fault, %d of them stopped", met, stopped)
	require.Greater(t, met, sequences/2)
	require.Greater(t, stopped, sequences/10)
}

// runFaulty runs the operations with a fault, and looks at what is left.
func (c modelCase) runFaulty(t *testing.T, m *made, fault faultfile.Fault) (hit, poisoned bool, err error) {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	require.NoError(t, err)
	r := &model{t: t, c: c, m: m, dir: dir, faulty: true}
	f := restless(m.disk)
	if fault.Kinds == dropping {
		var mu sync.Mutex
		n := 0
		f.Hook(func(op faultfile.Op) {
			mu.Lock()
			defer mu.Unlock()
			if op.Kind&dropping == 0 {
				return
			}
			if n++; n == fault.At%20+1 {
				hit = true
				m.disk.FailSync(fmt.Errorf("injected into %v: %w", op, fault.Err))
			}
		}, nil)
	} else {
		f.SetFault(fault)
	}
	o := r.options()
	im, err := m.tryOpen(t, beginning(f, c.later), o)
	closed := err
	var stopped error
	if err == nil {
		r.im = im
		err = r.clients(c.ops)
		closed, stopped = im.Close(), im.Stats().Poisoned
	}
	hit = hit || f.Injected() > 0
	var wrong *modelError
	if errors.As(err, &wrong) {
		return hit, stopped != nil, err
	}
	return hit, stopped != nil, r.judgeFaulty(fault, closed, stopped)
}

// clients lets the clients do their requests at once. They go on behind errors.
func (r *model) clients(ops []modelOp) error {
	clients := map[int][]modelOp{}
	for _, o := range ops {
		clients[o.client] = append(clients[o.client], o)
	}
	var mu sync.Mutex
	var errs error
	var wg sync.WaitGroup
	for _, mine := range clients {
		wg.Go(func() {
			for _, o := range mine {
				if err := r.do(o); err != nil {
					mu.Lock()
					errs = errors.Join(errs, fmt.Errorf("%v: %w", o, err))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errs
}

// judgeFaulty looks at what is left.
func (r *model) judgeFaulty(fault faultfile.Fault, closed, stopped error) error {
	for _, keep := range []simdisk.Keep{simdisk.DropAll, simdisk.KeepAll} {
		left := r.m.disk.Crash(keep)
		res, err := qcow2.Check(context.Background(), left, qcow2.CheckOptions{})
		if err != nil {
			return err
		}
		if res.Corruptions+res.CheckErrors > 0 {
			return fmt.Errorf("check: %q", res.Problems)
		}
		r.m.judgeSnapshots(r.t, left, "with a fault")
	}
	o := r.options()
	ringed := len(readRing(r.ringDir())) > 0
	if stopped != nil && (ringed || fault.Kinds == dropping) {
		return nil // the next process does not trust it
	}
	if !ringed {
		o.RedoDir = ""
	}
	im, err := r.m.tryOpen(r.t, r.m.disk.Crash(simdisk.KeepAll), o)
	if err != nil {
		if distrust := (*qcow2.DistrustError)(nil); closed != nil && errors.As(err, &distrust) {
			return nil
		}
		return fmt.Errorf("open (after %w): %w", closed, err)
	}
	if err = r.adopt(im); err != nil {
		err = fmt.Errorf("%w (%w)", err, errors.Join(errors.New("closed"), closed))
	}
	return errors.Join(err, im.Close())
}
