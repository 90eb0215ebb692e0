package qcow2_test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// TestFaults lets every operation of the file fail in turn, once or for ever,
// with an I/O error or for want of space: nothing is corrupted, and what was
// flushed is there.
func TestFaults(t *testing.T) {
	for name, fault := range map[string]faultfile.Fault{
		"EIO once":     {Err: syscall.EIO},
		"EIO for ever": {Err: syscall.EIO, Sticky: true},
		"ENOSPC once":  {Err: block.ErrNoSpace},
		"ENOSPC for ever": {Err: block.ErrNoSpace, Sticky: true,
			Kinds: faultfile.All &^ (faultfile.Read | faultfile.Sync | faultfile.Close)},
		"EIO, half a write": {Err: syscall.EIO, Short: 700},
		"EIO, done":         {Err: syscall.EIO, Late: true},
	} {
		t.Run(name, func(t *testing.T) {
			step := 1
			if testing.Short() {
				step = 11
			}
			for i := 1; ; i += step {
				fault.At = i
				if !faultScenario(t, fault) {
					require.Greater(t, i, 40, "the scenario became too small")
					return
				}
			}
		})
	}
}

// faultScenario writes with a fault in the file and then looks, without it, at
// what is left. It returns whether the fault was met.
func faultScenario(t *testing.T, fault faultfile.Fault) bool {
	ctx := context.Background()
	if fault.Sticky { // storage that stays full is waited for
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		ctx = short
	}
	d := simdisk.New(0, simdisk.Options{Foreign: true, DiscardForeign: true})
	require.NoError(t, qcow2.Create(context.Background(), d, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 512, RefcountBits: 64}))
	o := newOracle(1 << 20)
	f := faultfile.New(d, fault)
	im, err := qcow2.Open(ctx, f, qcow2.Options{ReserveBytes: 64 << 10})
	if err != nil {
		require.NotZero(t, f.Injected(), "%v", err)
		return true
	}
	p := make([]byte, 48*sector)
	for v := uint64(1); v <= 6; v++ {
		first := int64(v) * 97
		stamp(p, v)
		o.submit(first, 48, v)
		if im.WriteAt(ctx, p, first*sector, 0) != nil {
			o.fail(first, 48)
		}
		if v == 4 {
			o.submit(97, 48, 0)
			if im.Discard(ctx, 97*sector, 48*sector, 0) != nil {
				o.fail(97, 48)
			}
		}
		if v%2 == 0 && im.Flush(ctx) == nil {
			o.flush()
		}
	}
	if im.Flush(ctx) == nil {
		o.flush()
	}
	_ = im.Close()
	ctx = context.Background()
	for _, left := range []*simdisk.Disk{d.Crash(simdisk.KeepAll), d.Crash(simdisk.DropAll)} {
		res, err := qcow2.Check(ctx, left, qcow2.CheckOptions{})
		require.NoError(t, err, "%+v", fault)
		require.Zero(t, res.Corruptions+res.CheckErrors, "%+v: %q", fault, res.Problems)
		im, err := qcow2.Open(ctx, left, qcow2.Options{ReadOnly: true})
		require.NoError(t, err, "%+v", fault)
		got := make([]byte, 1<<20)
		require.NoError(t, im.ReadAt(ctx, got, 0, 0))
		if fault.Short == 0 { // half a write leaves a mix, as on any disk
			require.NoError(t, o.judge(got), "%+v", fault)
		}
		require.NoError(t, im.Close())
	}
	return f.Injected() > 0
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
	d.FailSync(syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
	require.ErrorIs(t, im.Flush(ctx), syscall.EIO, "the storage would say that all is well now")
	require.ErrorIs(t, im.WriteAt(ctx, []byte{1}, 0, 0), syscall.EIO)
	require.ErrorIs(t, im.Discard(ctx, 0, 1<<16, 0), syscall.EIO)
	require.NoError(t, im.ReadAt(ctx, make([]byte, 1), 0, 0))
	require.ErrorIs(t, im.Stats().Poisoned, syscall.EIO)
	require.ErrorIs(t, im.Close(), syscall.EIO)
}
