package lvm

import (
	"bytes"
	"context"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/thin"
)

// needDeviceMapper skips where there is none. That is no missing tool: hosts
// without it are what the segment way is for.
func needDeviceMapper(t *testing.T) {
	t.Helper()
	if !DeviceMapper() {
		t.Skip("this kernel has no device-mapper; a guest whose kernel has it runs this test")
	}
}

// A mapped volume is active, and grows as a pool and a data server together make
// it grow: metadata only, then a refresh.
type mapped struct {
	l    *lab
	name string
}

// Extend gives more than is needed: each command takes its time.
func (m mapped) Extend(ctx context.Context, need, _ int64) (int64, error) {
	now, err := m.l.Extend(ctx, m.name, "", Size{Need: need, Want: need + mib})
	return now.Size(), err
}

// onTwoDevices makes a volume whose halves lie on two devices.
func onTwoDevices(t *testing.T, l *lab, name string, size int64) mapped {
	t.Helper()
	l.byHand(t, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-L", bytesArg(size/2), "-n", name, l.Name(), l.devices[0].Path)
	l.byHand(t, "lvextend", "-qq", "-L", bytesArg(size), l.path(name), l.devices[1].Path)
	vg, err := l.Read(t.Context())
	require.NoError(t, err)
	v, _ := vg.LV(name)
	require.Len(t, v.Segments, 2)
	return mapped{l, name}
}

func (m mapped) open(t *testing.T) *File {
	t.Helper()
	tool := m.l.tool(t, ToolOptions{})
	require.NoError(t, tool.Activate(t.Context(), m.l.Name(), m.name))
	t.Cleanup(func() {
		if _, there := m.l.VG().LV(m.name); there {
			require.NoError(t, tool.Deactivate(context.Background(), m.l.Name(), m.name))
		}
	})
	f, err := OpenDevice(DevicePath(m.l.Name(), m.name), DeviceOptions{
		Refresh: func(ctx context.Context) error { return tool.Refresh(ctx, m.l.Name(), m.name) },
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// A volume that gives its end back is shorter for the kernel, too, and grows again.
func TestDeviceMapperShrinks(t *testing.T) {
	needDeviceMapper(t)
	l := newLab(t, GroupOptions{ExtentSize: 64 * kib}, 64*mib, 64*mib)
	m := onTwoDevices(t, l, "v", 2*mib)
	tool := l.tool(t, ToolOptions{})
	require.NoError(t, tool.Activate(t.Context(), l.Name(), "v"))
	f, err := OpenDevice(DevicePath(l.Name(), "v"), DeviceOptions{
		Refresh: func(ctx context.Context) error { return tool.Refresh(ctx, l.Name(), "v") },
		Reduce: func(ctx context.Context, from, to int64) (int64, error) {
			now, err := l.Reduce(ctx, "v", "", from, roundUp(to, 64*kib))
			return now.Size(), err
		},
		Alarm: func(err error) { t.Errorf("alarm: %v", err) },
	})
	require.NoError(t, err)
	p := bytes.Repeat([]byte("tidemark"), 2*mib/8)
	_, err = f.WriteAt(p, 0)
	require.NoError(t, err)
	require.NoError(t, f.Shrink(t.Context(), 2*mib, mib/2+1))
	const size = mib/2 + 64*kib
	require.EqualValues(t, size, f.Size())
	now, err := f.devices[0].size()
	require.NoError(t, err)
	require.EqualValues(t, size, now, "the kernel maps no more than that")
	_, err = f.WriteAt(p[:512], size)
	require.ErrorIs(t, err, block.ErrRange)
	got := make([]byte, size)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(p[:size], got))
	_, err = m.Extend(t.Context(), mib, 0)
	require.NoError(t, err)
	_, err = f.Grow(t.Context(), mib, mib)
	require.NoError(t, err)
	require.GreaterOrEqual(t, f.Size(), int64(mib))
	require.NoError(t, f.Close())
	require.NoError(t, tool.Deactivate(t.Context(), l.Name(), "v"))
}

func TestDeviceMapperFileConformance(t *testing.T) {
	needDeviceMapper(t)
	l := newLab(t, GroupOptions{ExtentSize: 4 * kib}, 64*mib, 64*mib)
	volumes := 0
	blocktest.TestFile(t, func(t *testing.T, size int64) block.File {
		if size == 0 {
			return openEmpty()
		}
		volumes++
		m := onTwoDevices(t, l, "v"+strconv.Itoa(volumes), size)
		return thin.New(m.open(t), m, thin.Options{})
	})
}

// openEmpty is a volume without bytes, which LVM does not have.
func openEmpty() block.File {
	f := newFile("empty", false, nil)
	f.at.Store(&layout{})
	f.describe("")
	return f
}

// What the kernel guards through device-mapper: whoever has the volume open keeps
// it, and what was written through it is where LVM says.
func TestDeviceMapperGuards(t *testing.T) {
	needDeviceMapper(t)
	l := newLab(t, GroupOptions{ExtentSize: 64 * kib}, 64*mib, 64*mib)
	m := onTwoDevices(t, l, "v", mib)
	was, err := l.VG().Map("v")
	require.NoError(t, err)
	f := m.open(t)
	require.EqualValues(t, mib, f.Size())
	p := bytes.Repeat([]byte("tidemark"), mib/8)
	_, err = f.WriteAt(p, 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.True(t, bytes.Equal(p, l.bytesOf(t, "v")))

	_, err = l.Read(t.Context())
	require.NoError(t, err)
	v, _ := l.VG().LV("v")
	require.True(t, v.Active)
	_, err = OpenSegments(was, SegmentOptions{Name: "v"})
	require.ErrorIs(t, err, block.ErrInUse, "through its segments it is not to be had now")

	tool := l.tool(t, ToolOptions{})
	var e *Error
	atOnce := "activation{retry_deactivation=0}"
	require.ErrorAs(t, tool.activation(t.Context(), "lvremove", "-qq", "-f", "--config", atOnce, l.path("v")), &e, "lvremove of a volume that is open")
	require.Contains(t, e.Stderr, "in use")
	require.ErrorAs(t, tool.Deactivate(t.Context(), l.Name(), "v"), &e)

	_, err = f.Grow(t.Context(), 2*mib, 2*mib)
	require.ErrorIs(t, err, block.ErrNoSpace, "nobody has granted it")
	l.extend(t, "v", 2*mib)
	require.EqualValues(t, mib, f.Size(), "granted is not adopted")
	size, err := f.Grow(t.Context(), 2*mib, 2*mib)
	require.NoError(t, err)
	require.EqualValues(t, 2*mib, size)
	_, err = f.WriteAt(p, mib)
	require.NoError(t, err)
	require.True(t, bytes.Equal(append(bytes.Clone(p), p...), l.bytesOf(t, "v")))
}
