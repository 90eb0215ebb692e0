package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

const sector = 512

// An oracle knows what each sector of the disk may hold after a power cut: its
// last flushed version or one that was submitted later. A version is the number
// of the request that wrote it, 0 for zeroes.
type oracle struct {
	mu      sync.Mutex
	flushed []uint64
	later   [][]uint64
	changes int
}

func newOracle(size int64) *oracle {
	return &oracle{flushed: make([]uint64, size/sector), later: make([][]uint64, size/sector)}
}

// submit adds a version of n sectors from first, before the request is made.
func (o *oracle) submit(first, n int64, version uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes++
	for s := first; s < first+n; s++ {
		o.later[s] = append(slices.Clip(o.later[s]), version)
	}
}

// flush makes the last versions the flushed ones, after a flush was
// acknowledged that nothing else ran beside.
func (o *oracle) flush() { o.flushRange(0, int64(len(o.later))) }

// flushRange does so for n sectors from first, after a FUA write of them: what
// else that made durable is not known.
func (o *oracle) flushRange(first, n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changes++
	for s := first; s < first+n; s++ {
		if l := o.later[s]; len(l) > 0 {
			o.flushed[s], o.later[s] = l[len(l)-1], nil
		}
	}
}

func (o *oracle) snapshot() *oracle {
	o.mu.Lock()
	defer o.mu.Unlock()
	return &oracle{flushed: slices.Clone(o.flushed), later: slices.Clone(o.later), changes: o.changes}
}

// changedSince reports whether more is known than at a snapshot.
func (o *oracle) changedSince(then *oracle) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.changes != then.changes
}

// judge returns what is wrong with the content p.
func (o *oracle) judge(p []byte) error {
	for s := range o.flushed {
		b := p[s*sector : (s+1)*sector]
		if simdisk.HasForeign(b) {
			return fmt.Errorf("sector %d: another tenant's bytes", s)
		}
		v, err := versionOf(b)
		if err != nil {
			return fmt.Errorf("sector %d: %w", s, err)
		}
		if v != o.flushed[s] && !slices.Contains(o.later[s], v) {
			return fmt.Errorf("sector %d: version %d; flushed was %d, later %d", s, v, o.flushed[s], o.later[s])
		}
	}
	return nil
}

// stamp fills p with a version.
func stamp(p []byte, version uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], version)
	}
}

func versionOf(b []byte) (uint64, error) {
	v := binary.BigEndian.Uint64(b)
	for i := 8; i < len(b); i += 8 {
		if w := binary.BigEndian.Uint64(b[i:]); w != v {
			return 0, fmt.Errorf("a mix of versions %d and %d", v, w)
		}
	}
	return v, nil
}

// A crashed disk, and what it may hold.
type crashed struct {
	disk  *simdisk.Disk
	legal *oracle
	what  string
	died  bool   // only the process did: nothing is lost
	redo  string // the directory of its ring then
}

// A crasher is a random workload on an image over a simulated disk that is
// crashed at random operations of the file.
type crasher struct {
	t       *testing.T
	rng     *rand.Rand
	disk    *simdisk.Disk
	image   *qcow2.Image
	oracle  *oracle // for a power cut: what was flushed must be there
	alive   *oracle // for the death of the process: what was completed must be
	version uint64
	size    int64
	noLeaks bool   // expect none after the death of the process: nothing is unlinked
	redo    string // directory of the ring, "": without one
	later   bool   // the file begins writes, and they are begun

	mu     sync.Mutex // guards what the hook uses
	every  bool       // crash at every operation
	next   int        // operations until the next crash
	hrng   *rand.Rand
	states []crashed
}

func newCrasher(t *testing.T, rng *rand.Rand, c qcow2.CreateOptions, o simdisk.Options) *crasher {
	ctx := context.Background()
	d := simdisk.New(0, o)
	require.NoError(t, qcow2.Create(ctx, d, c))
	k := &crasher{t: t, rng: rng, hrng: testenv.Rand(rng.Uint64()), disk: d, oracle: newOracle(c.Size), alive: newOracle(c.Size), size: c.Size, later: rng.IntN(2) == 0}
	k.open()
	return k
}

// withRing opens the image again, with a ring.
func (k *crasher) withRing() {
	require.NoError(k.t, k.image.Close())
	k.redo = k.t.TempDir()
	k.open()
}

func (k *crasher) open() {
	f := faultfile.New(k.disk, faultfile.Fault{})
	f.Hook(func(op faultfile.Op) { k.maybeCrash(fmt.Sprintf("before %v", op)) }, nil)
	im, err := qcow2.Open(context.Background(), beginning(f, k.later), qcow2.Options{ReserveBytes: 256 << 10, CacheBytes: 32 << 10, RedoDir: k.redo, RedoSlots: 512,
		CommitInterval: -1}) // one that died must not go on
	require.NoError(k.t, err)
	k.image = im
}

func (k *crasher) maybeCrash(what string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.next--; k.next > 0 && !k.every {
		return
	}
	k.next = 1 + k.hrng.IntN(30)
	// The engine's own goroutines come here beside the client's: what is left and what
	// is legal are of one moment only if the client has not gone on meanwhile.
	alive := k.alive.snapshot()
	if dead, redo, ok := k.processDies(); ok && !k.alive.changedSince(alive) {
		k.states = append(k.states, crashed{dead, alive, what + ", the process died", true, redo})
	}
	var cut []crashed
	legal := k.oracle.snapshot()
	lastOp := 0
	if pending := k.disk.Pending(); len(pending) > 0 {
		lastOp = pending[len(pending)-1].ID
	}
	for name, keep := range map[string]simdisk.Keep{
		"nothing": simdisk.DropAll,
		"half":    func(*simdisk.Op, int64) bool { return k.hrng.IntN(2) == 0 },
		"most":    func(*simdisk.Op, int64) bool { return k.hrng.IntN(8) != 0 },
		"last":    func(op *simdisk.Op, _ int64) bool { return op.ID == lastOp },
	} {
		cut = append(cut, crashed{k.disk.Crash(keep), legal, fmt.Sprintf("%s, %s of what was pending landed", what, name), false, ""})
	}
	if !k.oracle.changedSince(legal) {
		k.states = append(k.states, cut...)
	}
}

// submit adds a version to what is legal, before the request is made.
func (k *crasher) submit(first, n int64, version uint64) {
	k.oracle.submit(first, n, version)
	k.alive.submit(first, n, version)
}

// processDies returns what the death of the process leaves: the file as it is, and
// the ring. Other goroutines go on meanwhile, so both are of one moment only if the
// ring is the same before and after.
func (k *crasher) processDies() (dead *simdisk.Disk, redo string, ok bool) {
	if k.redo == "" {
		return k.disk.Crash(simdisk.KeepAll), "", true
	}
	for range 5 {
		before := k.readRing()
		dead = k.disk.Crash(simdisk.KeepAll)
		after := k.readRing()
		if !maps.EqualFunc(before, after, bytes.Equal) {
			continue
		}
		redo = k.t.TempDir()
		for name, b := range before {
			require.NoError(k.t, os.WriteFile(filepath.Join(redo, name), b, 0o600))
		}
		return dead, redo, true
	}
	return nil, "", false
}

func (k *crasher) readRing() map[string][]byte {
	files := map[string][]byte{}
	entries, err := os.ReadDir(k.redo)
	require.NoError(k.t, err)
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(k.redo, e.Name()))
		if !errors.Is(err, os.ErrNotExist) { // it was just removed
			require.NoError(k.t, err)
			files[e.Name()] = b
		}
	}
	return files
}

// step does one random request.
func (k *crasher) step() {
	defer k.alive.flush()
	ctx := context.Background()
	first := k.rng.Int64N(k.size / sector)
	n := min(1+k.rng.Int64N(1+k.rng.Int64N(300)), k.size/sector-first)
	p := make([]byte, n*sector)
	switch k.rng.IntN(10) {
	case 0:
		k.submit(first, n, 0)
		require.NoError(k.t, k.image.WriteZeroes(ctx, first*sector, n*sector, qcow2.MayUnmap))
	case 1:
		k.submit(first, n, 0)
		require.NoError(k.t, k.image.WriteZeroes(ctx, first*sector, n*sector, 0))
	case 2:
		// The content afterwards is the old one or zero; both stay legal, and
		// what is read is what a flush makes durable.
		k.submit(first, n, 0)
		require.NoError(k.t, k.image.Discard(ctx, first*sector, n*sector, 0))
		require.NoError(k.t, k.image.ReadAt(ctx, p, first*sector, 0))
		for i := range n {
			v, err := versionOf(p[i*sector : (i+1)*sector])
			require.NoError(k.t, err)
			k.submit(first+i, 1, v)
		}
	case 3, 4:
		require.NoError(k.t, k.image.Flush(ctx))
		k.oracle.flush()
	case 5:
		k.version++
		stamp(p, k.version)
		k.submit(first, n, k.version)
		require.NoError(k.t, k.image.WriteAt(ctx, p, first*sector, qcow2.FUA))
		k.oracle.flushRange(first, n)
	default:
		k.version++
		stamp(p, k.version)
		k.submit(first, n, k.version)
		require.NoError(k.t, writeLater(ctx, k.image, p, first*sector))
	}
}

// judge reopens every crashed disk: it must open by itself, have leaks at
// worst, hold legal content, take writes, and be clean after the leaks are
// mended.
func (k *crasher) judge() int {
	t, ctx := k.t, context.Background()
	for i, c := range k.states {
		res, err := qcow2.Check(ctx, c.disk, qcow2.CheckOptions{})
		require.NoError(t, err, c.what)
		require.Zero(t, res.Corruptions+res.CheckErrors, "%s: %q", c.what, res.Problems)
		if i%4 == 0 && c.redo == "" {
			k.judgeRecovery(c)
		}
		im, err := qcow2.Open(ctx, c.disk, qcow2.Options{ReserveBytes: 128 << 10, RedoDir: c.redo})
		require.NoError(t, err, c.what)
		p := make([]byte, k.size)
		require.NoError(t, im.ReadAt(ctx, p, 0, 0), c.what)
		require.NoError(t, c.legal.judge(p), c.what)
		if i%3 == 0 { // it goes on, and nothing that was leaked or stale comes up
			w := make([]byte, 40*sector)
			stamp(w, 1<<40)
			at := k.rng.Int64N(k.size/sector-40) * sector
			require.NoError(t, im.WriteAt(ctx, w, at, 0), c.what)
			copy(p[at:], w)
			got := make([]byte, k.size)
			require.NoError(t, im.ReadAt(ctx, got, 0, 0), c.what)
			require.True(t, bytes.Equal(p, got), c.what)
		}
		<-im.Settled()
		require.NoError(t, im.Close(), c.what)
		res, err = qcow2.Check(ctx, c.disk, qcow2.CheckOptions{RepairLeaks: true})
		require.NoError(t, err, c.what)
		require.True(t, res.Clean(), "%s: %q", c.what, res.Problems)
		if c.died && k.noLeaks {
			require.Zero(t, res.Leaks, "%s: %q", c.what, res.Problems)
		}
		res, err = qcow2.Check(ctx, c.disk, qcow2.CheckOptions{})
		require.NoError(t, err, c.what)
		require.True(t, res.Clean() && res.Leaks == 0, "%s: %q", c.what, res.Problems)
	}
	return len(k.states)
}

// judgeRecovery crashes the first opening after a crash, settling included, and
// judges what that leaves: recovering twice is as good as once.
func (k *crasher) judgeRecovery(c crashed) {
	t, ctx := k.t, context.Background()
	d := c.disk.Crash(simdisk.KeepAll) // a copy; all of it is durable
	var mu sync.Mutex
	var again []*simdisk.Disk
	f := faultfile.New(d, faultfile.Fault{})
	f.Hook(func(faultfile.Op) {
		mu.Lock()
		defer mu.Unlock()
		again = append(again, d.Crash(simdisk.DropAll), d.Crash(simdisk.KeepRandom(k.hrng, 0.5)))
	}, nil)
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err, c.what)
	<-im.Settled()
	require.NoError(t, im.Close(), c.what)
	k.rng.Shuffle(len(again), func(i, j int) { again[i], again[j] = again[j], again[i] })
	for _, d := range again[:min(len(again), 6)] {
		res, err := qcow2.Check(ctx, d, qcow2.CheckOptions{})
		require.NoError(t, err, c.what)
		require.Zero(t, res.Corruptions+res.CheckErrors, "%s, and again while recovering: %q", c.what, res.Problems)
		im, err := qcow2.Open(ctx, d, qcow2.Options{ReadOnly: true})
		require.NoError(t, err, c.what)
		p := make([]byte, k.size)
		require.NoError(t, im.ReadAt(ctx, p, 0, 0), c.what)
		require.NoError(t, c.legal.judge(p), "%s, and again while recovering", c.what)
		require.NoError(t, im.Close())
	}
}

// crashGeometries are the images that are crashed.
func crashGeometries() []qcow2.CreateOptions {
	return []qcow2.CreateOptions{
		{Size: 2<<20 + 3*sector},
		{Size: 2 << 20, ClusterSize: 512, RefcountBits: 64},
		{Size: 1 << 20, ClusterSize: 512, RefcountBits: 1},
		{Size: 2 << 20, ClusterSize: 4096, Version: 2},
		{Size: 2<<20 + sector, ClusterSize: 4096, RefcountBits: 8},
		{Size: 4 << 20, ClusterSize: 32768, RefcountBits: 32},
	}
}

// scaled is how much of n work to do: under -short, which goes with -race, a
// little.
func scaled(n int) int {
	if testing.Short() {
		return n / 8
	}
	return n
}

// TestCrash cuts the power at random operations of the file and judges what is
// left, on storage whose fresh and discarded space is another tenant's.
func TestCrash(t *testing.T) {
	_, rng := testenv.Seed(t)
	total := 0
	for _, c := range crashGeometries() {
		for _, foreign := range []bool{false, true} {
			k := newCrasher(t, rng, c, simdisk.Options{Foreign: foreign, DiscardForeign: foreign})
			for i := range scaled(80) {
				k.step()
				switch i % 20 {
				case 9: // through the death of the process, whose writes are not durable
					k.image.WaitIdle()
					k.open()
				case 19: // through a clean end and a new beginning
					require.NoError(t, k.image.Close())
					k.oracle.flush()
					k.open()
				}
			}
			require.NoError(t, k.image.Close())
			total += k.judge()
		}
	}
	t.Logf("%d crashed states judged", total)
}

// write writes n sectors from first.
func (k *crasher) write(first, n int64) {
	k.version++
	p := make([]byte, n*sector)
	stamp(p, k.version)
	k.submit(first, n, k.version)
	require.NoError(k.t, writeLater(context.Background(), k.image, p, first*sector))
	k.alive.flush()
}

func (k *crasher) flush() {
	require.NoError(k.t, k.image.Flush(context.Background()))
	k.oracle.flush()
}

// TestCrashWhileTablesGrow cuts the power at every operation while the refcount
// table and the L1 table move.
func TestCrashWhileTablesGrow(t *testing.T) {
	if testing.Short() {
		t.Skip("thousands of states; runs without -short")
	}
	_, rng := testenv.Seed(t)
	// One cluster of refcount table is good for 2 MiB here.
	k := newCrasher(t, rng, qcow2.CreateOptions{Size: 3 << 20, ClusterSize: 512, RefcountBits: 64}, simdisk.Options{Foreign: true, DiscardForeign: true})
	k.next = 1 << 30
	table := k.image.Header().RefcountTableOffset
	at := int64(0)
	for ; k.image.Stats().End < 2<<20-128<<10; at += 16 {
		k.write(at, 16)
	}
	k.flush()
	k.every = true
	for ; k.image.Header().RefcountTableOffset == table; at += 16 {
		k.write(at, 16)
	}
	k.flush()
	l1 := k.image.Header().L1Offset
	k.write(3, 1)
	require.NoError(t, k.image.Grow(context.Background(), 8<<20))
	require.NotEqual(t, l1, k.image.Header().L1Offset)
	k.write(5, 1)
	k.flush()
	require.NoError(t, k.image.Close())
	t.Logf("%d crashed states judged", k.judge())
}

// TestCrashZeroAllocated cuts the power while clusters that are marked zero but
// have a host cluster, full of old bytes, are written to.
func TestCrashZeroAllocated(t *testing.T) {
	_, rng := testenv.Seed(t)
	k := newCrasher(t, rng, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}, simdisk.Options{Foreign: true, DiscardForeign: true})
	k.next = 1 << 30
	k.write(0, k.size/sector)
	require.NoError(t, k.image.Close())
	markZero(t, k.disk)
	k.submit(0, k.size/sector, 0)
	k.oracle.flush()
	k.alive.flush()
	k.open()
	k.every = true
	for range scaled(40) {
		k.write(k.rng.Int64N(k.size/sector-9), 1+k.rng.Int64N(9))
		if k.rng.IntN(4) == 0 {
			k.flush()
		}
	}
	require.NoError(t, k.image.Close())
	t.Logf("%d crashed states judged", k.judge())
}

// TestCrashWithRing cuts the power and lets the process die at random operations
// of the file while tables are written by commits only: what was completed is
// in the ring.
func TestCrashWithRing(t *testing.T) {
	_, rng := testenv.Seed(t)
	total := 0
	for _, c := range crashGeometries() {
		k := newCrasher(t, rng, c, simdisk.Options{Foreign: true, DiscardForeign: true})
		k.withRing()
		for i := range scaled(120) {
			k.step()
			if i%30 == 29 { // through the death of the process
				k.image.WaitIdle()
				k.open()
			}
		}
		require.NoError(t, k.image.Close())
		total += k.judge()
	}
	t.Logf("%d crashed states judged", total)
}

// markZero sets the zero mark of every data cluster of an image, as QEMU does
// when it zeroes a cluster without unmapping it.
func markZero(t *testing.T, d *simdisk.Disk) {
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err)
	l1 := make([]byte, int64(h.L1Size)*8)
	_, err = d.ReadAt(l1, h.L1Offset)
	require.NoError(t, err)
	tables := make([]format.L1Entry, h.L1Size)
	format.DecodeTable(tables, l1)
	for _, e := range tables {
		b := make([]byte, h.ClusterSize())
		_, err := d.ReadAt(b, e.Offset())
		require.NoError(t, err)
		entries := make([]format.L2Entry, h.L2Entries())
		format.DecodeTable(entries, b)
		for i := range entries {
			if entries[i] != 0 {
				entries[i] |= format.ZeroEntry
			}
		}
		format.EncodeTable(b, entries)
		_, err = d.WriteAt(b, e.Offset())
		require.NoError(t, err)
	}
	require.NoError(t, d.Sync())
}

// TestSettle lets the process die at every operation: what it had reserved is
// given back by the next one.
func TestSettle(t *testing.T) {
	_, rng := testenv.Seed(t)
	for _, c := range []qcow2.CreateOptions{
		{Size: 2 << 20, ClusterSize: 4096},
		{Size: 4 << 20, ClusterSize: 65536, RefcountBits: 1},
		{Size: 2 << 20, ClusterSize: 2048, Version: 2},
	} {
		k := newCrasher(t, rng, c, simdisk.Options{Foreign: true, DiscardForeign: true})
		k.every, k.noLeaks = true, true
		for range scaled(16) {
			k.write(k.rng.Int64N(k.size/sector-200), 1+k.rng.Int64N(200))
			if k.rng.IntN(3) == 0 {
				k.flush()
			}
		}
		require.NoError(t, k.image.Close())
		t.Logf("%d crashed states judged", k.judge())
	}
}

// TestCrashQEMU lets QEMU judge some of the crashed states too.
func TestCrashQEMU(t *testing.T) {
	img := testenv.Tool(t, "qemu-img")
	_, rng := testenv.Seed(t)
	for _, c := range crashGeometries()[:3] {
		k := newCrasher(t, rng, c, simdisk.Options{Foreign: true, DiscardForeign: true})
		for range 60 {
			k.step()
		}
		require.NoError(t, k.image.Close())
		rng.Shuffle(len(k.states), func(i, j int) { k.states[i], k.states[j] = k.states[j], k.states[i] })
		for _, s := range k.states[:min(12, len(k.states))] {
			path := filepath.Join(t.TempDir(), "crashed.qcow2")
			require.NoError(t, s.disk.Export(path))
			r := testenv.Try(t, img, "check", "-f", "qcow2", path)
			require.Contains(t, []int{0, 3}, r.ExitCode, "%s: %s", s.what, r)
		}
	}
}
