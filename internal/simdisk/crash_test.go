package simdisk_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
)

const sector = simdisk.SectorSize

func rep(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func write(t *testing.T, d *simdisk.Disk, off int64, p []byte) {
	t.Helper()
	_, err := d.WriteAt(p, off)
	require.NoError(t, err)
}

func read(t *testing.T, d *simdisk.Disk, off int64, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	_, err := d.ReadAt(p, off)
	require.NoError(t, err)
	return p
}

func TestCrashKeepsAnySubsetOfSectors(t *testing.T) {
	d := simdisk.New(64<<10, simdisk.Options{})
	write(t, d, 0, rep('a', 8192))
	require.NoError(t, d.Sync())
	write(t, d, 3072, rep('b', 2048)) // sectors 6..9, across a page
	require.Len(t, d.Pending(), 1)
	for set := range 16 {
		c := d.Crash(func(_ *simdisk.Op, s int64) bool { return set>>(s-6)&1 == 1 })
		want := rep('a', 8192)
		for s := range 4 {
			if set>>s&1 == 1 {
				copy(want[(6+s)*sector:], rep('b', sector))
			}
		}
		require.Equal(t, want, read(t, c, 0, 8192), "subset %04b", set)
		require.Empty(t, c.Pending())
	}
	require.Equal(t, rep('b', 2048), read(t, d, 3072, 2048), "the disk itself goes on")
}

func TestCrashPartOfASectorLandsWithItsSector(t *testing.T) {
	d := simdisk.New(4096, simdisk.Options{})
	write(t, d, 0, rep('1', 100))
	write(t, d, 100, rep('2', 100))
	second := d.Crash(simdisk.KeepOps(func(op *simdisk.Op) bool { return op.ID == 2 }))
	require.Equal(t, append(rep('1', 100), rep('2', 100)...), read(t, second, 0, 200), "the cache writes whole sectors")
	first := d.Crash(simdisk.KeepOps(func(op *simdisk.Op) bool { return op.ID == 1 }))
	require.Equal(t, append(rep('1', 100), rep(0, 100)...), read(t, first, 0, 200))
}

func TestFUAIsDurableAlone(t *testing.T) {
	d := simdisk.New(8192, simdisk.Options{})
	write(t, d, 0, rep('a', 4096))
	_, err := d.WriteAtSync(rep('b', sector), sector)
	require.NoError(t, err)
	c := d.Crash(simdisk.DropAll)
	require.Equal(t, append(rep(0, sector), rep('b', sector)...), read(t, c, 0, 2*sector))
	c = d.Crash(simdisk.KeepAll) // the older pending write does not come back over it
	require.Equal(t, append(rep('a', sector), rep('b', sector)...), read(t, c, 0, 2*sector))
}

func TestZeroesAndDiscardsArePending(t *testing.T) {
	d := simdisk.New(64<<10, simdisk.Options{DiscardForeign: true})
	write(t, d, 0, rep('a', 64<<10))
	require.NoError(t, d.Sync())
	require.NoError(t, d.WriteZeroes(0, 16<<10))
	require.NoError(t, d.Discard(32<<10, 16<<10))
	require.Equal(t, rep('a', 64<<10), read(t, d.Crash(simdisk.DropAll), 0, 64<<10))
	kept := d.Crash(simdisk.KeepAll)
	require.Equal(t, rep(0, 16<<10), read(t, kept, 0, 16<<10))
	require.True(t, simdisk.HasForeign(read(t, kept, 32<<10, 16<<10)))
	require.Equal(t, rep('a', 16<<10), read(t, kept, 48<<10, 16<<10))
}

func TestGrowthIsDurable(t *testing.T) {
	for _, old := range []int64{0, 4096, 5000} { // at a page and inside one
		d := simdisk.New(old, simdisk.Options{})
		write(t, d, 0, rep('a', int(old)))
		require.NoError(t, d.Sync())
		_, err := d.Grow(t.Context(), 1<<20, 1<<20)
		require.NoError(t, err)
		require.Equal(t, rep(0, int(1<<20-old)), read(t, d, old, int(1<<20-old)))
		write(t, d, 512<<10, rep('b', 100)) // the rest of its sector is fresh

		c := d.Crash(simdisk.DropAll)
		require.EqualValues(t, 1<<20, c.Size())
		require.Equal(t, rep('a', int(old)), read(t, c, 0, int(old)))
		require.Equal(t, rep(0, int(1<<20-old)), read(t, c, old, int(1<<20-old)))

		require.NoError(t, d.Sync())
		c = d.Crash(simdisk.DropAll)
		require.Equal(t, rep(0, 4096), read(t, c, old, 4096))
		require.Equal(t, append(rep('b', 100), rep(0, 1000)...), read(t, c, 512<<10, 1100))
	}
}

func TestForeignSpace(t *testing.T) {
	d := simdisk.New(4096, simdisk.Options{Foreign: true, MaxSize: 1 << 20})
	_, err := d.Grow(t.Context(), 64<<10, 8<<20)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, d.Size(), "as far as it goes")
	require.True(t, simdisk.HasForeign(read(t, d, 4096, 4096)))
	require.False(t, simdisk.HasForeign(read(t, d, 0, 4096)))
	_, err = d.Grow(t.Context(), 1<<20+1, 1<<20+1)
	require.ErrorIs(t, err, block.ErrNoSpace)
	d.SetMaxSize(2 << 20)
	_, err = d.Grow(t.Context(), 1<<20+1, 1<<20+1)
	require.NoError(t, err)

	require.NoError(t, d.WriteZeroes(4096, 4096))
	require.True(t, simdisk.HasForeign(read(t, d.Crash(simdisk.DropAll), 4096, 4096)))
	require.NoError(t, d.Sync())
	require.False(t, simdisk.HasForeign(read(t, d.Crash(simdisk.DropAll), 4096, 4096)))
}

func TestShrinkForgets(t *testing.T) {
	for _, synced := range []bool{true, false} {
		d := simdisk.New(16<<10, simdisk.Options{})
		write(t, d, 0, rep(0xaa, 16<<10))
		if synced {
			require.NoError(t, d.Sync())
		}
		require.NoError(t, d.Shrink(t.Context(), 16<<10, 6000))
		_, err := d.Grow(t.Context(), 16<<10, 16<<10)
		require.NoError(t, err)
		writes := simdisk.KeepOps(func(op *simdisk.Op) bool { return op.Kind == simdisk.Write })
		for _, keep := range []simdisk.Keep{simdisk.KeepAll, simdisk.DropAll, writes} {
			require.Negative(t, bytes.IndexByte(read(t, d.Crash(keep), 6000, 16<<10-6000), 0xaa))
		}
		require.Equal(t, rep(0xaa, 6000), read(t, d.Crash(simdisk.KeepAll), 0, 6000))
		require.Equal(t, rep(0, 16<<10-6000), read(t, d, 6000, 16<<10-6000))
	}
}

func TestFailedSyncLies(t *testing.T) {
	boom := errors.New("boom")
	for name, sync := range map[string]func(d *simdisk.Disk) error{
		"Sync":        (*simdisk.Disk).Sync,
		"WriteAtSync": func(d *simdisk.Disk) error { _, err := d.WriteAtSync(rep('f', sector), 8192); return err },
	} {
		t.Run(name, func(t *testing.T) {
			d := simdisk.New(16<<10, simdisk.Options{})
			write(t, d, 0, rep('a', 4096))
			require.NoError(t, d.Sync())
			write(t, d, 0, rep('b', 4096))
			d.FailSync(boom)
			require.ErrorIs(t, sync(d), boom)
			require.NoError(t, d.Sync(), "the next one succeeds")
			require.Equal(t, rep('b', 4096), read(t, d, 0, 4096), "and reads see the new bytes")
			require.Equal(t, rep('a', 4096), read(t, d.Crash(simdisk.DropAll), 0, 4096), "which may be lost")
			require.Equal(t, rep('b', 4096), read(t, d.Crash(simdisk.KeepAll), 0, 4096), "or not")
			write(t, d, 2*sector, rep('c', sector)) // a neighbour does not bring them back
			require.NoError(t, d.Sync())
			d.Evict()
			want := rep('a', 4096)
			copy(want[2*sector:], rep('c', sector))
			require.Equal(t, want, read(t, d, 0, 4096))
		})
	}
}

func TestExportImport(t *testing.T) {
	_, rng := testenv.Seed(t)
	d := simdisk.New(100_000, simdisk.Options{Foreign: true})
	_, err := d.Grow(t.Context(), 300_001, 300_001)
	require.NoError(t, err)
	for range 20 {
		write(t, d, rng.Int64N(290_000), rep('x', 1+rng.IntN(9000)))
	}
	path := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, d.Export(path))
	back, err := simdisk.Import(path, simdisk.Options{})
	require.NoError(t, err)
	require.True(t, simdisk.Equal(d, back))
	write(t, back, 300_000, []byte{'y'})
	require.False(t, simdisk.Equal(d, back))
}

// TestCrashAgainstPlainModel compares with a model that keeps a whole array of
// bytes per operation.
func TestCrashAgainstPlainModel(t *testing.T) {
	_, rng := testenv.Seed(t)
	const size = 40 << 10
	for range 60 {
		d := simdisk.New(size, simdisk.Options{})
		durable, now := make([]byte, size), make([]byte, size)
		type op struct {
			off, n int
			after  []byte
		}
		var ops []op
		for i := range 30 {
			off := rng.IntN(size - 1)
			n := 1 + rng.IntN(min(6000, size-off))
			b := byte(i + 1)
			switch rng.IntN(8) {
			case 0:
				require.NoError(t, d.Sync())
				durable, ops = bytes.Clone(now), nil
				continue
			case 1:
				require.NoError(t, d.WriteZeroes(int64(off), int64(n)))
				b = 0
			case 2:
				require.NoError(t, d.Discard(int64(off), int64(n)))
				b = 0
			default:
				write(t, d, int64(off), rep(b, n))
			}
			copy(now[off:], rep(b, n))
			ops = append(ops, op{off, n, bytes.Clone(now)})
		}
		kept := map[[2]int64]bool{}
		c := d.Crash(func(o *simdisk.Op, s int64) bool {
			k := rng.IntN(2) == 0
			kept[[2]int64{int64(o.ID), s}] = k
			return k
		})
		want := bytes.Clone(durable)
		pending := d.Pending()
		require.Len(t, pending, len(ops))
		for i, o := range ops {
			for s := o.off / sector; s*sector < o.off+o.n; s++ {
				k, asked := kept[[2]int64{int64(pending[i].ID), int64(s)}]
				require.True(t, asked)
				if k {
					copy(want[s*sector:(s+1)*sector], o.after[s*sector:])
				}
			}
		}
		require.True(t, bytes.Equal(want, read(t, c, 0, size)))
		require.True(t, bytes.Equal(now, read(t, d.Crash(simdisk.KeepAll), 0, size)))
	}
}

// TestInFlight: a Model knows what a Disk cannot show, operations in flight.
func TestInFlight(t *testing.T) {
	m := simdisk.NewModel(simdisk.State{}, simdisk.Options{Foreign: true, DiscardForeign: true})
	crash := func(keep simdisk.Keep, order ...*simdisk.Op) []byte {
		d := simdisk.NewDisk(m.Crash(order, keep), simdisk.Options{})
		return read(t, d, 0, int(d.Size()))
	}
	grow := m.Submit(simdisk.Grow, 0, 2*sector, nil)
	require.Zero(t, m.Size(), "not yet")
	require.Empty(t, crash(simdisk.DropAll, grow))
	require.True(t, simdisk.HasForeign(crash(simdisk.KeepAll, grow)))
	m.Return(grow, false)
	require.Empty(t, m.Pending())
	require.Len(t, crash(simdisk.KeepAll), 2*sector)

	a := m.Submit(simdisk.Write, 0, 2*sector, rep('a', 2*sector))
	b := m.Submit(simdisk.Write, sector, sector, rep('b', sector))
	m.Return(b, false)
	require.False(t, a.Before(b))
	require.True(t, a.Overlaps(b))
	require.Equal(t, append(rep('a', sector), rep('b', sector)...), crash(simdisk.KeepAll, a, b))
	require.Equal(t, rep('a', 2*sector), crash(simdisk.KeepAll, b, a), "both orders")
	began := m.BeginSync()
	m.Return(a, false)
	m.EndSync(began, true)
	require.Equal(t, []*simdisk.Op{a}, m.Pending(), "the sync did not cover it")
	require.Equal(t, rep('b', sector), crash(simdisk.DropAll)[sector:])
	require.Equal(t, rep('a', 2*sector), crash(simdisk.KeepAll, a), "and it may land on top")

	c := m.Submit(simdisk.Write, 0, sector, rep('c', sector))
	require.Equal(t, rep('a', sector), crash(simdisk.KeepAll, a)[:sector], "FUA is not durable before it returns")
	m.Return(c, true)
	require.Equal(t, append(rep('c', sector), rep('a', sector)...), crash(simdisk.KeepAll, a), "what was before c does not come back over it")

	m.EndSync(m.BeginSync(), true)
	d := m.Submit(simdisk.Discard, 100, sector, nil)
	whole := crash(simdisk.KeepAll, d.Zeroing())
	require.Equal(t, rep('c', 100), whole[:100])
	require.Equal(t, rep(0, sector), whole[100:100+sector])
	require.Equal(t, rep('b', sector-100), whole[100+sector:], "what was submitted last, once both are durable")

	shrink := m.Submit(simdisk.Shrink, 0, 700, nil)
	require.Len(t, crash(simdisk.KeepAll, m.Pending()...), 700)
	require.Len(t, crash(simdisk.DropAll, m.Pending()...), 2*sector)
	m.Fail(shrink)
	require.EqualValues(t, 2*sector, m.Size())
	m.Return(m.Submit(simdisk.Shrink, 0, 700, nil), false)
	require.Len(t, crash(simdisk.DropAll), 700)
}

// TestHashIsOfTheContent: the same content has the same hash however it came
// about, and one changed byte anywhere is another one.
func TestHashIsOfTheContent(t *testing.T) {
	_, rng := testenv.Seed(t)
	const size = 300 << 10
	for range 30 {
		a, b := simdisk.New(size, simdisk.Options{}), simdisk.New(64<<20, simdisk.Options{})
		write(t, b, 63<<20, rep(1, 100)) // a higher tree
		require.NoError(t, b.WriteZeroes(0, 64<<20))
		require.NoError(t, b.Shrink(t.Context(), 64<<20, size))
		require.Equal(t, a.State().Hash(), b.State().Hash())
		content := make([]byte, size)
		for range 20 {
			off := rng.IntN(size - 1)
			p := rep(byte(rng.IntN(3)), 1+rng.IntN(size-off))
			copy(content[off:], p)
			write(t, a, int64(off), p)
			_ = a.State() // its nodes are shared now
		}
		for off := 0; off < size; {
			n := 1 + rng.IntN(min(9000, size-off))
			write(t, b, int64(off), content[off:off+n])
			off += n
		}
		require.Equal(t, a.State().Hash(), b.State().Hash())
		before := a.State()
		at := rng.IntN(size)
		write(t, b, int64(at), []byte{content[at] + 1})
		require.NotEqual(t, a.State().Hash(), b.State().Hash())
		write(t, a, int64(at), []byte{content[at] + 1})
		require.Equal(t, a.State().Hash(), b.State().Hash())
		require.True(t, bytes.Equal(content, read(t, simdisk.NewDisk(before, simdisk.Options{}), 0, size)), "a State does not change")
	}
}

func BenchmarkCrash(b *testing.B) {
	d := simdisk.New(1<<20, simdisk.Options{})
	for i := range int64(12) {
		d.WriteAt(rep(byte(i), 4096), i*40<<10)
	}
	for b.Loop() {
		if d.Crash(simdisk.KeepAll).State().Hash() == 0 {
			b.Fatal()
		}
	}
}
