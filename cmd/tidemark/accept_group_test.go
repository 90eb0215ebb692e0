//go:build linux

package main_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// A groupPool is a pool on a volume group of loop devices. What the tests want to
// know of the group they ask lvm itself, with the host's own configuration, as an
// administrator would: see lvmConf.
type groupPool struct {
	*testPool
	name    string
	devices []*testenv.LoopDevice
	conf    string // of the commands
}

// newGroup makes loop devices of these sizes, and a group of the first used of them.
// Everything is gone when the test ends.
func newGroup(t testing.TB, used int, sizes ...int64) *groupPool {
	t.Helper()
	testenv.Tool(t, "lvm")
	dir := t.TempDir()
	g := &groupPool{testPool: &testPool{t: t, dir: dir}, name: "tidemark" + strconv.Itoa(os.Getpid()) + "_" + filepath.Base(filepath.Dir(dir))[:8] + filepath.Base(dir)}
	for _, size := range sizes {
		g.devices = append(g.devices, testenv.Loop(t, size))
	}
	t.Cleanup(g.tidyUp)
	g.lvm(t, append([]string{"vgcreate", "-qq", "-s", "128m", "--metadatasize", "128m", g.name}, g.paths()[:used]...)...)
	return g
}

// newGroupPool makes such a group, and starts a manager that may use all devices, and
// keeps no reserve.
func newGroupPool(t testing.TB, used int, sizes ...int64) *groupPool {
	t.Helper()
	g := newGroup(t, used, sizes...)
	g.socket = filepath.Join(g.dir, "spm.sock")
	g.args = []string{"--vg", g.name, "--devices", strings.Join(g.paths(), ","), "--socket", g.socket, "--reserve", "none"}
	g.start()
	t.Cleanup(func() { _ = g.client.Close() })
	return g
}

// paths are those of the devices.
func (g *groupPool) paths() []string {
	var all []string
	for _, d := range g.devices {
		all = append(all, d.Path)
	}
	return all
}

// tidyUp removes what lvm leaves outside of the group's devices, which go by themselves.
func (g *groupPool) tidyUp() {
	_ = os.Remove(filepath.Join("/run/lock/lvm", "V_"+g.name))
}

// lvmConf is a directory with the host's configuration of lvm, but that no command waits
// 40 ms for the end of asynchronous I/O, which --config cannot say.
func lvmConf(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	conf, err := os.ReadFile("/etc/lvm/lvm.conf")
	if !errors.Is(err, fs.ErrNotExist) { // it has defaults
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lvm.conf"), conf, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "lvmlocal.conf"), []byte("global { use_aio = 0 }\n"), 0o600))
	return dir
}

// lvm runs a command by hand and returns its output.
func (g *groupPool) lvm(t testing.TB, args ...string) string {
	t.Helper()
	if g.conf == "" {
		g.conf = lvmConf(t)
	}
	all := append([]string{"LVM_SYSTEM_DIR=" + g.conf, "lvm", args[0], "--devices", strings.Join(g.paths(), ","), "--driverloaded", "n",
		"--config", `devices{hints="none"} backup{backup=0 archive=0} log{syslog=0}`}, args[1:]...)
	r := testenv.Try(t, "env", all...)
	require.NoError(t, r.Err, "lvm %s: %s", strings.Join(args, " "), r)
	return r.Stdout
}

// field asks for one value of the group.
func (g *groupPool) field(t testing.TB, verb, name string) string {
	t.Helper()
	return strings.TrimSpace(g.lvm(t, verb, "--noheadings", "--units", "b", "--nosuffix", "-o", name, g.name))
}

func (g *groupPool) seqno(t testing.TB) int64 {
	t.Helper()
	n, err := strconv.ParseInt(g.field(t, "vgs", "vg_seqno"), 10, 64)
	require.NoError(t, err)
	return n
}

// A run is a run of extents of a logical volume, of "" if it is free.
type extentRun struct {
	lv, device   string
	first, count int64
}

// extents lists every extent of the group, in runs.
func (g *groupPool) extents(t testing.TB) []extentRun {
	t.Helper()
	var all []extentRun
	for line := range strings.Lines(g.lvm(t, "pvs", "--noheadings", "--separator", "|", "-o", "lv_name,pv_name,pvseg_start,pvseg_size", "-S", "vg_name="+g.name)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		require.Len(t, f, 4, line)
		r := extentRun{lv: f[0], device: f[1]}
		_, err := fmt.Sscan(f[2]+" "+f[3], &r.first, &r.count)
		require.NoError(t, err)
		all = append(all, r)
	}
	return all
}

// segments are the runs of one volume, in its order.
func (g *groupPool) segments(t testing.TB, lv string) []extentRun {
	t.Helper()
	var all []extentRun
	for line := range strings.Lines(g.lvm(t, "lvs", "--segments", "--noheadings", "-o", "seg_pe_ranges", "-O", "seg_start", g.name+"/"+lv)) {
		r := extentRun{lv: lv}
		device, extents, _ := strings.Cut(strings.TrimSpace(line), ":")
		r.device = device
		var last int64
		_, err := fmt.Sscanf(extents, "%d-%d", &r.first, &last)
		require.NoError(t, err, line)
		r.count = last - r.first + 1
		all = append(all, r)
	}
	return all
}

// peStart is the byte at which the first extent of a device begins.
func (g *groupPool) peStart(t testing.TB, device string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(g.lvm(t, "pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start", device)), 10, 64)
	require.NoError(t, err)
	return n
}

// copyOf copies a volume to a file, by what lvm says of it and out of the files
// below the loop devices. What is a hole there is one in the copy.
func (g *groupPool) copyOf(t testing.TB, lv string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy")
	out, err := os.Create(path)
	require.NoError(t, err)
	defer out.Close()
	var size int64
	for _, s := range g.segments(t, lv) {
		testenv.Run(t, "sync", s.device)
		i := slices.IndexFunc(g.devices, func(d *testenv.LoopDevice) bool { return d.Path == s.device })
		require.GreaterOrEqual(t, i, 0)
		in, err := os.Open(g.devices[i].File)
		require.NoError(t, err)
		at := g.peStart(t, s.device) + s.first*chunk
		require.NoError(t, copyData(out, size, in, at, s.count*chunk))
		require.NoError(t, in.Close())
		size += s.count * chunk
	}
	require.NoError(t, out.Truncate(size))
	return path
}

// copyData copies size bytes of a file to another one, without its holes.
func copyData(out *os.File, to int64, in *os.File, from, size int64) error {
	return eachData(in, from, size, func(at, n int64) error {
		_, err := in.Seek(at, io.SeekStart)
		_, err2 := out.Seek(to+at-from, io.SeekStart)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		_, err = io.CopyN(out, in, n)
		return err
	})
}

// eachData shows where a part of a file has data, between its holes.
func eachData(f *os.File, from, size int64, see func(at, n int64) error) error {
	for at := from; at < from+size; {
		data, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= from+size {
			return nil // there is no more
		}
		hole, err2 := f.Seek(data, unix.SEEK_HOLE)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		at = min(hole, from+size)
		if err := see(data, at-data); err != nil {
			return err
		}
	}
	return nil
}

// requireAgrees requires that the manager and lvm say the same, and that no
// extent has two owners.
func (g *groupPool) requireAgrees(t testing.TB) {
	t.Helper()
	l, err := g.client.ListVolumes(t.Context(), listAll)
	require.NoError(t, err)
	sizes := map[string]int64{}
	total := map[string]int64{} // of a device
	for _, r := range g.extents(t) {
		sizes[r.lv] += r.count * chunk
		require.Equal(t, total[r.device], r.first, "the runs of %s have holes or overlaps", r.device)
		total[r.device] += r.count
	}
	for _, v := range l.Volumes {
		require.Equal(t, sizes[v.VolumeUUID], v.Granted, v.Name)
	}
	require.Equal(t, sizes[""], g.info().HostFree, "free")
	g.lvm(t, "vgck", g.name)
}
