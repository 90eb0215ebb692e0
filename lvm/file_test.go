package lvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/testenv"
	"tidemark/internal/thin"
)

// A grower extends a volume by exactly what is needed, as a pool that has no
// headroom to give, and tells its newest map.
type grower struct {
	l    *lab
	name string
	mu   sync.Mutex
	m    Map
}

func (g *grower) Extend(ctx context.Context, need, _ int64) (int64, error) {
	m, err := g.l.Extend(ctx, g.name, "", Size{Need: need})
	if err != nil {
		return 0, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.m = m
	return m.Size(), nil
}

func (g *grower) newest(context.Context) (Map, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.m, nil
}

// open opens a volume through its segments, frozen ones with an alarm.
func (l *lab) open(t *testing.T, m Map, o SegmentOptions) *File {
	t.Helper()
	o.Name = "volume"
	f, err := OpenSegments(m, o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// The volume lies in three segments on two physical volumes, and jumps when it
// grows, because everything behind its end is somebody else's.
func scattered(t *testing.T, l *lab, name string, size int64) Map {
	t.Helper()
	m := l.create(t, name, size/2)
	for i, part := range []int64{size * 3 / 4, size} {
		l.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-l", "1", "-n", name+"wall"+string(rune('a'+i)), l.Name(), l.behind(t, name))
		_, err := l.Read(t.Context())
		require.NoError(t, err)
		m = l.extend(t, name, part)
	}
	return m
}

// behind names the extent that follows a volume.
func (l *lab) behind(t *testing.T, name string) string {
	t.Helper()
	v, _ := l.VG().LV(name)
	last := v.Segments[len(v.Segments)-1]
	return l.pieceArg(Piece{last.PV, Range{last.First + last.Count, 1}})
}

func TestSegmentFileConformance(t *testing.T) {
	blocktest.TestFile(t, func(t *testing.T, size int64) block.File {
		l := newLab(t, GroupOptions{ExtentSize: 4 * kib}, 32*mib, 32*mib)
		g := &grower{l: l, name: "v"}
		if size == 0 { // LVM has no such volume; the map of one may come before its first extent
			g.m = Map{VG: l.VG().UUID, LV: "none"}
		} else {
			g.m = scattered(t, l, "v", size)
			require.GreaterOrEqual(t, len(g.m.Segments), 3)
		}
		f, err := OpenSegments(g.m, SegmentOptions{Name: "v", Newest: g.newest})
		require.NoError(t, err)
		info := f.Info()
		require.Equal(t, []string{info.ID}, IDs(g.m.LV, "/nowhere"))
		info.ID = ""
		require.Equal(t, block.FileInfo{Align: 1, TearUnit: 512, ZeroCheap: true, Direct: true}, info)
		return thin.New(f, g, thin.Options{})
	})
}

// A block device as a whole is what a volume of device-mapper looks like. Here
// it is a loop device, which the test makes larger.
func TestDeviceFileConformance(t *testing.T) {
	blocktest.TestFile(t, func(t *testing.T, size int64) block.File {
		loop := testenv.Loop(t, size)
		var target atomic.Int64
		target.Store(size)
		f, err := OpenDevice(loop.Path, DeviceOptions{Refresh: func(context.Context) error {
			loop.Grow(t, target.Load())
			return nil
		}})
		require.NoError(t, err)
		require.Contains(t, IDs("none", loop.Path), f.Info().ID)
		return thin.New(f, extenderFunc(func(need int64) int64 {
			target.Store(max(target.Load(), need))
			return target.Load()
		}), thin.Options{})
	})
}

type extenderFunc func(need int64) int64

func (f extenderFunc) Extend(_ context.Context, need, _ int64) (int64, error) { return f(need), nil }

// What is written through the File is where LVM says the volume is, and nowhere
// else.
func TestSegmentFileWritesToItsExtentsOnly(t *testing.T) {
	l := newLab(t, GroupOptions{ExtentSize: 64 * kib}, 64*mib, 64*mib)
	neighbours := []string{"n1", "n2"}
	for _, n := range neighbours {
		f := l.open(t, l.create(t, n, mib), SegmentOptions{})
		_, err := f.WriteAt(bytes.Repeat([]byte(n[1:]), mib), 0)
		require.NoError(t, err)
	}
	m := scattered(t, l, "v", mib)
	f := l.open(t, m, SegmentOptions{})
	_, rng := testenv.Seed(t)
	model := make([]byte, mib)
	require.NoError(t, f.WriteZeroes(0, mib))
	for range 400 {
		off := rng.Int64N(mib)
		p := make([]byte, 1+rng.Int64N(min(mib-off, 200*kib)))
		fillRandom(p, rng)
		switch rng.IntN(4) {
		case 0:
			_, err := f.WriteAtSync(p, off)
			require.NoError(t, err)
		case 1:
			clear(p)
			require.NoError(t, f.WriteZeroes(off, int64(len(p))))
		default:
			_, err := f.WriteAt(p, off)
			require.NoError(t, err)
		}
		copy(model[off:], p)
	}
	require.NoError(t, f.Sync())
	require.True(t, bytes.Equal(model, l.bytesOf(t, "v")))
	for _, n := range neighbours {
		require.True(t, bytes.Equal(bytes.Repeat([]byte(n[1:]), mib), l.bytesOf(t, n)), "neighbour %s", n)
	}
}

func fillRandom(p []byte, rng *rand.Rand) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// Many writers of a few bytes each share blocks with each other and with writers
// of whole blocks, and none loses what another wrote.
func TestFileWritersOfOneBlock(t *testing.T) {
	loop := testenv.Loop(t, mib)
	f, err := OpenDevice(loop.Path, DeviceOptions{})
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.WriteZeroes(0, mib))
	const writers, each = 8, 100 // 100 bytes: five writers to a block, some across two
	var wg sync.WaitGroup
	for w := range int64(writers) {
		wg.Go(func() {
			p, got := make([]byte, each), make([]byte, each)
			for i := range 200 {
				for k := range p {
					p[k] = byte(int(w)*31 + i + k)
				}
				if _, err := f.WriteAt(p, w*each); err != nil {
					t.Error(err)
				}
				if _, err := f.ReadAt(got, w*each); err != nil || !bytes.Equal(p, got) {
					t.Errorf("writer %d, round %d: %v, or not what it wrote", w, i, err)
					return
				}
			}
		})
	}
	wg.Go(func() { // and the blocks behind them, as a whole and in part
		whole := bytes.Repeat([]byte{7}, 512)
		for range 200 {
			if _, err := f.WriteAt(whole, 1024); err != nil {
				t.Error(err)
			}
			got := make([]byte, 512-100)
			if _, err := f.ReadAt(got, 1024+100); err != nil || !bytes.Equal(got, whole[100:]) {
				t.Errorf("%v, or a whole block came back in part", err)
				return
			}
		}
	})
	wg.Go(func() {
		for i := range 200 {
			if _, err := f.WriteAt([]byte{byte(i)}, 1024+50); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
}

func TestSegmentFileFreezes(t *testing.T) {
	tests := []struct {
		name   string
		byHand func(t *testing.T, l *lab)
		says   string
	}{
		{"lvreduce", func(t *testing.T, l *lab) { l.byHand(t, "lvreduce", "-qq", "-f", "-L", "1m", l.path("v")) }, "shrunk"},
		{"lvremove, and a new one of that name", func(t *testing.T, l *lab) {
			l.byHand(t, "lvremove", "-qq", "-f", l.path("v"))
			l.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-L", "4m", "-n", "v", l.Name())
		}, "has become volume"},
		{"lvreduce and lvextend elsewhere", func(t *testing.T, l *lab) {
			l.byHand(t, "lvreduce", "-qq", "-f", "-L", "1m", l.path("v"))
			l.byHand(t, "lvextend", "-qq", "-l", "+512", l.path("v"), l.devices[1].Path)
		}, "moved"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, GroupOptions{ExtentSize: 4 * kib}, 32*mib, 32*mib)
			m := l.create(t, "v", 2*mib)
			var alarms []error
			f := l.open(t, m, SegmentOptions{Alarm: func(err error) { alarms = append(alarms, err) }})
			_, err := f.WriteAt([]byte("before"), 0)
			require.NoError(t, err)

			tt.byHand(t, l)
			vg, err := l.Read(t.Context())
			require.NoError(t, err)
			now, err := vg.Map("v")
			require.NoError(t, err)
			require.ErrorIs(t, f.Adopt(now), ErrFrozen)
			require.Len(t, alarms, 1)
			require.ErrorContains(t, alarms[0], tt.says)

			for name, op := range map[string]func() error{
				"read":         func() error { _, err := f.ReadAt(make([]byte, 8), 0); return err },
				"write":        func() error { _, err := f.WriteAt([]byte("after"), 0); return err },
				"write synced": func() error { _, err := f.WriteAtSync([]byte("after"), 0); return err },
				"zero":         func() error { return f.WriteZeroes(0, 4096) },
				"discard":      func() error { return f.Discard(0, 4096) },
				"sync":         f.Sync,
				"grow":         func() error { _, err := f.Grow(t.Context(), 4*mib, 4*mib); return err },
				"shrink":       func() error { return f.Shrink(t.Context(), 2*mib, mib) },
				"adopt":        func() error { return f.Adopt(m) },
			} {
				require.ErrorIs(t, op(), ErrFrozen, name)
			}
			require.Len(t, alarms, 1, "the alarm is raised once")
			require.NoError(t, f.Close())
		})
	}
}

func TestSegmentFilePassesOverOldMaps(t *testing.T) {
	l := newLab(t, GroupOptions{ExtentSize: 4 * kib}, 32*mib)
	old := l.create(t, "v", mib)
	f := l.open(t, old, SegmentOptions{})
	m := l.extend(t, "v", 2*mib)
	require.NoError(t, f.Adopt(m))
	require.EqualValues(t, 2*mib, f.Size())
	require.NoError(t, f.Adopt(old), "an answer that was late")
	require.EqualValues(t, 2*mib, f.Size())
	require.NoError(t, f.Adopt(m))
}

// A name of a device says nothing: the physical volume is known by its UUID.
func TestSegmentFileKnowsItsDevices(t *testing.T) {
	l := newLab(t, GroupOptions{ExtentSize: 4 * kib}, 32*mib, 32*mib)
	m := l.create(t, "v", mib)
	wrong := m
	wrong.Segments = append([]MapSegment(nil), m.Segments...)
	for _, p := range l.VG().PVs {
		if p.UUID != m.Segments[0].PV {
			wrong.Segments[0].Device = p.Device
		}
	}
	_, err := OpenSegments(wrong, SegmentOptions{Name: "v"})
	require.ErrorContains(t, err, "expected "+m.Segments[0].PV)

	file := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(file, make([]byte, mib), 0o600))
	wrong.Segments[0].Device = file
	_, err = OpenSegments(wrong, SegmentOptions{Name: "v"})
	require.ErrorContains(t, err, "block device")

	f := l.open(t, m, SegmentOptions{})
	wipe, err := os.OpenFile(m.Segments[0].Device, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = wipe.WriteAt(make([]byte, labelArea), 0)
	require.NoError(t, errors.Join(err, wipe.Sync(), wipe.Close()))
	require.ErrorIs(t, f.Adopt(m), ErrFrozen, "the label is read again with every map")

	beyond := m
	beyond.Segments = []MapSegment{{Size: gib, PV: m.Segments[0].PV, Device: l.devices[1].Path}}
	for _, p := range l.VG().PVs {
		if p.Device == l.devices[1].Path {
			beyond.Segments[0].PV = p.UUID
		}
	}
	if beyond.Segments[0].PV != m.Segments[0].PV {
		_, err = OpenSegments(beyond, SegmentOptions{Name: "v"})
		require.ErrorIs(t, err, ErrUnusable)
	}
}

func TestDeviceFileThatShrinksFreezes(t *testing.T) {
	loop := testenv.Loop(t, 2*mib)
	var alarm error
	f, err := OpenDevice(loop.Path, DeviceOptions{
		Refresh: func(context.Context) error { loop.Grow(t, mib); return nil },
		Alarm:   func(err error) { alarm = err },
	})
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Grow(t.Context(), 3*mib, 3*mib)
	require.ErrorIs(t, err, ErrFrozen)
	require.ErrorContains(t, alarm, "shrunk")
}

func TestFileReadOnly(t *testing.T) {
	loop := testenv.Loop(t, mib)
	f, err := OpenDevice(loop.Path, DeviceOptions{ReadOnly: true})
	require.NoError(t, err)
	defer f.Close()
	require.True(t, f.Info().ReadOnly)
	_, err = f.WriteAt([]byte("x"), 0)
	require.ErrorIs(t, err, block.ErrReadOnly)
	require.ErrorIs(t, f.WriteZeroes(0, 512), block.ErrReadOnly)
	require.NoError(t, f.Sync())
	_, err = f.ReadAt(make([]byte, 10), mib-5)
	require.ErrorIs(t, err, io.EOF)
}

// No page of the host's cache holds what was written: a process that reads the
// device past the cache sees it at once, and a sync writes nobody else's pages.
func TestFileIsDirect(t *testing.T) {
	loop := testenv.Loop(t, mib)
	f, err := OpenDevice(loop.Path, DeviceOptions{})
	require.NoError(t, err)
	defer f.Close()
	for _, p := range [][]byte{bytes.Repeat([]byte{5}, 4096), []byte("a few bytes")} {
		_, err = f.WriteAt(p, 8192)
		require.NoError(t, err)
		below, err := os.ReadFile(loop.File)
		require.NoError(t, err)
		require.True(t, bytes.Equal(p, below[8192:8192+len(p)]), "it has passed the device already")
	}
}
