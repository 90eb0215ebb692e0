//go:build linux

package main_test

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// A fullHost is a manager of one small domain that has no space left but for its
// reserve.
type fullHost struct {
	*crowdClient
	ballast []string // images that have a chunk each
}

// newFullHost makes the domain, what is to be in it, and fills the rest.
func newFullHost(t testing.TB, capacity int64, populate func(*fullHost)) *fullHost {
	t.Helper()
	h := newVDSMHost(t)
	require.NoError(t, h.proc.Signal(syscall.SIGTERM))
	require.NoError(t, h.proc.Wait(t, stopLimit))
	h.args = append(h.args, "--patience", "2m")
	h.start()
	h.capacity = fmt.Sprint(capacity)
	f := &fullHost{crowdClient: &crowdClient{crowd: newCrowd(h, 0, 0, h.newDir("domain")), rng: testenv.Rand(0)}}
	domain := f.domains[0]
	populate(f)
	for {
		id := uuid.NewString()
		if err := f.run("createVolume", h.newVolume(domain, id, uuid.NewString(), chunk, arguments{"volFormat": "RAW"})); err != nil {
			require.ErrorContains(t, err, "can be granted: remove a volume")
			break
		}
		f.ballast = append(f.ballast, id)
	}
	for id := range h.tasks() {
		h.do("clearTask", arguments{"taskID": id})
	}
	return f
}

// image makes an image of n volumes, each of which has no space but for its data.
func (f *fullHost) image(n int) *crowdImage {
	f.t.Helper()
	require.NoError(f.t, f.create())
	i := f.has[len(f.has)-1]
	for layer := range n {
		if layer > 0 {
			require.NoError(f.t, f.snapshot(i))
		}
		require.NoError(f.t, f.prepare(i))
		for b := range crowdBlocks - 1 + layer { // the upper one has the large block, too
			require.NoError(f.t, f.fill(i, b, 1+layer*100+b))
		}
		require.NoError(f.t, f.read(i))
		require.NoError(f.t, f.teardown(i))
		require.NoError(f.t, f.run("reduceVolume", f.h.at(f.domains[0], i.id, i.leaf().id)))
	}
	return i
}

// waiting are the leaves that wait for space, in their order.
func (f *fullHost) waiting() (all []string) {
	f.t.Helper()
	p := testPool{t: f.t, client: f.h.client}
	for _, w := range p.info().Waiting {
		all = append(all, w.VolumeUUID)
	}
	return all
}

func (f *fullHost) awaitWaiting(images ...*crowdImage) {
	f.t.Helper()
	var want, have []string
	for _, i := range images {
		want = append(want, i.leaf().id)
	}
	testenv.Eventually(f.t, startLimit, fmt.Sprintf("%v wait, in this order", want), func() bool {
		have = f.waiting()
		return fmt.Sprint(have) == fmt.Sprint(want)
	})
}

// fullWrite is what is written to each of the volumes that fill the pool.
const fullWrite = 600 * mib

// fillUp writes to a served image.
func (f *fullHost) fillUp(i *crowdImage, stamp byte) <-chan error {
	done := make(chan error, 1)
	go func() {
		for at := int64(0); at < fullWrite; at += mib {
			if err := i.conn.WriteAt(f.t.Context(), bytes.Repeat([]byte{stamp}, mib), at, 0); err != nil {
				done <- fmt.Errorf("at %d: %w", at, err)
				return
			}
		}
		done <- i.conn.Flush(f.t.Context())
	}()
	return done
}

// give deletes an image that has a chunk.
func (f *fullHost) give() {
	f.t.Helper()
	a := f.h.at(f.domains[0], f.ballast[0], blankID)
	delete(a, "volUUID")
	a["postZero"], a["force"] = false, false
	require.NoError(f.t, f.run("deleteImage", a))
	f.ballast = f.ballast[1:]
}

// requireTurns requires that no space went to one volume while another one waited that
// comes before it. It returns how often each has had to wait.
func (f *fullHost) requireTurns(first, second *crowdImage) (waits map[string]int) {
	f.t.Helper()
	r, err := f.h.client.WatchPool(f.t.Context(), spm.PoolWatchRequest{})
	require.NoError(f.t, err)
	waits = map[string]int{}
	waiting := map[string]bool{}
	for _, e := range r.Events {
		switch e.Kind {
		case spm.EventWaits:
			waits[e.VolumeUUID]++
			waiting[e.VolumeUUID] = true
		case spm.EventWaitsNoMore:
			waiting[e.VolumeUUID] = false
			if e.VolumeUUID == second.leaf().id && e.Granted {
				require.False(f.t, waiting[first.leaf().id], "event %d: the second had space while the first waited", e.Number)
			}
		}
	}
	return waits
}

// Two volumes fill a pool. The one of the lower priority came first, and has to wait
// for the other. Meanwhile volumes are merged, cold and live, and deleted.
func TestFullPoolByPriority(t *testing.T) {
	workspace(t)
	var low, high, cold, live, snapped *crowdImage
	f := newFullHost(t, 8*gib, func(f *fullHost) {
		low, high, cold, live, snapped = f.image(1), f.image(1), f.image(2), f.image(2), f.image(2)
		for _, i := range []*crowdImage{low, high, live} {
			require.NoError(t, f.prepare(i))
		}
	})
	for i, priority := range map[*crowdImage]int{low: 1, high: 2} {
		a := f.h.at(f.domains[0], i.id, i.leaf().id)
		a["priority"] = priority
		f.h.do("setVolumePriority", a)
	}
	lowDone := f.fillUp(low, 0x11)
	f.awaitWaiting(low)
	highDone := f.fillUp(high, 0x22)
	f.awaitWaiting(high, low)
	t.Logf("full: %d bytes granted, %d kept", f.h.domainSize(f.domains[0], "granted"), f.h.domainSize(f.domains[0], "reserve"))

	for _, change := range []func() error{
		func() error { return f.merge(cold) },
		func() error { return f.merge(live) },
		func() error { return f.deleteLeaf(snapped) },
	} {
		require.NoError(t, change())
		f.awaitWaiting(high, low) // who waited has had what came free, and it is full again
	}
	t.Logf("merged and deleted: %d bytes granted", f.h.domainSize(f.domains[0], "granted"))
	for len(lowDone) == 0 || len(highDone) == 0 {
		require.NotEmpty(t, f.ballast, "everything is deleted, and they have not got what they need")
		f.give()
		testenv.Eventually(t, startLimit, "they have had what there was", func() bool {
			return len(f.waiting()) == 2-len(lowDone)-len(highDone)
		})
	}
	require.NoError(t, <-lowDone)
	require.NoError(t, <-highDone)
	waits := f.requireTurns(high, low)
	t.Logf("the lower waited %d times, the higher %d", waits[low.leaf().id], waits[high.leaf().id])

	require.NoError(t, f.teardownAll())
	for i, stamp := range map[*crowdImage]int{low: 0x11, high: 0x22} {
		for b := range crowdBlocks - 1 {
			if off, _ := crowdBlock(b); off < fullWrite {
				i.leaf().blocks[b] = stamp
			}
		}
	}
	f.requireContent(f.has)
	require.NoError(t, f.deleteAll())
	for len(f.ballast) > 0 {
		f.give()
	}
	f.requireModel(nil)
}
