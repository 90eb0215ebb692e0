package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// An allocSweep fails the n-th allocation of a scenario, for every n: a larger file,
// the zeroing of a cluster, or the first write into it.
type allocSweep struct {
	writes []int64 // where a piece of size bytes is written, in this order
	size   int64
	end    int64 // behind all of that
}

// tryWrite writes p, if need be after a reservation that another one has to make. It
// does not wait for space.
func tryWrite(t *testing.T, im *qcow2.Image, p []byte, off int64) error {
	t.Helper()
	for tries := 0; ; tries++ {
		now, cancel := context.WithDeadline(t.Context(), time.Now())
		err := im.WriteAt(now, p, off, 0)
		cancel()
		if !errors.Is(err, block.ErrNoSpace) || tries == 4 {
			return err
		}
		im.WaitIdle()
	}
}

// run does the scenario, lets the process die or close the image, and goes on without
// a fault. It returns whether the fault was met.
func (a allocSweep) run(t *testing.T, m *made, fault faultfile.Fault, dies bool) bool {
	f := faultfile.New(m.disk, faultfile.Fault{})
	o := qcow2.Options{CommitInterval: -1, ReserveBytes: 8 * a.size, RedoDir: t.TempDir()}
	im := m.open(t, f, o)
	f.SetFault(fault)
	for i, off := range a.writes {
		p := bytes.Repeat([]byte{byte(i), 0xab}, int(a.size)/2)
		switch err := tryWrite(t, im, p, off); {
		case err == nil:
			copy(m.content[off:], p)
		default:
			require.ErrorIs(t, err, block.ErrNoSpace, "%+v, write %d", fault, i)
			requireRead(t, im, m.content[off:off+a.size], off)
		}
		if i%4 == 3 {
			require.NoError(t, im.Flush(t.Context()), "%+v: a flush needs no space", fault)
		}
	}
	met := f.Injected() > 0
	f.SetFault(faultfile.Fault{})
	im.WaitIdle()
	if !dies {
		require.NoError(t, im.Close())
	}
	im = m.open(t, m.disk, o)
	got := make([]byte, m.size)
	require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
	requireSame(t, m.content, got, "opened again")
	for off := int64(0); off < a.end; off += a.size { // everything that was free is used now
		m.put(t, im, bytes.Repeat([]byte{byte(off / a.size), 0xcd}, int(a.size)/2), off)
	}
	require.NoError(t, im.ReadAt(t.Context(), got, 0, 0))
	requireSame(t, m.content, got, "everything was written")
	<-im.Settled()
	require.NoError(t, im.Close())
	res, err := qcow2.Check(t.Context(), m.disk, qcow2.CheckOptions{RepairLeaks: dies}) // a count that fell may not be on disk
	require.NoError(t, err)
	require.True(t, res.Clean(), "%+v: %+v", fault, res)
	return met
}

// sweep runs it for every n, on copies of what make makes.
func (a allocSweep) sweep(t *testing.T, make func(t *testing.T) *made) {
	for name, fault := range map[string]faultfile.Fault{
		"once":     {Err: block.ErrNoSpace, Kinds: faultfile.Grow | faultfile.Zeroes},
		"for ever": {Err: block.ErrNoSpace, Kinds: faultfile.Grow | faultfile.Zeroes, Sticky: true},
	} {
		t.Run(name, func(t *testing.T) {
			step := 1
			if testing.Short() {
				step = 3
			}
			for n := 1; ; n += step {
				fault.At = n
				m := make(t)
				if !a.run(t, m, fault, n%2 == 0) {
					require.Greater(t, n, 4, "the scenario became too small")
					return
				}
				if n%4 == 1 {
					m.judge(t, m.disk)
				}
			}
		})
	}
}

// TestNewTableBeforeItsCount (cloud-hypervisor PRs 8748, 8721): a new L2 table is in
// the L1 table, its count is not written, and the space for the rest of the request is
// missing. Opened again, the allocator hands the live table out.
func TestNewTableBeforeItsCount(t *testing.T) {
	a := allocSweep{size: 512, end: 1 << 20}
	for i := range int64(24) {
		a.writes = append(a.writes, i*40<<10%(1<<20)) // 32 KiB a table
	}
	a.sweep(t, subject{name: "new tables", size: 1 << 20, options: "cluster_size=512,refcount_bits=64"}.make)
}

// TestOldTableFreedBeforeItsCopy (cloud-hypervisor commit a5e145bde): the old table, or
// the old cluster, is freed, and then there is no space for what is to take its place.
// Compressed clusters are no exception.
func TestOldTableFreedBeforeItsCopy(t *testing.T) {
	for _, s := range []subject{
		{name: "copied tables", size: 256 << 10, options: "cluster_size=512", script: []string{"write -P 1 0 200k"}},
		{name: "copied compressed", size: 256 << 10, options: "cluster_size=1k", convert: []string{"-c"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			a := allocSweep{size: 1024, end: s.size}
			for i := range int64(12) {
				a.writes = append(a.writes, i*21<<10%s.size)
			}
			var base *made
			a.sweep(t, func(t *testing.T) *made {
				if base == nil {
					base = s.make(t)
					if s.convert == nil {
						base.snapshot(t, "last")
					}
				}
				return base.copy()
			})
		})
	}
}
