package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/spm"
)

// A chainSpec describes a volume of a pool that is made by hand.
type chainSpec struct {
	name, format string
	size         int64
	parent       string // the name of one before it; "" is none
	granted      int64  // 0: what the manager grants
}

// A chainPool is a pool in a directory with volumes that are based on each other.
// They are made while no manager runs, from volumes of their own.
type chainPool struct {
	*pool
	dir     string
	volumes map[string]spm.Volume // by the name in the spec
}

// id is the UUID of a volume.
func (p *chainPool) id(name string) string { return p.volumes[name].VolumeUUID }

// newChainPool makes the volumes, which have images of their own, and starts a
// manager again.
func newChainPool(t testing.TB, specs ...chainSpec) *chainPool {
	t.Helper()
	p := &chainPool{dir: shortPath(t), volumes: map[string]spm.Volume{}}
	p.open(t)
	for _, s := range specs {
		r, err := p.CreateVolume(t.Context(), spm.VolumeCreateRequest{Name: s.name, Size: s.size, Format: s.format})
		require.NoError(t, err)
		if s.granted > 0 {
			_, err = p.ExtendVolume(t.Context(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: s.name}, Need: s.granted})
			require.NoError(t, err)
		}
		p.volumes[s.name] = r.Volume
	}
	require.NoError(t, p.Close())
	for _, s := range specs {
		if s.parent != "" {
			p.base(t, s)
		}
	}
	p.open(t)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p
}

// open starts the manager.
func (p *chainPool) open(t testing.TB) {
	t.Helper()
	var err error
	p.pool, err = openPool(&poolOptions{dir: p.dir, capacity: 4 << 30}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
}

// base lets a volume be based on its parent, which does not become a template by that: tests
// write to it.
func (p *chainPool) base(t testing.TB, s chainSpec) {
	t.Helper()
	child, parent := p.volumes[s.name], p.volumes[s.parent]
	replaceMeta(t, child.Path, "PUUID", parent.VolumeUUID)
	f, err := hostfile.Open(child.Path, hostfile.Options{Fixed: true})
	require.NoError(t, err)
	require.NoError(t, images{}.Create(t.Context(), f, spm.CreateImage{
		Size: s.size, Format: spm.FormatQCOW2,
		Backing: &spm.BackingRef{Name: filepath.Join("..", parent.ImageUUID, parent.VolumeUUID), Format: parent.Format},
	}))
	require.NoError(t, f.Close())
}

// replaceMeta sets a key of a volume's metadata.
func replaceMeta(t testing.TB, volume, key, value string) {
	t.Helper()
	b, err := os.ReadFile(volume + ".meta")
	require.NoError(t, err)
	line := regexp.MustCompile("(?m)^" + key + "=.*$")
	require.True(t, line.Match(b), key)
	require.NoError(t, os.WriteFile(volume+".meta", line.ReplaceAll(b, []byte(key+"="+value)), 0o660))
}

// shortPath is a directory whose path leaves room for the name of a socket.
func shortPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tm")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// disk opens a volume with what is below it.
func (p *chainPool) disk(t testing.TB, name string, readOnly bool) *disk {
	t.Helper()
	d, err := openDisk(t.Context(), diskSpec{Image: p.id(name), Pool: p, ReadOnly: readOnly})
	require.NoError(t, err)
	return d
}

// write writes a byte to a range of a volume that nobody has open.
func (p *chainPool) write(t testing.TB, name string, b byte, off, n int) {
	t.Helper()
	d := p.disk(t, name, false)
	require.NoError(t, d.Device().WriteAt(context.Background(), bytes.Repeat([]byte{b}, n), int64(off), 0))
	require.NoError(t, d.Close())
}

// content reads all of a volume.
func (p *chainPool) content(t testing.TB, name string) []byte {
	t.Helper()
	d := p.disk(t, name, true)
	b := make([]byte, d.Device().Info().Size)
	require.NoError(t, d.Device().ReadAt(t.Context(), b, 0, 0))
	require.NoError(t, d.Close())
	return b
}

// fillBytes sets a range.
func fillBytes(p []byte, b byte, off, n int) { copy(p[off:off+n], bytes.Repeat([]byte{b}, n)) }

// A chain of a pool: the leaf over a qcow2 and a raw volume, each as long as it is,
// is what QEMU sees when it follows the names in the headers. Two leaves over one
// template are open at the same time, and nobody can write to it meanwhile.
func TestPoolChain(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", format: "raw", size: 3 << 20}, chainSpec{name: "mid", size: 4 << 20, parent: "base"},
		chainSpec{name: "top", size: 5 << 20, parent: "mid"}, chainSpec{name: "other", size: 4 << 20, parent: "mid"})
	require.Equal(t, p.id("mid"), p.volumeInfo(t, "top").ParentUUID)
	require.Equal(t, p.volumes["mid"].ImageUUID, p.volumeInfo(t, "top").ParentImage)
	require.Empty(t, p.volumeInfo(t, p.id("base")).ParentUUID)

	want := make([]byte, 5<<20)
	fillBytes(want, 1, 0, 3<<20)
	p.write(t, "base", 1, 0, 3<<20)
	p.write(t, "mid", 2, 1<<20, 100<<10)
	p.write(t, "top", 3, 1<<20+50<<10, 100<<10)
	p.write(t, "top", 3, 4<<20, 1<<20)
	fillBytes(want, 2, 1<<20, 100<<10)
	onMid := bytes.Clone(want[:4<<20])
	fillBytes(want, 3, 1<<20+50<<10, 100<<10)
	fillBytes(want, 3, 4<<20, 1<<20)
	require.True(t, bytes.Equal(want, p.content(t, "top")))

	top, other := p.disk(t, "top", false), p.disk(t, "other", false)
	got := make([]byte, 4<<20)
	require.NoError(t, other.Device().ReadAt(t.Context(), got, 0, 0))
	require.True(t, bytes.Equal(onMid, got))
	_, err := openDisk(t.Context(), diskSpec{Image: p.id("mid"), Pool: p})
	require.ErrorContains(t, err, "in use", "a template that others show is not written to")
	require.NoError(t, top.Close())
	require.NoError(t, other.Close())

	file := filepath.Join(t.TempDir(), "raw")
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "convert", "-f", "qcow2", "-O", "raw", p.volumes["top"].Path, file)
	theirs, err := os.ReadFile(file)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, theirs), "as QEMU sees it")
}

// volumeInfo asks the manager.
func (p *chainPool) volumeInfo(t testing.TB, name string) spm.Volume {
	t.Helper()
	r, err := p.GetVolumeInfo(t.Context(), spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: name}})
	require.NoError(t, err)
	return r.Volume
}

// The pool says what a volume is based on, not the names in the headers.
func TestPoolChainIsThePools(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: 1 << 20}, chainSpec{name: "top", size: 1 << 20, parent: "base"})
	require.NoError(t, p.Close())
	path := p.volumes["top"].Path
	for _, c := range []struct{ parent, want string }{
		{uuid.NewString(), "no volume has"},
		{uuid.Nil.String(), "the pool says that the volume is based on none"},
		{p.id("top"), "expected a chain without a loop"},
	} {
		replaceMeta(t, path, "PUUID", c.parent)
		p.open(t)
		_, err := openDisk(t.Context(), diskSpec{Image: p.id("top"), Pool: p})
		require.ErrorContains(t, err, c.want)
		require.NoError(t, p.Close())
	}
	p.open(t)
}

// A raw volume is served as the pool says that it is, in its virtual size.
func TestPoolServesRaw(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "r", format: "raw", size: 3<<20 + 512, granted: 3<<20 + 512})
	proc, socket := startNBD(t, "-t", "--spm", p.socket, "r")
	c := dialNBD(t, socket, "")
	require.EqualValues(t, 3<<20+512, c.Info().Size)
	require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 4096), 2<<20, 0))
	require.NoError(t, c.Close())
	stopped(t, proc)
	b, err := os.ReadFile(p.volumes["r"].Path)
	require.NoError(t, err)
	want := make([]byte, 3<<20+512)
	fillBytes(want, 7, 2<<20, 4096)
	require.True(t, bytes.Equal(want, b))
}

// What a process that died had completed in a volume is seen by those that are
// based on it, although they only read it.
func TestPoolChainCompletesWhatDied(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: 64 << 20}, chainSpec{name: "top", size: 64 << 20, parent: "base"})
	proc, socket := startNBD(t, "-t", "--spm", p.socket, p.id("base"))
	c := dialNBD(t, socket, "")
	require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 64<<10), 5<<20, 0))
	proc.Kill()
	require.Error(t, proc.Wait(t, serveLimit))
	want := make([]byte, 64<<20)
	fillBytes(want, 9, 5<<20, 64<<10)
	require.True(t, bytes.Equal(want, p.content(t, "top")), "not flushed, and completed")
}

// Nobody writes to what others are based on, however he has come to its name.
func TestVolumeBelowOthersIsNotWritten(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: 1 << 20}, chainSpec{name: "top", size: 1 << 20, parent: "base"})
	require.NoError(t, p.Close())
	replaceMeta(t, p.volumes["base"].Path, "VOLTYPE", "SHARED")
	p.open(t)
	_, err := openDisk(t.Context(), diskSpec{Image: p.id("base"), Pool: p})
	require.ErrorContains(t, err, "is a template")
	p.content(t, "base")
	require.NoError(t, p.disk(t, "top", false).Close())
}

// tableCovers is how much of a disk one L2 table maps, and killWriter writes to so many.
const (
	tableCovers = 512 << 20
	manyTables  = 256
)

// killWriter lets a process die that has written something to each of many tables of a
// volume, behind its first at bytes. It leaves leaks if nothing was there.
func (p *chainPool) killWriter(t testing.TB, name string, at int64) {
	t.Helper()
	proc, socket := startNBD(t, "-t", "--spm", p.socket, p.id(name))
	c := dialNBD(t, socket, "")
	for n := range int64(manyTables) {
		require.NoError(t, c.WriteAt(t.Context(), bytes.Repeat([]byte{9}, 512), n*tableCovers+at, 0))
	}
	proc.Kill()
	require.Error(t, proc.Wait(t, serveLimit))
	const leaks = 3
	require.Equal(t, leaks, p.check(t, name), "it had reserved something")
}

// check is what qemu-img check says of a volume.
func (p *chainPool) check(t testing.TB, name string) (exitCode int) {
	t.Helper()
	return testenv.Try(t, testenv.Tool(t, "qemu-img"), "check", "-q", p.volumes[name].Path).ExitCode
}

// Who opens a chain also gives back what the process that died had reserved in a volume
// below, and does not close that before it is done: there are many tables to be read.
func TestPoolChainGivesBackWhatDied(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: manyTables * tableCovers}, chainSpec{name: "top", size: manyTables * tableCovers, parent: "base"})
	p.killWriter(t, "base", 0)
	require.NoError(t, p.disk(t, "top", true).Close())
	require.Zero(t, p.check(t, "base"))
}

// A volume whose data are not whole is opened below another one, and for itself only if
// that is asked for.
func TestIllegalVolumeIsNotServed(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: 1 << 20}, chainSpec{name: "top", size: 1 << 20, parent: "base"})
	require.NoError(t, p.Close())
	replaceMeta(t, p.volumes["base"].Path, "LEGALITY", "ILLEGAL")
	p.open(t)
	p.content(t, "top")
	_, err := openDisk(t.Context(), diskSpec{Image: p.id("base"), Pool: p, ReadOnly: true})
	require.ErrorContains(t, err, "it is illegal")
	s := newServers(t, p, shortPath(t), "image")
	_, err = s.Start(t.Context(), spm.Serve{Image: "image", Leaf: p.id("base"), ReadOnly: true})
	require.ErrorContains(t, err, "it is illegal")
	_, err = s.Start(t.Context(), spm.Serve{Image: "image", Leaf: p.id("base"), ReadOnly: true, AllowIllegal: true})
	require.NoError(t, err)
}

// shorteningPool does what a holder that died has asked for, between the two looks of the next
// one.
type shorteningPool struct {
	*pool
	t     *testing.T
	looks int
}

func (p *shorteningPool) Volume(ctx context.Context, r spm.VolumeRef) (*spm.VolumeHandle, error) {
	if p.looks++; p.looks == 2 {
		i, err := p.GetVolumeInfo(ctx, spm.VolumeInfoRequest{VolumeRef: r})
		require.NoError(p.t, err)
		_, err = p.ReduceVolume(ctx, spm.VolumeReduceRequest{
			Header: spm.Header{SPMEpoch: i.SPMEpoch}, VolumeRef: r, From: i.Granted, To: i.Granted / 2, Changes: i.Changes,
		})
		require.NoError(p.t, err)
	}
	return p.pool.Volume(ctx, r)
}

// What becomes shorter while it is opened for writing is not written to beyond its end.
func TestOpenOfAVolumeThatBecomesShorter(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "a", format: spm.FormatQCOW2, size: 1 << 30, granted: 512 << 20})
	short := &shorteningPool{pool: p.pool, t: t}
	_, err := openDisk(t.Context(), diskSpec{Image: "a", Pool: short})
	require.ErrorContains(t, err, "it became shorter meanwhile, from 536870912 to 268435456 bytes")
	d, err := openDisk(t.Context(), diskSpec{Image: "a", Pool: short})
	require.NoError(t, err)
	require.NoError(t, d.Close())
}

// What a writer of another volume has left behind, which is gone and whose name in the
// storage this one has now, is nothing that a reader completes: he would be in the way of
// others who read it.
func TestReaderLeavesWhatIsAnothers(t *testing.T) {
	p := newChainPool(t, chainSpec{name: "base", size: 1 << 20},
		chainSpec{name: "one", size: 1 << 20, parent: "base"}, chainSpec{name: "other", size: 1 << 20, parent: "base"})
	st, err := os.Stat(p.volumes["base"].Path)
	require.NoError(t, err)
	dir := redoDirOf(redoDir(), hostfile.ID(st))
	require.NoError(t, os.MkdirAll(dir, 0o700))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	stale := filepath.Join(dir, "0123456789abcdef")
	require.NoError(t, os.WriteFile(stale, make([]byte, 4096), 0o600))
	served := p.disk(t, "one", false)
	other, base := p.disk(t, "other", true), p.disk(t, "base", true)
	require.NoError(t, base.Close())
	require.NoError(t, other.Close())
	require.NoError(t, served.Close())
	require.FileExists(t, stale)
}
