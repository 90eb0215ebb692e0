package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

// fakeImages makes images that are nothing but a mark at their begin.
type fakeImages struct {
	fail   error
	longer int64 // the file is made this long, if not 0
}

func (i fakeImages) Create(ctx context.Context, f block.File, o CreateImage) error {
	if i.fail != nil {
		return i.fail
	}
	if i.longer > 0 {
		_, err := f.Grow(ctx, i.longer, i.longer)
		return err
	}
	_, err := f.WriteAt([]byte("image of "+strconv.FormatInt(o.Size, 10)), 0)
	return err
}

// WriterDied lets the jobs find out.
func (fakeImages) WriterDied(block.File) (bool, error) { return true, nil }

func (fakeImages) Backing(f block.File) (string, error) {
	_, err := f.ReadAt(make([]byte, 1), 0)
	return "", err
}

func (fakeImages) Bound(o CreateImage) int64 { return o.Size + mib }

// manyBytes is a host that never runs out.
func manyBytes(string) (int64, error) { return 1 << 60, nil }

// testOptions are those of a pool that may be filled to the last byte, and of which
// nobody is warned.
func testOptions() Options {
	return Options{Capacity: 2 * gib, Images: fakeImages{}, HostFree: manyBytes, Reserve: -1, WarnAt: 2, CriticalAt: 3}
}

// domainOf is where a pool in a directory has its files.
func domainOf(m *Manager) domainDir { return m.store.(*dirStore).domain }

func openPool(t *testing.T, dir string, o Options) *Manager {
	t.Helper()
	m, err := openManager(dir, o)
	require.NoError(t, err)
	t.Cleanup(func() {
		if m.ctx.Err() == nil {
			require.NoError(t, m.Close())
		}
	})
	return m
}

// kill ends a manager as SIGKILL does: nothing is tidied up, the kernel drops
// the lock.
func kill(t *testing.T, m *Manager) {
	t.Helper()
	m.cancel()
	require.NoError(t, m.store.close())
}

func create(t *testing.T, api API, name string, size int64) Volume {
	t.Helper()
	r, err := api.CreateVolume(t.Context(), VolumeCreateRequest{Name: name, Size: size})
	require.NoError(t, err)
	return r.Volume
}

func extend(t *testing.T, api API, name string, need, want int64) int64 {
	t.Helper()
	r, err := api.ExtendVolume(t.Context(), extendRequest(name, need, want))
	require.NoError(t, err)
	return r.Size
}

func extendRequest(name string, need, want int64) VolumeExtendRequest {
	return VolumeExtendRequest{VolumeRef: VolumeRef{Volume: name}, Need: need, Want: want}
}

func remove(t *testing.T, api API, name string) {
	t.Helper()
	_, err := api.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: name}})
	require.NoError(t, err)
}

func pool(t *testing.T, api API) PoolReply {
	t.Helper()
	r, err := api.GetPoolInfo(t.Context(), PoolInfoRequest{})
	require.NoError(t, err)
	return r
}

func requireCode(t *testing.T, code Code, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code, CodeOf(err), err.Error())
}

// requireSum checks that the books agree with the disk, and with the capacity.
func requireSum(t *testing.T, m *Manager) {
	t.Helper()
	all := m.sorted()
	release, err := m.takeAll(t.Context(), all) // what is in progress ends first
	require.NoError(t, err)
	defer release()
	p := pool(t, m)
	var sum int64
	for _, v := range all {
		info, err := os.Stat(m.store.(*dirStore).path(v))
		require.NoError(t, err)
		require.Equal(t, v.size, info.Size(), v.name())
		sum += info.Size()
	}
	require.Equal(t, sum, p.Granted)
	require.LessOrEqual(t, sum, p.Capacity)
}

func TestLayout(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", 10*gib)
	var got []string
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			info, _ := d.Info()
			rel = strings.NewReplacer(v.DomainUUID, "DOMAIN", v.ImageUUID, "IMAGE", v.VolumeUUID, "VOLUME").Replace(rel)
			got = append(got, fmt.Sprintf("%s %v", rel, info.Mode()))
			if !strings.HasSuffix(rel, "metadata") && !strings.HasSuffix(rel, ".meta") && !strings.HasSuffix(rel, ".lock") {
				got[len(got)-1] += fmt.Sprintf(" %d", info.Size())
			}
		}
		return err
	}))
	slices.Sort(got)
	mode := fs.FileMode(modeFile) &^ umask(t)
	want := []string{
		fmt.Sprintf("DOMAIN/dom_md/ids %v 0", mode), fmt.Sprintf("DOMAIN/dom_md/inbox %v 16777216", mode),
		fmt.Sprintf("DOMAIN/dom_md/leases %v 0", mode), fmt.Sprintf("DOMAIN/dom_md/metadata %v", mode),
		fmt.Sprintf("DOMAIN/dom_md/outbox %v 16777216", mode), fmt.Sprintf("DOMAIN/dom_md/spare %v %d", mode, spareSize),
		fmt.Sprintf("DOMAIN/dom_md/xleases %v 0", mode),
		fmt.Sprintf("DOMAIN/images/IMAGE/VOLUME %v 134217728", mode),
		fmt.Sprintf("DOMAIN/images/IMAGE/VOLUME.lease %v 0", mode), fmt.Sprintf("DOMAIN/images/IMAGE/VOLUME.meta %v", mode),
		fmt.Sprintf("spm.lock %v", mode),
	}
	require.Equal(t, want, got)
	meta, err := os.ReadFile(v.Path + extMeta)
	require.NoError(t, err)
	parsed, err := parseVolumeMeta(meta)
	require.NoError(t, err)
	require.Equal(t, "web1", parsed.alias())
	require.EqualValues(t, 10*gib, parsed.Capacity)
	require.Equal(t, v.DomainUUID, parsed.Domain.String())
}

// umask finds it out without changing it.
func umask(t *testing.T) fs.FileMode {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "m"), os.O_CREATE, 0o777)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	return 0o777 &^ info.Mode().Perm()
}

func TestLifeOfAVolume(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	v := create(t, m, "web1", 10*gib)
	require.EqualValues(t, chunkSize, v.Granted)
	require.EqualValues(t, 10*gib+mib, v.Bound)
	content, err := os.ReadFile(v.Path)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(string(content), "image of 10737418240"))

	for _, name := range []string{"web1", v.ImageUUID, v.VolumeUUID, strings.ToUpper(v.VolumeUUID)} {
		r, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: name}})
		require.NoError(t, err)
		require.Equal(t, v.VolumeUUID, r.VolumeUUID)
	}
	require.EqualValues(t, 256*mib, extend(t, m, "web1", 200*mib, 256*mib))
	require.EqualValues(t, 256*mib, extend(t, m, "web1", 1, 1), "never smaller")
	require.EqualValues(t, 256*mib, extend(t, m, "web1", 200*mib, 256*mib), "a late duplicate")
	requireSum(t, m)

	list, err := m.ListVolumes(t.Context(), VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, list.Volumes, 1)
	remove(t, m, "web1")
	require.NoFileExists(t, v.Path)
	require.Zero(t, pool(t, m).Granted)
	images, err := os.ReadDir(domainOf(m).images())
	require.NoError(t, err)
	require.Empty(t, images)
	_, err = m.ExtendVolume(t.Context(), extendRequest(v.VolumeUUID, 1, 1))
	requireCode(t, CodeNotFound, err)
}

func TestFirstSize(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	require.EqualValues(t, 2*mib, create(t, m, "small", mib).Granted, "a small one costs its bound")
	raw, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "raw", Size: 300 * mib, Format: FormatRaw})
	require.NoError(t, err)
	require.EqualValues(t, 300*mib, raw.Granted, "a raw one costs its size")
	requireSum(t, m)
}

func TestRefused(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	_, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	requireCode(t, CodeNotFound, err)
	require.ErrorContains(t, err, "tidemark volume create")
	v := create(t, m, "web1", gib)
	_, err = m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "web2"}})
	requireCode(t, CodeNotFound, err)
	require.ErrorContains(t, err, "there are web1")
	require.ErrorIs(t, err, fs.ErrNotExist)

	for name, c := range map[string]struct {
		r    VolumeCreateRequest
		code Code
	}{
		"same name":    {VolumeCreateRequest{Name: "web1", Size: gib}, CodeExists},
		"bad name":     {VolumeCreateRequest{Name: "a/b", Size: gib}, CodeInvalid},
		"long name":    {VolumeCreateRequest{Name: strings.Repeat("x", 300), Size: gib}, CodeInvalid},
		"no size":      {VolumeCreateRequest{Name: "x"}, CodeInvalid},
		"half a block": {VolumeCreateRequest{Name: "x", Size: 100}, CodeInvalid},
		"huge":         {VolumeCreateRequest{Name: "x", Size: 1 << 62}, CodeInvalid},
		"format":       {VolumeCreateRequest{Name: "x", Size: gib, Format: "vmdk"}, CodeInvalid},
		"no room":      {VolumeCreateRequest{Name: "x", Size: 3 * gib, Format: FormatRaw}, CodePoolFull},
		"version":      {VolumeCreateRequest{Header: Header{Version: 2}, Name: "x", Size: gib}, CodeNewerVersion},
		"no version":   {VolumeCreateRequest{Header: Header{Version: -1}, Name: "x", Size: gib}, CodeInvalid},
		"other pool":   {VolumeCreateRequest{Header: Header{PoolUUID: testPool.String()}, Name: "x", Size: gib}, CodeWrongPool},
		"epoch":        {VolumeCreateRequest{Header: Header{SPMEpoch: 9}, Name: "x", Size: gib}, CodeStopping},
	} {
		_, err := m.CreateVolume(t.Context(), c.r)
		require.Error(t, err, name)
		require.Equal(t, c.code, CodeOf(err), "%s: %v", name, err)
	}

	_, err = m.ExtendVolume(t.Context(), extendRequest("web1", v.Bound+1, 0))
	requireCode(t, CodeBound, err)
	require.ErrorIs(t, err, block.ErrNoSpace)
	_, err = m.ExtendVolume(t.Context(), extendRequest("web1", -1, 0))
	requireCode(t, CodeInvalid, err)
	older := 7
	_, err = m.ExtendVolume(t.Context(), VolumeExtendRequest{VolumeRef: VolumeRef{Volume: "web1", Generation: &older}, Need: 1})
	requireCode(t, CodeStale, err)
	require.EqualValues(t, v.Bound, extend(t, m, "web1", 1, 1<<60), "want is clamped to the bound")
	requireSum(t, m)
}

func TestCreateIsRepeatable(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	r := VolumeCreateRequest{Header: Header{RequestID: "one"}, Name: "web1", Size: gib}
	a, err := m.CreateVolume(t.Context(), r)
	require.NoError(t, err)
	b, err := m.CreateVolume(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, a.VolumeUUID, b.VolumeUUID)
	r.RequestID = "two"
	_, err = m.CreateVolume(t.Context(), r)
	requireCode(t, CodeExists, err)
	requireSum(t, m)
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	for name, images := range map[string]fakeImages{
		"error":    {fail: errors.New("no such geometry")},
		"too long": {longer: chunkSize + 1},
	} {
		o := testOptions()
		o.Images = images
		m := openPool(t, t.TempDir(), o)
		_, err := m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib})
		require.Error(t, err, name)
		require.Zero(t, pool(t, m).Granted)
		left, err := os.ReadDir(domainOf(m).images())
		require.NoError(t, err)
		require.Empty(t, left)
		_, err = m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web1", Size: gib, Format: FormatRaw})
		require.NoError(t, err, "the name is free again")
	}
}

func TestRemoveInUse(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	v := create(t, m, "web1", gib)
	for name, o := range map[string]hostfile.Options{
		"a writer":                       {Fixed: true},
		"a reader":                       {ReadOnly: true},
		"a reader beside another writer": {ReadOnly: true, Lock: hostfile.LockShared},
	} {
		f, err := hostfile.Open(v.Path, o)
		require.NoError(t, err, name)
		_, err = m.RemoveVolume(t.Context(), VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: "web1"}})
		requireCode(t, CodeInUse, err)
		require.ErrorIs(t, err, block.ErrInUse)
		require.ErrorContains(t, err, strconv.Itoa(os.Getpid()), "it names the holder")
		require.FileExists(t, v.Path)
		require.NoError(t, f.Close())
	}
	remove(t, m, "web1")
}

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	before := create(t, m, "web1", 10*gib)
	extend(t, m, "web1", 300*mib, 300*mib)
	first := pool(t, m)
	kill(t, m)

	o := testOptions()
	o.Capacity = 0
	m = openPool(t, dir, o)
	second := pool(t, m)
	require.Equal(t, first.PoolUUID, second.PoolUUID)
	require.Equal(t, first.SPMEpoch+1, second.SPMEpoch)
	require.EqualValues(t, 2*gib, second.Capacity, "the capacity is kept")
	r, err := m.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	require.NoError(t, err)
	require.Equal(t, before.VolumeUUID, r.VolumeUUID)
	require.Equal(t, before.Bound, r.Bound)
	require.EqualValues(t, 300*mib, r.Granted)
	require.EqualValues(t, 300*mib, extend(t, m, "web1", 300*mib, 300*mib), "a request of before the restart")
	requireSum(t, m)
}

// A crash between the truncation and the reply: the file is larger than anybody
// was told, and counts.
func TestRestartAfterAnUnansweredExtension(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", 10*gib)
	kill(t, m)
	require.NoError(t, os.Truncate(v.Path, 640*mib))
	m = openPool(t, dir, testOptions())
	require.EqualValues(t, 640*mib, pool(t, m).Granted)
	require.EqualValues(t, 640*mib, extend(t, m, "web1", 640*mib, 640*mib))
	requireSum(t, m)
}

func TestHalfMadeAndHalfRemoved(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	v := create(t, m, "web1", gib)
	half := domainOf(m).newImage(testImage)
	require.NoError(t, os.Mkdir(half, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(half, testPool.String()), make([]byte, 100), 0o600))
	gone := domainOf(m).removedImage(testImage)
	require.NoError(t, os.Mkdir(gone, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(gone, testPool.String()), nil, 0o600))
	foreign := filepath.Join(domainOf(m).image(testImage), testPool.String())
	require.NoError(t, os.Mkdir(filepath.Dir(foreign), 0o700))
	require.NoError(t, os.WriteFile(foreign, []byte("no .meta"), 0o600))
	require.NoError(t, os.WriteFile(v.Path+extMeta+extNew, []byte("half"), 0o600))
	lost := create(t, m, "web2", gib)
	require.NoError(t, os.Remove(lost.Path))
	kill(t, m)

	var log strings.Builder
	o := testOptions()
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	m = openPool(t, dir, o)
	require.Contains(t, log.String(), "volume="+lost.VolumeUUID)
	require.NotEmpty(t, volumeOf(t, m, lost.VolumeUUID).Damaged, "that was no crash")
	require.NotEmpty(t, volumeOf(t, m, testPool.String()).Damaged)
	require.NotContains(t, log.String(), "volume="+v.VolumeUUID)
	require.NoDirExists(t, half)
	require.NoDirExists(t, gone)
	require.FileExists(t, foreign, "what was not made here is not touched")
	list, err := m.ListVolumes(t.Context(), VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, list.Volumes, 3)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	m := openPool(t, dir, testOptions())
	_, err := openManager(dir, testOptions())
	require.ErrorIs(t, err, block.ErrInUse)
	require.ErrorContains(t, err, "process "+strconv.Itoa(os.Getpid()))
	require.NoError(t, m.Close())
	requireCode(t, CodeStopping, m.Close())

	o := testOptions()
	o.Capacity = gib
	_, err = openManager(dir, o)
	require.ErrorContains(t, err, "may only be raised")
	o.Capacity = 3 * gib
	m = openPool(t, dir, o)
	require.EqualValues(t, 3*gib, pool(t, m).Capacity)
	require.NoError(t, m.Close())

	require.NoError(t, os.Truncate(domainOf(m).metadata(), 40))
	_, err = openManager(dir, testOptions())
	require.ErrorContains(t, err, domainOf(m).metadata())

	// No new domain beside one that has lost its metadata: it would hide the volumes.
	require.NoError(t, os.Remove(domainOf(m).metadata()))
	_, err = openManager(dir, testOptions())
	require.ErrorContains(t, err, domainOf(m).metadata())
	require.DirExists(t, domainOf(m).images())
}

func TestHostSpace(t *testing.T) {
	var host int64 = 200 * mib
	o := testOptions()
	o.HostFree = func(string) (int64, error) { return host, nil }
	m := openPool(t, t.TempDir(), o)
	create(t, m, "web1", 10*gib) // 128 MiB of it promised and not allocated
	_, err := m.ExtendVolume(t.Context(), extendRequest("web1", 201*mib, 0))
	requireCode(t, CodePoolFull, err)
	require.Less(t, extend(t, m, "web1", 190*mib, gib), int64(201*mib), "no promise that the host cannot keep")
	host = 0
	_, err = m.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web2", Size: gib})
	requireCode(t, CodePoolFull, err)
	requireSum(t, m)
}

// Whatever the order of requests, the sum of the granted sizes never exceeds the
// capacity.
func TestCapacityUnderConcurrency(t *testing.T) {
	seed, _ := testenv.Seed(t)
	m := openPool(t, t.TempDir(), testOptions())
	watch, stop := context.WithCancel(t.Context())
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for watch.Err() == nil {
			if err := booksBalance(m); err != nil {
				t.Error(err)
				return
			}
		}
	})
	const workers = 8
	done := make(chan error, workers)
	for w := range workers {
		go func() { done <- churn(t.Context(), m, testenv.Rand(seed+uint64(w)), w) }()
	}
	var err error
	for range workers {
		err = errors.Join(err, <-done)
	}
	stop()
	watcher.Wait()
	require.NoError(t, err)
	requireSum(t, m)
}

// What is answered of a bound that a task raises meanwhile is the one or the other.
func TestExtendBesideARaisedBound(t *testing.T) {
	m := openPool(t, t.TempDir(), testOptions())
	v := create(t, m, "a", gib)
	var raising sync.WaitGroup
	raising.Go(func() {
		for n := range int64(100) {
			if err := m.raiseBound(uuid.MustParse(v.ImageUUID), uuid.MustParse(v.VolumeUUID), (1+n)*gib); err != nil {
				t.Error(err)
			}
		}
	})
	for n := range int64(100) {
		r, err := m.ExtendVolume(t.Context(), extendRequest("a", n*mib, 0))
		require.NoError(t, err)
		require.LessOrEqual(t, r.Size, r.Bound)
	}
	raising.Wait()
}

// booksBalance checks, at one moment, that no file is longer than what the books
// say, and that the books do not exceed the capacity.
func booksBalance(m *Manager) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum int64
	for _, v := range m.volumes {
		sum += v.size
		if n := m.store.length(v, 0); n > v.size {
			return fmt.Errorf("volume %s is %d bytes long, %d in the books", v.name(), n, v.size)
		}
	}
	if sum != m.granted || sum > m.capacity {
		return fmt.Errorf("volumes %d, granted %d, capacity %d", sum, m.granted, m.capacity)
	}
	return nil
}

// churn does what several clients of one volume each would.
func churn(ctx context.Context, m *Manager, rng *rand.Rand, w int) error {
	name := fmt.Sprint("vol", w/2) // two workers share a volume
	for range 40 {
		var err error
		switch rng.IntN(8) {
		case 0:
			_, err = m.RemoveVolume(ctx, VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: name}})
		case 1, 2:
			_, err = m.CreateVolume(ctx, VolumeCreateRequest{Name: name, Size: 10 * gib})
		default:
			need := rng.Int64N(gib)
			r := extendRequest(name, need, need+rng.Int64N(gib))
			r.WaitMS = rng.Int64N(3)
			var reply VolumeExtendReply
			if reply, err = m.ExtendVolume(ctx, r); err == nil && reply.Size < need {
				return fmt.Errorf("asked for %d, got %d", need, reply.Size)
			}
		}
		if code := CodeOf(err); err != nil && code == CodeInternal {
			return err
		}
	}
	return nil
}

func TestAdmit(t *testing.T) {
	const k = 4096
	for _, c := range []struct {
		name   string
		d      demand
		v      verdict
		target int64
	}{
		{"enough already", demand{size: 10 * k, bound: 99 * k, need: 5 * k, want: 5 * k, free: 9 * k}, enough, 10 * k},
		{"headroom", demand{size: 10 * k, bound: 99 * k, need: 10 * k, want: 20 * k, free: 99 * k}, grant, 20 * k},
		{"headroom, as far as there is", demand{size: 10 * k, bound: 99 * k, need: 10 * k, want: 20 * k, free: 5 * k}, grant, 15 * k},
		{"no headroom while others wait", demand{size: 10 * k, bound: 99 * k, need: 10 * k, want: 20 * k, free: 99 * k, waiting: true}, enough, 10 * k},
		{"need and want", demand{size: 10 * k, bound: 99 * k, need: 12 * k, want: 20 * k, free: 99 * k}, grant, 20 * k},
		{"need, and less than want", demand{size: 10 * k, bound: 99 * k, need: 12 * k, want: 20 * k, free: 3 * k}, grant, 13 * k},
		{"need alone while others wait behind", demand{size: 10 * k, bound: 99 * k, need: 12 * k, want: 20 * k, free: 99 * k, waiting: true}, grant, 12 * k},
		{"behind others", demand{size: 10 * k, bound: 99 * k, need: 12 * k, free: 99 * k, behind: true, waiting: true}, hold, 10 * k},
		{"full", demand{size: 10 * k, bound: 99 * k, need: 12 * k, free: k}, hold, 10 * k},
		{"overdrawn", demand{size: 10 * k, bound: 99 * k, need: 12 * k, free: -9 * k}, hold, 10 * k},
		{"bound", demand{size: 10 * k, bound: 11 * k, need: 12 * k, free: 99 * k}, refuse, 10 * k},
		{"bound before full", demand{size: 10 * k, bound: 11 * k, need: 12 * k, behind: true}, refuse, 10 * k},
		{"want beyond the bound", demand{size: 10 * k, bound: 11 * k, need: 11 * k, want: 99 * k, free: 99 * k}, grant, 11 * k},
		{"rounded to the unit", demand{size: 0, bound: 99 * k, need: 1, want: k + 1, free: 99 * k}, grant, 2 * k},
		{"larger than the bound at start", demand{size: 12 * k, bound: 11 * k, need: k, want: 99 * k, free: 99 * k}, enough, 12 * k},
	} {
		v, target := admit(c.d)
		require.Equal(t, c.v, v, c.name)
		require.Equal(t, c.target, target, c.name)
	}
}
