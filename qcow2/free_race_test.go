package qcow2_test

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// TestDelayedPunchErasesAReusedCluster (cloud-hypervisor PR 8624): a discard, a flush
// and allocating writes at once, in a pool with little more space than what the discard
// gives, in every order in which they can begin and reach the file. The punch of the
// old cluster must not come behind its reuse.
func TestDelayedPunchErasesAReusedCluster(t *testing.T) {
	d, used := fullDisk(t)
	dir := t.TempDir()
	run := func(t *testing.T, writes int) func(choice []int) []int {
		return func(choice []int) (from []int) {
			synctest.Test(t, func(t *testing.T) { from = delayedPunch(t, d, used, writes, dir, choice) })
			return from
		}
	}
	t.Run("full pool, all orders", func(t *testing.T) {
		orders := allOrders(run(t, 1))
		t.Logf("%d orders", orders)
		require.Greater(t, orders, 50)
	})
	t.Run("one cluster left, some of 20,000 orders", func(t *testing.T) {
		_, rng := testenv.Seed(t)
		someOrders(rng, scaled(160), run(t, 2))
	})
}

func delayedPunch(t *testing.T, d *simdisk.Disk, used int64, writes int, dir string, choice []int) (from []int) {
	const cs = 4096
	ctx := t.Context()
	p := &pool{Disk: simdisk.NewDisk(d.State(), simdisk.Options{Foreign: true, DiscardForeign: true}), limit: d.Size(), more: make(chan struct{})}
	f := faultfile.New(p, faultfile.Fault{})
	im, err := qcow2.Open(ctx, f, qcow2.Options{CommitInterval: -1, RedoDir: dir})
	require.NoError(t, err)
	<-im.Settled()
	now, cancel := context.WithDeadline(ctx, time.Now())
	defer cancel()
	data := [][]byte{bytes.Repeat([]byte{2}, cs), bytes.Repeat([]byte{3}, cs)}
	require.ErrorIs(t, im.WriteAt(now, data[0], used, 0), block.ErrNoSpace, "which makes the ring")
	im.WaitIdle()
	p.raise(d.Size() + int64(writes-1)*cs)

	refcounts := refcountBlock(t, d)
	i := interleave(f, func(op faultfile.Op) bool {
		// Syncs and writes of counts are one at a time.
		return op.Kind&faultfile.Mutations != 0 && (op.Off < refcounts || op.Off >= refcounts+cs)
	})
	var requests sync.WaitGroup
	for n, request := range []func() error{
		func() error { return im.Discard(ctx, 0, 2*cs, 0) },
		func() error { return im.Flush(ctx) },
		func() error { return im.WriteAt(ctx, data[0], used, 0) },
		func() error { return im.WriteAt(ctx, data[1], used+cs, 0) },
	}[:2+writes] {
		requests.Go(func() {
			i.begin(n)
			if err := request(); err != nil {
				t.Error(err)
			}
		})
	}
	from = i.run(choice)
	requests.Wait()
	want := make([]byte, 3*cs)
	copy(want, slices.Concat(data[:writes]...))
	copy(want[2*cs:], bytes.Repeat([]byte{1}, cs))
	look := func(im *qcow2.Image, when string) {
		got := make([]byte, 3*cs)
		require.NoError(t, im.ReadAt(ctx, got[:2*cs], used, 0))
		require.NoError(t, im.ReadAt(ctx, got[2*cs:], 2*cs, 0))
		requireSame(t, want, got, when)
	}
	look(im, fmt.Sprint("order ", choice))
	require.NoError(t, im.Flush(ctx))
	left := p.Crash(simdisk.DropAll)
	require.NoError(t, im.Close())
	requireClean(t, p)
	after, err := qcow2.Open(ctx, left, qcow2.Options{ReadOnly: true})
	require.NoError(t, err)
	look(after, fmt.Sprint("after a power cut, order ", choice))
	return from
}

// fullDisk is the file of a closed image that has no space left: the guest bytes below
// used are 1.
func fullDisk(t *testing.T) (d *simdisk.Disk, used int64) {
	const cs = 4096
	synctest.Test(t, func(t *testing.T) {
		p := newPool(40 * cs)
		require.NoError(t, qcow2.Create(t.Context(), p, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: cs}))
		for before := int64(-1); before < used; { // what was reserved for tables is left at first
			before = used
			im, err := qcow2.Open(t.Context(), p, qcow2.Options{ReserveBytes: 2 * cs})
			require.NoError(t, err)
			for {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				err := im.WriteAt(ctx, bytes.Repeat([]byte{1}, cs), used, 0)
				cancel()
				if err != nil {
					require.ErrorIs(t, err, block.ErrNoSpace)
					break
				}
				used += cs
			}
			require.NoError(t, im.Close())
		}
		d = p.Crash(simdisk.KeepAll)
	})
	require.Greater(t, used, int64(20*cs))
	return d, used
}

// refcountBlock is the offset of the only refcount block.
func refcountBlock(t *testing.T, d *simdisk.Disk) int64 {
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	b := make([]byte, h.ClusterSize())
	_, err = d.ReadAt(b, h.RefcountTableOffset)
	require.NoError(t, err)
	table := make([]format.RefcountTableEntry, len(b)/8)
	format.DecodeTable(table, b)
	require.NotZero(t, table[0])
	require.Zero(t, table[1])
	return table[0].Offset()
}
