package faultfile_test

import (
	"io"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
)

func newFile(fault faultfile.Fault) *faultfile.File {
	return faultfile.New(simdisk.New(8192, simdisk.Options{}), fault)
}

func TestFile(t *testing.T) {
	blocktest.TestFile(t, func(_ *testing.T, size int64) block.File {
		return faultfile.New(simdisk.New(size, simdisk.Options{}), faultfile.Fault{})
	})
}

// scenario is one operation of every kind, in the order of the constants.
func scenario(t *testing.T, f *faultfile.File) (errs []error) {
	p := make([]byte, 512)
	_, err := f.ReadAt(p, 0)
	errs = append(errs, err)
	_, err = f.WriteAt(p, 0)
	errs = append(errs, err)
	_, err = f.WriteAtSync(p, 0)
	errs = append(errs, err)
	errs = append(errs, f.WriteZeroes(0, 512), f.Discard(0, 512))
	_, err = f.Grow(t.Context(), 16384, 16384)
	errs = append(errs, err)
	errs = append(errs, f.Shrink(t.Context(), f.Size(), 4096), f.Sync())
	return append(errs, f.Close())
}

func TestSweepReachesEveryOperation(t *testing.T) {
	const ops = 9
	for _, sticky := range []bool{false, true} {
		for i := 1; ; i++ {
			f := newFile(faultfile.Fault{At: i, Kinds: faultfile.All, Err: syscall.EIO, Sticky: sticky})
			errs := scenario(t, f)
			require.Equal(t, ops, f.Ops())
			if f.Injected() == 0 {
				require.Equal(t, ops+1, i)
				break
			}
			for j, err := range errs {
				if j+1 == i || sticky && j+1 > i {
					require.ErrorIs(t, err, syscall.EIO, "operation %d", j+1)
				} else {
					require.NoError(t, err, "operation %d", j+1)
				}
			}
		}
	}
}

func TestKindsCount(t *testing.T) {
	f := newFile(faultfile.Fault{At: 2, Kinds: faultfile.Syncs, Err: syscall.EIO})
	errs := scenario(t, f)
	require.NoError(t, errs[2], "the first of the kinds")
	require.ErrorIs(t, errs[7], syscall.EIO, "the second")
	require.Equal(t, 1, f.Injected())
}

func TestShortAndLate(t *testing.T) {
	f := newFile(faultfile.Fault{At: 1, Err: io.ErrShortWrite, Short: 100})
	p := make([]byte, 512)
	for i := range p {
		p[i] = 1
	}
	n, err := f.WriteAt(p, 0)
	require.ErrorIs(t, err, io.ErrShortWrite)
	require.Equal(t, 100, n)
	got := make([]byte, 512)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, p[:100], got[:100])
	require.Equal(t, make([]byte, 412), got[100:])

	f.SetFault(faultfile.Fault{At: 1, Err: syscall.EIO, Late: true})
	n, err = f.WriteAt(p, 0)
	require.ErrorIs(t, err, syscall.EIO)
	require.Less(t, n, 512)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, p, got, "done all the same")
}

func TestHookBlocksOneOperation(t *testing.T) {
	f := newFile(faultfile.Fault{})
	reached, release := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var order []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, s)
	}
	f.Hook(func(op faultfile.Op) {
		if op.Kind == faultfile.Sync {
			close(reached)
			<-release
		}
	}, func(op faultfile.Op, _ error) { note(op.Kind.String()) })
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Sync() })
	<-reached
	_, err := f.WriteAt([]byte{1}, 0)
	require.NoError(t, err)
	close(release)
	wg.Wait()
	require.Equal(t, []string{"write", "sync"}, order)
}
