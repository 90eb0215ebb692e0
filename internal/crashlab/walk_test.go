package crashlab

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
)

// walkTo returns the model of a disk of size bytes behind the first n events.
func walkTo(log record.Log, size int64, n int) *simdisk.Model {
	w := newWalk(simdisk.New(size, simdisk.Options{}).State(), simdisk.Options{})
	for _, e := range log[:n] {
		w.step(e)
	}
	return w.model
}

// TestWalkCrashesAlike runs a random sequence on a recorded disk and compares, at
// every event, what crashes leave along the log with what they leave of the disk.
func TestWalkCrashesAlike(t *testing.T) {
	_, rng := testenv.Seed(t)
	disk := simdisk.New(32<<10, simdisk.Options{})
	f := record.New(disk, record.Options{})
	boom := errors.New("boom")
	var at []int
	var dropped, all, now []uint64
	for i := range 200 {
		off := rng.Int64N(16 << 10)
		var err error
		switch rng.IntN(10) {
		case 0:
			err = f.Sync()
		case 1:
			_, err = f.WriteAtSync([]byte{byte(i), 1}, off)
		case 2:
			err = f.WriteZeroes(off, 5000)
		case 3:
			err = f.Discard(off, 600)
		case 4:
			_, err = f.Grow(t.Context(), f.Size()+1000, f.Size()+3000)
		case 5:
			err = f.Shrink(t.Context(), f.Size(), max(32<<10, f.Size()-700))
		case 6:
			disk.FailSync(boom)
			require.ErrorIs(t, f.Sync(), boom)
		default:
			_, err = f.WriteAt([]byte(fmt.Sprint("written by ", i)), off)
		}
		require.NoError(t, err)
		at = append(at, len(f.Log()))
		dropped = append(dropped, disk.Crash(simdisk.DropAll).State().Hash())
		all = append(all, disk.Crash(simdisk.KeepAll).State().Hash())
		now = append(now, disk.State().Hash())
	}
	for i, n := range at {
		m := walkTo(f.Log(), 32<<10, n)
		require.Equal(t, dropped[i], m.Crash(nil, simdisk.DropAll).Hash(), "event %d, everything lost", n)
		require.Equal(t, all[i], m.Crash(m.Pending(), simdisk.KeepAll).Hash(), "event %d, nothing lost", n)
		require.Equal(t, now[i], m.Current().Hash(), "event %d, read", n)
	}
}

// TestSyncCoversWhatHadReturned: a write in flight while a Sync runs is pending
// behind it.
func TestSyncCoversWhatHadReturned(t *testing.T) {
	slow := faultfile.New(simdisk.New(4096, simdisk.Options{}), faultfile.Fault{})
	reached, release := make(chan struct{}), make(chan struct{})
	slow.Hook(func(op faultfile.Op) {
		if op.Off == 1024 {
			close(reached)
			<-release
		}
	}, nil)
	f := record.New(slow, record.Options{})
	write := func(off int64) {
		if _, err := f.WriteAt([]byte{1}, off); err != nil {
			t.Error(err)
		}
	}
	write(0)
	var wg sync.WaitGroup
	wg.Go(func() { write(1024) })
	<-reached
	require.NoError(t, f.Sync())
	synced := f.Mark("synced")
	close(release)
	wg.Wait()

	for _, n := range []int{synced, len(f.Log())} {
		m := walkTo(f.Log(), 4096, n)
		require.Len(t, m.Pending(), 1)
		require.EqualValues(t, 1024, m.Pending()[0].Off)
		d := simdisk.NewDisk(m.Crash(nil, nil), simdisk.Options{})
		p := make([]byte, 2048)
		_, err := d.ReadAt(p, 0)
		require.NoError(t, err)
		require.EqualValues(t, 1, p[0], "covered by the Sync")
		require.Zero(t, p[1024], "not covered")
	}
}

func TestFailedOperations(t *testing.T) {
	boom := errors.New("boom")
	bad := faultfile.New(simdisk.New(4096, simdisk.Options{}), faultfile.Fault{At: 1, Sticky: true, Err: boom})
	f := record.New(bad, record.Options{})
	_, err := f.WriteAtSync([]byte{7}, 0)
	require.ErrorIs(t, err, boom)
	require.ErrorIs(t, f.Sync(), boom)
	_, err = f.Grow(t.Context(), 8192, 8192)
	require.ErrorIs(t, err, boom)
	m := walkTo(f.Log(), 4096, len(f.Log()))
	require.EqualValues(t, 4096, m.Size())
	require.Len(t, m.Pending(), 1, "a failed write may have been done, and is not durable")
}

// TestInFlightFUAIsNotDurable: a crash before a WriteAtSync has returned may lose
// it; behind its return it may not.
func TestInFlightFUAIsNotDurable(t *testing.T) {
	f := record.New(simdisk.New(4096, simdisk.Options{}), record.Options{})
	_, err := f.WriteAtSync([]byte{7}, 0)
	require.NoError(t, err)
	for n, pending := range []int{0, 1, 0} { // nothing, submitted, completed
		m := walkTo(f.Log(), 4096, n)
		require.Len(t, m.Pending(), pending, "%d events", n)
	}
}
