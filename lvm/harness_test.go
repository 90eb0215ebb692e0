package lvm

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// A lab is a group of its own on loop devices.
type lab struct {
	*Group
	devices []*testenv.LoopDevice
	lockDir string
}

// newLab makes a group on devices of these sizes, or skips the test.
func newLab(t *testing.T, o GroupOptions, sizes ...int64) *lab {
	t.Helper()
	testenv.Tool(t, "lvm")
	l := &lab{lockDir: t.TempDir()}
	for _, size := range sizes {
		l.devices = append(l.devices, testenv.Loop(t, size))
	}
	if o.ExtentSize == 0 {
		o.ExtentSize = 4 * mib
	}
	if o.MetadataSize == 0 {
		o.MetadataSize = 4 * mib
	}
	g, err := CreateGroup(t.Context(), l.tool(t, ToolOptions{}), "tidemark_test", o)
	require.NoError(t, err)
	l.Group = g
	return l
}

// tool makes a tool of its own for the devices, as another process would.
func (l *lab) tool(t *testing.T, o ToolOptions) *Tool {
	t.Helper()
	for _, d := range l.devices {
		o.Devices = append(o.Devices, d.Path)
	}
	o.LockDir, o.Dir = l.lockDir, t.TempDir()
	tool, err := NewTool(o)
	require.NoError(t, err)
	return tool
}

// byHand runs a command as an administrator would, beside the group.
func (l *lab) byHand(t *testing.T, verb string, args ...string) {
	t.Helper()
	_, err := l.tool(t, ToolOptions{}).metadata(context.Background(), verb, args...)
	require.NoError(t, err)
}

// create makes a volume of size bytes.
func (l *lab) create(t *testing.T, name string, size int64) Map {
	t.Helper()
	m, err := l.Create(t.Context(), name, []string{"IU_" + name}, Size{Need: size})
	require.NoError(t, err)
	return m
}

// extend makes it larger.
func (l *lab) extend(t *testing.T, name string, size int64) Map {
	t.Helper()
	m, err := l.Extend(t.Context(), name, "", Size{Need: size})
	require.NoError(t, err)
	return m
}

// bytesOf reads a volume from the files below the loop devices, by what lvm says
// of it and by nothing of this package.
func (l *lab) bytesOf(t *testing.T, name string) []byte {
	t.Helper()
	env := append(os.Environ(), "LVM_SYSTEM_DIR="+l.Group.tool.o.Dir)
	for _, d := range l.devices {
		testenv.Run(t, "sync", d.Path)
	}
	c := testenv.Command(t, "lvm", "lvs", "--devices", strings.Join(l.Group.tool.o.Devices, ","), "--driverloaded", "n",
		"--segments", "--noheadings", "--units", "b", "--nosuffix", "-o", "seg_size,seg_pe_ranges", "-O", "seg_start", l.path(name))
	c.Env = env
	out, err := c.Output()
	require.NoError(t, err)
	var all []byte
	for line := range strings.Lines(string(out)) {
		all = append(all, l.segmentBytes(t, strings.Fields(line))...)
	}
	return all
}

func (l *lab) segmentBytes(t *testing.T, row []string) []byte {
	t.Helper()
	require.Len(t, row, 2)
	vg := l.VG()
	device, extents, _ := strings.Cut(row[1], ":")
	for i, d := range l.devices {
		if d.Path != device {
			continue
		}
		var first int64
		for _, c := range strings.Split(extents, "-")[0] {
			first = first*10 + int64(c-'0')
		}
		var size int64
		for _, c := range row[0] {
			size = size*10 + int64(c-'0')
		}
		f, err := os.Open(filepath.Clean(l.devices[i].File))
		require.NoError(t, err)
		defer f.Close()
		p := make([]byte, size)
		at, _ := peStart(vg, device)
		_, err = f.ReadAt(p, at+first*vg.ExtentSize)
		require.NoError(t, err)
		return p
	}
	t.Fatalf("no loop device %s", device)
	return nil
}

func peStart(v *VG, device string) (int64, bool) {
	for _, p := range v.PVs {
		if p.Device == device {
			return p.Start, true
		}
	}
	return 0, false
}
