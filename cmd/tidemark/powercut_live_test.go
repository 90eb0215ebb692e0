package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
	"tidemark/spm"
)

// cutDisk is how much of the disk the guest uses, and cutSize what there is of it: so much
// more that no allocation has to wait for what was unmapped.
const (
	cutDisk = 1 << 20
	cutSize = 4 << 20
)

// A cutStory is what happens to a served image while a guest writes to it.
type cutStory struct {
	name   string
	format string // of the base
	snap   bool   // a leaf is there before
	begin  func(p *cutPool) (uuid.UUID, error)
	after  int  // volumes of the chain
	sweep  bool // the power is cut at each record of the task
	rounds int  // and so often at some step
}

var cutStories = []cutStory{
	{"snapshot", spm.Cow, false, (*cutPool).snapshot, 2, true, 4},
	{"snapshot of a raw volume", spm.Raw, false, (*cutPool).snapshot, 2, false, 5},
	{"merge", spm.Cow, true, (*cutPool).merge, 1, true, 8},
	{"merge into a raw volume", spm.Raw, true, (*cutPool).merge, 1, false, 6},
}

// The power is cut at each record of a live snapshot and a live merge, and at random
// changes of the disks between, while a guest writes: what was not synced is there, is
// not, or is there in part, on each disk and in the directory of the pool. The next
// manager finishes what was decided or takes it back, and the disk that it names has
// everything that the guest had flushed.
func TestPowerCutOfLiveSnapshotAndMerge(t *testing.T) {
	_, rng := testenv.Seed(t)
	soak, _ := time.ParseDuration(os.Getenv("TIDEMARK_SOAK"))
	for until := time.Now().Add(soak); ; {
		for _, s := range cutStories {
			t.Run(s.name, func(t *testing.T) { s.tell(t, rng) })
		}
		if t.Failed() || !time.Now().Before(until) {
			return
		}
	}
}

func (s cutStory) tell(t *testing.T, rng *rand.Rand) {
	records, steps := newCutPool(t, rng, s).run(0, 0)
	ends := map[string]int{}
	for n := int64(1); s.sweep && n <= records; n++ {
		ends[cutOnce(t, rng, s, n, 0)]++
	}
	for n := range s.rounds {
		if s.sweep || n%2 == 0 {
			ends[cutOnce(t, rng, s, 0, 1+rng.Int64N(steps))]++
		} else {
			ends[cutOnce(t, rng, s, 1+rng.Int64N(records), 0)]++
		}
	}
	t.Logf("%d records, about %d steps: %v", records, steps, ends)
	if s.sweep {
		require.Positive(t, ends["before"])
		require.Positive(t, ends["after"])
	}
}

func cutOnce(t *testing.T, rng *rand.Rand, s cutStory, record, step int64) string {
	p := newCutPool(t, rng, s)
	p.run(record, step)
	return p.judge(fmt.Sprintf("record %d, step %d", record, step))
}

// A cutPool is a pool with one served image, over whose machine the power is cut.
type cutPool struct {
	t     *testing.T
	rng   *rand.Rand
	story cutStory
	dir   string
	*machine
	guest        *cutGuest
	pool, domain uuid.UUID
	image        uuid.UUID
	base, leaf   uuid.UUID

	known    map[uuid.UUID]bool // tasks before it
	records  atomic.Int64       // of it
	recordAt int64              // the one at which the power is cut

	// What the power cut has left, and what may be on the disk.
	last, now folder // the directory at the last record, and at the end
	at        string // where the power was cut
	left      []map[string]*simdisk.Disk
	legal     [][]cutVersion
	answered  bool // the task had ended
}

func newCutPool(t *testing.T, rng *rand.Rand, s cutStory) *cutPool {
	t.Helper()
	p := &cutPool{t: t, rng: rng, story: s, dir: filepath.Join(t.TempDir(), "pool"), machine: newMachine(), image: uuid.New()}
	require.NoError(t, os.Mkdir(p.dir, 0o700))
	p.open()
	pools, err := p.host.Pools(t.Context())
	require.NoError(t, err)
	p.pool = pools[0]
	info, err := p.host.PoolInfo(t.Context(), p.pool)
	require.NoError(t, err)
	p.domain = info.Master
	v := spm.NewVolume{Size: cutSize, Format: s.format, Alloc: spm.Sparse, Type: spm.Leaf}
	if s.format == spm.Raw {
		v.Alloc = spm.Preallocated
	}
	p.base = p.create(v)
	return p
}

// open starts a manager over the machine.
func (p *cutPool) open() {
	p.t.Helper()
	var err error
	p.machine.host, err = spm.OpenDir(p.dir, spm.HostOptions{
		Options: spm.Options{Capacity: 4 << 30, Images: images{}}, Jobs: testJobs(), Servers: p.machine, At: p.record,
	})
	require.NoError(p.t, err)
}

// record is told of each record of a task.
func (p *cutPool) record(point string) {
	if p.guest == nil || p.ctx.Err() != nil {
		return
	}
	f, err := saveFolder(p.dir)
	if err != nil {
		panic(err)
	}
	p.mu.Lock()
	p.last, p.at = f, point
	p.mu.Unlock()
	if p.records.Add(1) == p.recordAt {
		p.cut()
	}
}

func (p *cutPool) volume(id uuid.UUID) spm.VolumeAt {
	return spm.VolumeAt{Pool: p.pool, Domain: p.domain, Image: p.image, Volume: id}
}

func (p *cutPool) create(v spm.NewVolume) uuid.UUID {
	p.t.Helper()
	v.VolumeAt = p.volume(uuid.New())
	task, err := p.host.CreateImageVolume(p.t.Context(), v)
	require.NoError(p.t, err)
	p.await(p.host, task)
	return v.Volume
}

// await waits for a task of a host, and reports whether it has done what it was to do.
func (p *cutPool) await(h *spm.Host, task uuid.UUID) (ok bool) {
	p.t.Helper()
	testenv.Eventually(p.t, serveLimit, "the task ends", func() bool {
		s, err := h.TaskStatus(p.t.Context(), task)
		if p.ctx.Err() != nil && h == p.host {
			return true
		}
		require.NoError(p.t, err)
		ok = s.Success
		return s.State == "finished" || s.State == "failed"
	})
	return ok
}

func (p *cutPool) snapshot() (uuid.UUID, error) {
	v := spm.NewVolume{VolumeAt: p.volume(p.leaf), Format: spm.Cow, Alloc: spm.Sparse, Type: spm.Leaf, Parent: p.base, ParentImage: p.image}
	return p.host.CreateImageVolume(p.t.Context(), v)
}

func (p *cutPool) merge() (uuid.UUID, error) {
	return p.host.MergeVolumes(p.t.Context(), spm.MergeVolumes{Pool: p.pool, Domain: p.domain, Image: p.image, Ancestor: p.base, Successor: p.leaf})
}

// run tells the story until the power is cut, at a record or a step, or else when the
// task is over.
func (p *cutPool) run(record, step int64) (records, steps int64) {
	t := p.t
	t.Helper()
	p.leaf = uuid.New()
	_, err := p.host.PrepareImage(t.Context(), p.volume(uuid.Nil), spm.PrepareOptions{})
	require.NoError(t, err)
	guest := newCutGuest(cutDisk, 2)
	for i := range 2 {
		guest.start(p.ctx, p.served.Device(), p.power, testenv.Rand(p.rng.Uint64()), i)
	}
	p.busy(guest, 20)
	if p.story.snap {
		task, err := p.snapshot()
		require.NoError(t, err)
		require.True(t, p.await(p.host, task))
		p.busy(guest, 20)
	}
	p.onCut = p.leave
	p.recordAt = record
	begun := p.steps.Load()
	if step > 0 {
		p.cutAt.Store(begun + step)
	}
	p.known = map[uuid.UUID]bool{}
	tasks, err := p.host.Tasks(t.Context())
	require.NoError(t, err)
	for _, task := range tasks {
		p.known[task.ID] = true
	}
	guest.small.Store(true)
	guest.quiet.Store(p.rng.IntN(2) == 0)
	p.guest = guest // from here on, what is recorded is the story's
	task, err := p.story.begin(p)
	if err == nil {
		p.answered = p.await(p.host, task)
	} else {
		require.Error(t, p.ctx.Err(), "%v", err)
	}
	steps, records = p.steps.Load()-begun, p.records.Load()
	if record == 0 && step == 0 {
		require.True(t, p.answered)
	}
	p.answered = p.answered && p.ctx.Err() == nil
	p.busy(guest, 10)
	p.cut()
	guest.wg.Wait()
	require.NoError(t, guest.failed())
	_ = p.host.Close() // it has no disks any more
	s := p.served
	go func() { // it may go on to try to open them for a while
		s.working <- struct{}{}
		_ = s.Close()
	}()
	return records, steps
}

// busy waits until the guest has done some more, or there is no power.
func (p *cutPool) busy(g *cutGuest, n int64) {
	p.t.Helper()
	begun := g.requests()
	testenv.Eventually(p.t, serveLimit, "the guest writes", func() bool { return g.requests() >= begun+n || p.ctx.Err() != nil || g.failed() != nil })
	require.NoError(p.t, g.failed())
}

// cutVariants are how many states of the disks are looked at for a power cut.
const cutVariants = 3

// leave notes what a power cut leaves.
func (p *cutPool) leave() {
	p.legal = p.guest.snapshot()
	odds := []float64{0, 0.5, 0.1 + 0.8*p.rng.Float64()}
	for i := range cutVariants {
		disks := map[string]*simdisk.Disk{}
		for path, d := range p.disks {
			keep := simdisk.KeepRandom(p.rng, odds[i])
			if i == 2 {
				keep = byOperation(p.rng, odds[i])
			}
			disks[path] = d.Crash(keep)
		}
		p.left = append(p.left, disks)
	}
	var err error
	if p.now, err = saveFolder(p.dir); err != nil {
		panic(err)
	}
}

// byOperation keeps whole operations.
func byOperation(rng *rand.Rand, odds float64) simdisk.Keep {
	kept := map[int]bool{}
	return func(op *simdisk.Op, _ int64) bool {
		if _, known := kept[op.ID]; !known {
			kept[op.ID] = rng.Float64() < odds
		}
		return kept[op.ID]
	}
}

// judge starts the machine again, with each state of the directory and of the disks.
func (p *cutPool) judge(what string) (end string) {
	t := p.t
	t.Helper()
	what = fmt.Sprintf("%s, behind %s", what, p.at)
	folders := []folder{p.now}
	if p.last != nil && !p.last.same(p.now) {
		folders = append(folders, p.last)
	}
	for _, f := range folders {
		require.NoError(t, f.restore(p.dir))
		p.machine = newMachine()
		p.guest = nil
		p.open()
		chain, done := p.recovered(what)
		end = "before"
		if done {
			end = "after"
		}
		for i, disks := range p.left {
			p.machine.disks = disks
			p.requireDisk(chain, fmt.Sprintf("%s, %s, disks %d", what, end, i))
		}
		require.NoError(t, p.machine.host.Close())
	}
	return end
}

// recovered waits for the tasks that a manager finds, and returns the chain that there
// is then, from the base up.
func (p *cutPool) recovered(what string) (chain []spm.VolumeInfo, done bool) {
	t := p.t
	t.Helper()
	tasks, err := p.host.Tasks(t.Context())
	require.NoError(t, err)
	for _, task := range tasks {
		if !p.known[task.ID] {
			done = p.await(p.host, task.ID)
		}
	}
	all, err := p.host.VolumesOf(t.Context(), p.domain, p.image)
	require.NoError(t, err)
	before := 1
	if p.story.snap {
		before = 2
	}
	want := before
	if done || p.answered {
		want = p.story.after
	}
	require.Len(t, all, want, "%s: %+v", what, all)
	for _, id := range []uuid.UUID{p.base, p.leaf} {
		for _, v := range all {
			if v.Volume == id {
				chain = append(chain, v)
			}
		}
	}
	require.Len(t, chain, want, what)
	for i, v := range chain {
		typ := spm.Leaf
		if i < len(chain)-1 {
			typ = spm.Internal
		}
		require.Equal(t, typ, v.Type, what)
	}
	require.Equal(t, spm.Legal, chain[len(chain)-1].Legality, what)
	return chain, want == p.story.after
}

// requireDisk requires that the disk has what it must, and that every image is whole.
func (p *cutPool) requireDisk(chain []spm.VolumeInfo, what string) {
	t := p.t
	t.Helper()
	s, err := p.serve(t.Context(), chain[len(chain)-1].Volume.String())
	require.NoError(t, err, what)
	got := make([]byte, cutDisk)
	require.NoError(t, s.Device().ReadAt(context.Background(), got, 0, 0), what)
	require.NoError(t, judgeCut(got, p.legal), what)
	require.NoError(t, s.Close(), what)
	for _, v := range chain {
		if v.Format != spm.Cow {
			continue
		}
		d, err := p.disk(v.Path)
		require.NoError(t, err)
		r, err := qcow2.Check(t.Context(), d, qcow2.CheckOptions{})
		require.NoError(t, err, what)
		require.Zero(t, r.Corruptions+r.CheckErrors, "%s: volume %s: %q", what, v.Volume, r.Problems)
	}
}
