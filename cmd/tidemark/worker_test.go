package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/spm"
)

func testJobs() *imageJobs { return &imageJobs{env: []string{asMain + "=1"}} }

// places are volumes of the pool, the first being the base.
func (p *chainPool) places(t testing.TB, names ...string) (all []spm.Place) {
	t.Helper()
	for _, name := range names {
		v := p.volumeInfo(t, p.id(name))
		all = append(all, spm.Place{VolumeUUID: v.VolumeUUID, Path: v.Path, Beneath: v.Beneath, Format: v.Format, Granted: v.Granted, Size: v.Size})
	}
	return all
}

func (p *chainPool) place(t testing.TB, name string) spm.Place { return p.places(t, name)[0] }

// requireQEMU checks an image and compares it with content as QEMU sees it.
func requireQEMU(t testing.TB, path, format string, want []byte) {
	t.Helper()
	img := testenv.Tool(t, "qemu-img")
	if format == "qcow2" {
		testenv.Run(t, img, "check", "-q", path)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	testenv.Run(t, img, "convert", "-f", format, "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), path)
}

// scatter writes random data, zeroes and discards to a volume, and to its content.
func (p *chainPool) scatter(t testing.TB, rng *rand.Rand, name string, want []byte, times int) {
	t.Helper()
	d := p.disk(t, name, false)
	ctx, size := context.Background(), len(want)
	for range times {
		n := 1 + rng.IntN(300<<10)
		off := rng.IntN(size - n)
		switch rng.IntN(4) {
		case 0:
			require.NoError(t, d.Device().WriteZeroes(ctx, int64(off), int64(n), block.MayUnmap))
			clear(want[off : off+n])
		case 1: // data that is zero
			require.NoError(t, d.Device().WriteAt(ctx, make([]byte, n), int64(off), 0))
			clear(want[off : off+n])
		default:
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			require.NoError(t, d.Device().WriteAt(ctx, b, int64(off), 0))
			copy(want[off:], b)
		}
	}
	require.NoError(t, d.Close())
}

// threeDeep is a chain of a pool, and its content as each of its volumes shows it.
// The middle one may be shorter than what is below it.
func threeDeep(t *testing.T, rng *rand.Rand, base string, mid int64, more ...chainSpec) (p *chainPool, ofBase, ofMid, ofTop []byte) {
	t.Helper()
	p = newChainPool(t, append([]chainSpec{
		{name: "base", format: base, size: 20 << 20, granted: 20 << 20},
		{name: "mid", size: mid, parent: "base"},
		{name: "top", size: 24 << 20, parent: "mid"},
	}, more...)...)
	ofBase = make([]byte, 20<<20)
	p.scatter(t, rng, "base", ofBase, 60)
	ofMid = bytes.Clone(ofBase[:mid])
	p.scatter(t, rng, "mid", ofMid, 30)
	ofTop = append(bytes.Clone(ofMid), make([]byte, 24<<20-mid)...)
	p.scatter(t, rng, "top", ofTop, 30)
	return p, ofBase, ofMid, ofTop
}

func TestWorkerMeasuresAndChecks(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	p, _, _, ofTop := threeDeep(t, rng, "qcow2", 16<<20)
	chain := p.places(t, "base", "mid", "top")
	jobs := testJobs()
	m, err := jobs.Measure(t.Context(), chain, "raw")
	require.NoError(t, err)
	require.Equal(t, spm.Measure{Required: 24 << 20, FullyAllocated: 24 << 20}, m)
	m, err = jobs.Measure(t.Context(), chain, "qcow2")
	require.NoError(t, err)
	require.Greater(t, m.FullyAllocated, int64(24<<20))
	require.Less(t, m.Required, m.FullyAllocated)
	upper, err := jobs.Measure(t.Context(), chain[1:], "qcow2")
	require.NoError(t, err, "without what is below it")
	require.Less(t, upper.Required, m.Required)
	u, err := jobs.Use(t.Context(), chain)
	require.NoError(t, err)
	require.EqualValues(t, len(ofTop), u.VirtualSize)
	require.Less(t, u.End, int64(24<<20))
	require.EqualValues(t, 16<<20, u.BackingSize)
	require.NoError(t, jobs.Check(t.Context(), chain))
	require.ErrorIs(t, jobs.Resize(t.Context(), chain[:2], 32<<20), spm.ErrUnfit, "what is below it is larger")

	f, err := os.OpenFile(p.volumes["top"].Path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0, 0}, 32<<10), 2<<16) // the refcount block
	require.NoError(t, err)
	require.NoError(t, f.Close())
	err = jobs.Check(t.Context(), chain)
	require.ErrorIs(t, err, errCorrupt)
	require.ErrorIs(t, err, spm.ErrUnfit)

	f, err = os.OpenFile(p.volumes["mid"].Path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{2}, 79) // the bit that marks it corrupt
	require.NoError(t, err)
	require.NoError(t, f.Close())
	for _, err := range []error{jobs.Check(t.Context(), chain[:2]), jobs.Resize(t.Context(), chain[:2], 16<<20)} {
		require.ErrorIs(t, err, spm.ErrUnfit)
		require.ErrorContains(t, err, "is marked corrupt")
	}
}

func TestWorkerCopies(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	p, _, _, ofTop := threeDeep(t, rng, "raw", 16<<20, chainSpec{name: "whole", size: 24 << 20},
		chainSpec{name: "flat", format: "raw", size: 24 << 20, granted: 24 << 20}, chainSpec{name: "part", size: 24 << 20, parent: "mid"})
	chain := p.places(t, "base", "mid", "top")
	jobs := testJobs()
	m, err := jobs.Measure(t.Context(), chain, "qcow2")
	require.NoError(t, err)
	done := int64(0)
	for _, to := range []string{"whole", "flat"} {
		p.scatter(t, rng, to, make([]byte, 24<<20), 20) // what is there does not matter
		require.NoError(t, jobs.Copy(t.Context(), chain, p.place(t, to), nil, func(n, total int64) {
			require.EqualValues(t, 24<<20, total)
			require.GreaterOrEqual(t, n, int64(0))
			done = n
		}))
		require.EqualValues(t, 24<<20, done)
		requireQEMU(t, p.volumes[to].Path, p.volumes[to].Format, ofTop)
	}
	u, err := jobs.Use(t.Context(), p.places(t, "whole"))
	require.NoError(t, err)
	require.LessOrEqual(t, u.End, m.Required, "as measured")

	mid := p.volumes["mid"]
	ref := &spm.BackingRef{Name: filepath.Join("..", mid.ImageUUID, mid.VolumeUUID), Format: "qcow2"}
	require.NoError(t, jobs.Copy(t.Context(), chain, p.place(t, "part"), ref, nil))
	requireQEMU(t, p.volumes["part"].Path, "qcow2", ofTop)
	own, err := jobs.Use(t.Context(), p.places(t, "base", "mid", "part"))
	require.NoError(t, err)
	require.Less(t, own.End, u.End, "only what the top has")

	require.ErrorIs(t, jobs.Copy(t.Context(), chain, p.place(t, "flat"), ref, nil), block.ErrUnsupported)
	missing := p.place(t, "flat")
	missing.Path += "x"
	require.ErrorIs(t, jobs.Copy(t.Context(), chain, missing, nil, nil), os.ErrNotExist)
	small := p.place(t, "mid") // open for reading by the same job
	require.ErrorIs(t, jobs.Copy(t.Context(), chain, small, nil, nil), block.ErrInUse)
}

func TestWorkerCommitsAndRebases(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	for _, base := range []int{0, 1} {
		p, ofBase, _, ofTop := threeDeep(t, rng, "qcow2", int64(16+4*base)<<20)
		chain, names := p.places(t, "base", "mid", "top"), []string{"base", "mid", "top"}
		jobs := testJobs()
		require.NoError(t, jobs.Commit(t.Context(), chain, base, nil))
		require.True(t, bytes.Equal(ofTop, p.content(t, "top")), "the chain shows the same")
		require.NoError(t, jobs.Commit(t.Context(), chain, base, nil), "again")
		requireQEMU(t, p.volumes[names[base]].Path, "qcow2", ofTop)
		if base == 1 {
			require.True(t, bytes.Equal(ofBase, p.content(t, "base")), "what is below the base stays")
			continue
		}
		v := p.volumes["base"]
		require.NoError(t, jobs.Rebase(t.Context(), chain[2], &spm.BackingRef{Name: filepath.Join("..", v.ImageUUID, v.VolumeUUID), Format: "qcow2"}))
		requireQEMU(t, p.volumes["top"].Path, "qcow2", ofTop)
		require.NoError(t, jobs.Rebase(t.Context(), p.place(t, "base"), nil))
		require.NoError(t, jobs.Resize(t.Context(), p.places(t, "base", "top"), 32<<20))
		requireQEMU(t, p.volumes["top"].Path, "qcow2", append(ofTop, make([]byte, 8<<20)...))
		require.Error(t, jobs.Resize(t.Context(), p.places(t, "base", "top"), 1<<20))
	}
}

// Who has merged into a volume leaves no leaks in it of whoever died over it before: it
// may have become one that nobody writes to any more.
func TestWorkerCommitGivesBackWhatDied(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: manyTables * tableCovers}, chainSpec{name: "top", size: 1 << 20, parent: "base"})
	p.killWriter(t, "base", 0)
	require.NoError(t, testJobs().Commit(t.Context(), p.places(t, "base", "top"), 0, nil))
	require.Zero(t, p.check(t, "base"))
}

// What has to be put in order is, with progress, and the next time nothing is: then the
// volume may be open for reading elsewhere, and a raw one always.
func TestWorkerSettles(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "raw", format: "raw", size: 1 << 20}, chainSpec{name: "disk", size: manyTables * tableCovers})
	require.NoError(t, testJobs().Settle(t.Context(), p.places(t, "raw"), nil))
	p.killWriter(t, "disk", 0)
	reader := p.disk(t, "disk", true) // which has replayed, and settled
	require.Zero(t, p.check(t, "disk"))
	require.NoError(t, testJobs().Settle(t.Context(), p.places(t, "disk"), nil))
	require.NoError(t, reader.Close())

	p.killWriter(t, "disk", 1<<20)
	file, err := hostfile.Open(p.volumes["disk"].Path, hostfile.Options{Fixed: true, ReadOnly: true})
	require.NoError(t, err)
	err = testJobs().Settle(t.Context(), p.places(t, "disk"), nil)
	require.ErrorIs(t, err, block.ErrInUse)
	require.NoError(t, file.Close())
	var total int64
	require.NoError(t, testJobs().Settle(t.Context(), p.places(t, "disk"), func(_, all int64) { total = all }))
	require.EqualValues(t, manyTables*tableCovers, total)
	require.Zero(t, p.check(t, "disk"))
}

// A worker that is killed at any moment leaves a chain that shows the same, and a job
// that can be repeated.
func TestWorkerIsKilled(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	p, _, _, ofTop := threeDeep(t, rng, "qcow2", 20<<20, chainSpec{name: "whole", size: 24 << 20})
	chain := p.places(t, "base", "mid", "top")
	jobs := testJobs()
	to := p.place(t, "whole")
	killed := 0
	for i := range 30 {
		ctx, cancel := context.WithCancel(t.Context())
		enough, seen := rng.IntN(24<<20), make(chan struct{})
		stop := time.AfterFunc(time.Duration(rng.IntN(150))*time.Millisecond, cancel) // also before it says anything
		report := func(n, _ int64) {
			if n >= int64(enough) && seen != nil {
				seen = nil
				cancel()
			}
		}
		var err error
		if i%2 == 0 {
			err = jobs.Copy(ctx, chain, to, nil, report)
		} else {
			err = jobs.Commit(ctx, chain, 1-i/16, report) // the nearer first: it may not grow over a larger one
		}
		stop.Stop()
		cancel()
		if err != nil {
			require.ErrorIs(t, err, context.Canceled)
			killed++
		}
		require.True(t, bytes.Equal(ofTop, p.content(t, "top")), "attempt %d", i)
	}
	require.NotZero(t, killed)
	require.NoError(t, jobs.Copy(t.Context(), chain, to, nil, nil))
	requireQEMU(t, to.Path, "qcow2", ofTop)
	require.NoError(t, jobs.Commit(t.Context(), chain, 0, nil))
	requireQEMU(t, p.volumes["base"].Path, "qcow2", ofTop)
	requireQEMU(t, p.volumes["top"].Path, "qcow2", ofTop)
}
