package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// A subject is a kind of image for tests that hold the engine against a plain
// array of bytes. QEMU makes it, or fills it, so that what the engine does not write
// itself (snapshots, compressed clusters) is there.
type subject struct {
	name    string
	size    int64
	options string   // of qemu-img create
	backing int64    // size of a backing file full of bytes, 0: none
	script  []string // of qemu-io, before the first snapshot
	snaps   int      // internal snapshots, each followed by the script
	convert []string // options of qemu-img convert instead of a script
	// ours: the engine makes the image, and so has a place for the number of a ring
	// where there is a backing file; QEMU fills it.
	ours *qcow2.CreateOptions
	// fresh: space that is new reads zero, as in a file; otherwise it is another
	// tenant's, as on a volume.
	fresh bool
}

// subjects are those with the size that most tests use.
func subjects() []subject { return subjectsOf(1<<20 + 3*sector) }

// subjectsOf are all kinds of images that the engine writes, of one size. What is
// in them is in proportion to it.
func subjectsOf(size int64) []subject {
	part := func(percent int64) int64 { return size * percent / 100 &^ 4095 }
	writes := []string{
		fmt.Sprintf("write -P 1 0 %d", part(30)), fmt.Sprintf("write -P 2 %d %d", part(60), part(7)),
		fmt.Sprintf("write -z %d %d", part(62), part(3)), fmt.Sprintf("discard %d %d", part(12), part(7)),
	}
	backing := part(67) + 100
	return []subject{
		{name: "plain", size: size},
		{name: "plain, fresh space reads zero", size: size, fresh: true},
		{name: "small clusters", size: size, options: "cluster_size=512,refcount_bits=64", script: writes},
		{name: "v2", size: size, options: "compat=0.10,cluster_size=4k", script: writes, fresh: true},
		{name: "extended L2", size: size, options: "extended_l2=on,cluster_size=16k", script: writes},
		{name: "backing", size: size, options: "cluster_size=4k", backing: backing},
		{name: "backing, longer", size: size, options: "cluster_size=64k", backing: size + 100<<10, fresh: true},
		{name: "backing, v2", size: size, options: "compat=0.10,cluster_size=4k", backing: backing, script: writes},
		{name: "backing, extended L2", size: size, options: "extended_l2=on,cluster_size=32k", backing: backing, script: writes, fresh: true},
		{name: "backing, ours", size: size, ours: &qcow2.CreateOptions{ClusterSize: 4096}, backing: backing, script: writes, fresh: true},
		{name: "backing, extended L2, ours", size: size, ours: &qcow2.CreateOptions{ClusterSize: 16 << 10, ExtendedL2: true}, backing: backing, script: writes},
		{name: "snapshots", size: size, options: "cluster_size=4k", script: writes, snaps: 2},
		{name: "snapshots, small", size: size, options: "cluster_size=512,refcount_bits=16", script: writes, snaps: 1, fresh: true},
		{name: "snapshots, extended L2, backing", size: size, options: "extended_l2=on,cluster_size=16k", backing: part(88), script: writes, snaps: 1},
		{name: "compressed", size: size, options: "cluster_size=4k", convert: []string{"-c"}},
		{name: "compressed, zstd", size: size, options: "cluster_size=64k,compression_type=zstd", convert: []string{"-c"}, fresh: true},
		{name: "compressed, extended L2", size: size, options: "extended_l2=on,cluster_size=16k", convert: []string{"-c"}},
		{name: "preallocated", size: size, options: "cluster_size=4k,preallocation=metadata", fresh: true}, // its slices are runs
	}
}

// fixed: the disk cannot become larger.
func (s subject) fixed() bool { return s.backing > s.size }

func (s subject) zstd() bool { return strings.Contains(s.options, "zstd") }

// bubble is synctest.Test for what reads the subject. Those with zstd do not run in
// parallel.
func (s subject) bubble(t *testing.T, f func(*testing.T)) {
	if s.zstd() {
		qcow2.ForgetDecoders()
		defer qcow2.ForgetDecoders()
	}
	synctest.Test(t, f)
}

// someSubjects are all of them, or every third under -short.
func someSubjects(size int64) []subject {
	all := subjectsOf(size)
	if !testing.Short() {
		return all
	}
	var some []subject
	for i := 2; i < len(all); i += 3 {
		some = append(some, all[i])
	}
	return some
}

// A made subject is its image, and what must stay as it is.
type made struct {
	subject
	disk    *simdisk.Disk
	content []byte // of the disk
	below   []byte // of the backing file
	snaps   map[string][]byte
}

type madeKey struct {
	name string
	size int64
}

var (
	madeMu sync.Mutex
	madeAt = map[madeKey]*made{}
)

// make has QEMU make the image, once for all tests; each gets a copy.
func (s subject) make(t *testing.T) *made {
	img, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	madeMu.Lock()
	defer madeMu.Unlock()
	m := madeAt[madeKey{s.name, s.size}]
	if m == nil {
		dir := t.TempDir()
		path, base := filepath.Join(dir, "image.qcow2"), filepath.Join(dir, "base.raw")
		m = &made{subject: s, snaps: map[string][]byte{}}
		args := []string{"create", "-q", "-f", "qcow2", "-o", "size=" + fmt.Sprint(s.size)}
		if s.options != "" {
			args = append(args, "-o", s.options)
		}
		if s.backing > 0 {
			m.below = pattern(s.backing)
			require.NoError(t, os.WriteFile(base, m.below, 0o600))
			args = append(args, "-b", base, "-F", "raw")
		}
		if s.ours != nil {
			o := *s.ours
			o.Size, o.BackingFile, o.BackingFormat = s.size, base, "raw"
			require.NoError(t, newDisk(t, o).Export(path))
		} else {
			testenv.Run(t, img, append(args, path)...)
		}
		if s.convert != nil {
			require.NoError(t, os.WriteFile(base, pattern(s.size), 0o600))
			args := append([]string{"convert", "-f", "raw", "-O", "qcow2", "-o", s.options}, s.convert...)
			testenv.Run(t, img, append(args, base, path)...)
		}
		for i := range s.snaps + 1 {
			for _, c := range s.script {
				testenv.Run(t, qio, "-f", "qcow2", "-c", c, path)
			}
			if i < s.snaps {
				name := fmt.Sprint("snap", i)
				testenv.Run(t, img, "snapshot", "-c", name, path)
				m.snaps[name] = rawOf(t, img, path, "-l", name)
			}
		}
		m.content = rawOf(t, img, path)
		var err error
		m.disk, err = simdisk.Import(path, simdisk.Options{Foreign: !s.fresh, DiscardForeign: true})
		require.NoError(t, err)
		madeAt[madeKey{s.name, s.size}] = m
	}
	c := *m
	c.disk, c.content = m.disk.Crash(simdisk.KeepAll), bytes.Clone(m.content)
	return &c
}

// rawOf is the content that QEMU reads.
func rawOf(t *testing.T, img, path string, args ...string) []byte {
	raw := filepath.Join(t.TempDir(), "content.raw")
	args = append(append([]string{"convert", "-f", "qcow2", "-O", "raw"}, args...), path, raw)
	testenv.Run(t, img, args...)
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	return b
}

// pattern is n bytes, compressible, every sector different.
func pattern(n int64) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i/sector) | 1
		if i%97 == 0 {
			b[i] = byte(i >> 11)
		}
	}
	return b
}

// open opens the image over f, with its backing file if it has one.
func (m *made) open(t *testing.T, f block.File, o qcow2.Options) *qcow2.Image {
	t.Helper()
	im, err := m.tryOpen(t, f, o)
	require.NoError(t, err)
	return im
}

// tryOpen is open for who expects that it may fail.
func (m *made) tryOpen(t *testing.T, f block.File, o qcow2.Options) (*qcow2.Image, error) {
	t.Helper()
	if m.below != nil {
		d := blocktest.NewMemDevice(int64(len(m.below)))
		require.NoError(t, d.WriteAt(context.Background(), m.below, 0, 0))
		o.Backing = d
	}
	return qcow2.Open(context.Background(), f, o)
}

// judgeSnapshots requires that the image's snapshots are as they were. Each is read
// as a disk: in a copy of the image whose header names the snapshot's L1 table.
func (m *made) judgeSnapshots(t *testing.T, d *simdisk.Disk, what string) {
	t.Helper()
	if len(m.snaps) == 0 {
		return
	}
	h, err := qcow2.ReadHeader(d)
	require.NoError(t, err, what)
	list, _, err := qcow2.ReadSnapshots(d, h)
	require.NoError(t, err, what)
	require.Len(t, list, len(m.snaps), what)
	for _, s := range list {
		view := d.Crash(simdisk.KeepAll)
		b := binary.BigEndian.AppendUint32(nil, s.L1Size)
		b = binary.BigEndian.AppendUint64(b, uint64(s.L1Offset))
		_, err := view.WriteAt(b, 36)
		require.NoError(t, err)
		_, err = view.WriteAt(binary.BigEndian.AppendUint64(nil, uint64(m.size)), 24)
		require.NoError(t, err)
		im := m.open(t, view, qcow2.Options{ReadOnly: true})
		got := make([]byte, m.size)
		require.NoError(t, im.ReadAt(context.Background(), got, 0, 0), what)
		requireSame(t, m.snaps[s.Name], got, s.Name+": "+what)
		require.NoError(t, im.Close())
	}
}

// judge compares everything with QEMU's view of the image.
func (m *made) judge(t *testing.T, d *simdisk.Disk) {
	t.Helper()
	img := testenv.Tool(t, "qemu-img")
	dir := t.TempDir()
	path := filepath.Join(dir, "image.qcow2")
	require.NoError(t, d.Export(path))
	if m.below != nil {
		base := filepath.Join(dir, "base.raw")
		require.NoError(t, os.WriteFile(base, m.below, 0o600))
		testenv.Run(t, img, "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", base, path)
	}
	r := testenv.Try(t, img, "check", "-f", "qcow2", path)
	require.Contains(t, []int{0, 3}, r.ExitCode, "%s", r)
	requireSame(t, m.content, rawOf(t, img, path), "the disk")
	for name, want := range m.snaps {
		got := rawOf(t, img, path, "-l", name) // as long as the disk is by now
		require.GreaterOrEqual(t, len(got), len(want), name)
		requireSame(t, want, got[:len(want)], name)
	}
}

func requireSame(t *testing.T, want, got []byte, what string) {
	t.Helper()
	require.Equal(t, len(want), len(got), what)
	if bytes.Equal(want, got) {
		return
	}
	for i := range want {
		if want[i] != got[i] {
			t.Fatalf("%s: byte %d (sector %d): %d instead of %d", what, i, i/sector, got[i], want[i])
		}
	}
}

// step does one random request on the image and on the array.
func (m *made) step(ctx context.Context, im *qcow2.Image, rng *rand.Rand, from, end int64) error {
	off := from + rng.Int64N(end-from)
	n := min(1+rng.Int64N(1+rng.Int64N(80<<10)), end-off)
	if rng.IntN(3) > 0 {
		off = max(off&^(sector-1), from)
		n = min((n+sector-1)&^(sector-1), end-off)
	}
	at := m.content[off : off+n]
	flags := []qcow2.Flags{0, 0, 0, qcow2.FUA}[rng.IntN(4)]
	switch rng.IntN(8) {
	case 0:
		clear(at)
		return im.WriteZeroes(ctx, off, n, flags)
	case 1:
		clear(at)
		return im.WriteZeroes(ctx, off, n, flags|qcow2.MayUnmap)
	case 2:
		if err := im.Discard(ctx, off, n, flags); err != nil {
			return err
		}
		got := make([]byte, n)
		err := im.ReadAt(ctx, got, off, qcow2.NoWait)
		if errors.Is(err, block.ErrWouldBlock) {
			err = im.ReadAt(ctx, got, off, 0)
		}
		if err != nil {
			return err
		}
		for i := range got {
			if got[i] != at[i] && got[i] != 0 {
				return fmt.Errorf("discarded byte %d reads %d; it was %d", off+int64(i), got[i], at[i])
			}
		}
		copy(at, got)
	case 3:
		return im.Flush(ctx)
	case 4, 5:
		got := make([]byte, n)
		if err := im.ReadAt(ctx, got, off, 0); err != nil {
			return err
		}
		for i := range got {
			if got[i] != at[i] {
				return fmt.Errorf("byte %d reads %d instead of %d", off+int64(i), got[i], at[i])
			}
		}
	default:
		for i := range at {
			at[i] = byte(rng.Uint32())
		}
		if err := im.WriteAt(ctx, at, off, flags|qcow2.NoWait); !errors.Is(err, block.ErrWouldBlock) {
			return err
		}
		return im.WriteAt(ctx, at, off, flags)
	}
	return nil
}
