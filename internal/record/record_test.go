package record_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
)

func TestFile(t *testing.T) {
	blocktest.TestFile(t, func(_ *testing.T, size int64) block.File {
		return record.New(simdisk.New(size, simdisk.Options{}), record.Options{Reads: true})
	})
}

// TestReplayCrashesAlike runs a random sequence on a recorded simdisk and
// compares, at every event, the crash of a replay with the crash of the original
// at that moment.
func TestReplayCrashesAlike(t *testing.T) {
	_, rng := testenv.Seed(t)
	disk := simdisk.New(32<<10, simdisk.Options{})
	f := record.New(disk, record.Options{})
	crashes := map[int]*simdisk.Disk{0: disk.Crash(simdisk.DropAll)}
	kept := map[int]*simdisk.Disk{0: disk.Crash(simdisk.KeepAll)}
	for i := range 100 {
		off := rng.Int64N(16 << 10)
		var err error
		switch rng.IntN(8) {
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
		default:
			_, err = f.WriteAt([]byte(fmt.Sprint("written by ", i)), off)
		}
		require.NoError(t, err)
		f.Mark("step")
		crashes[len(f.Log())] = disk.Crash(simdisk.DropAll)
		kept[len(f.Log())] = disk.Crash(simdisk.KeepAll)
	}
	log := f.Log()
	for _, at := range log.Marks("step") {
		again := simdisk.New(32<<10, simdisk.Options{})
		require.NoError(t, log.Replay(t.Context(), again, at+1))
		require.True(t, simdisk.Equal(crashes[at+1], again.Crash(simdisk.DropAll)), "event %d, everything lost", at)
		require.True(t, simdisk.Equal(kept[at+1], again.Crash(simdisk.KeepAll)), "event %d, nothing lost", at)
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
	f.Mark("synced")
	close(release)
	wg.Wait()
	f.Mark("written")

	for label, pending := range map[string]int{"synced": 1, "written": 1} {
		d := simdisk.New(4096, simdisk.Options{})
		require.NoError(t, f.Log().Replay(t.Context(), d, f.Log().Marks(label)[0]+1))
		require.Len(t, d.Pending(), pending, label)
		p := make([]byte, 2048)
		_, err := d.Crash(simdisk.DropAll).ReadAt(p, 0)
		require.NoError(t, err)
		require.EqualValues(t, 1, p[0], "covered by the Sync")
		require.Zero(t, p[1024], "not covered")
		require.Len(t, d.Crash(simdisk.KeepAll).Pending(), 0)
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
	log := f.Log()
	require.ErrorIs(t, log[1].Err, boom)

	d := simdisk.New(4096, simdisk.Options{})
	require.NoError(t, log.Replay(t.Context(), d, len(log)))
	require.EqualValues(t, 4096, d.Size())
	require.Len(t, d.Pending(), 1, "a failed write may have been done, and is not durable")
}

// TestInFlightFUAIsNotDurable: a crash before a WriteAtSync has returned may
// lose it; behind its return it may not.
func TestInFlightFUAIsNotDurable(t *testing.T) {
	f := record.New(simdisk.New(4096, simdisk.Options{}), record.Options{})
	_, err := f.WriteAtSync([]byte{7}, 0)
	require.NoError(t, err)
	for n, want := range []byte{0, 0, 7} { // nothing, submitted, completed
		d := simdisk.New(4096, simdisk.Options{})
		require.NoError(t, f.Log().Replay(t.Context(), d, n))
		p := make([]byte, 1)
		_, err := d.Crash(simdisk.DropAll).ReadAt(p, 0)
		require.NoError(t, err)
		require.Equal(t, want, p[0], "%d events", n)
	}
}
