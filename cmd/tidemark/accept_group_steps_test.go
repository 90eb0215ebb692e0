//go:build linux

package main_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// lvmShim stands before lvm in the manager's PATH, and kills the manager at the step
// of the command verb that the file plan names, once. A command that runs meanwhile is not the manager's
// child any more, and goes on: the next manager has to wait for it.
const lvmShim = `#!/bin/sh
lvm=%s
cd %s
kill_manager() { mv plan done; kill -9 $PPID; }
read verb step <plan || exec $lvm "$@"
[ "$1" != "$verb" ] || set -- changes "$@"
case "$step:$1" in
"before the command:changes") kill_manager ;;
"during the command:changes") shift; $lvm "$@" & kill_manager; wait ;;
"after the command:changes") shift; $lvm "$@"; kill_manager ;;
*:changes) shift; : >changed ;;
"before it is read again:"*) [ ! -e changed ] || kill_manager ;;
"before it is flushed:"*) [ ! -e changed ] || { $lvm "$@"; kill_manager; exit; } ;;
esac
exec $lvm "$@"
`

// A shim is one in place.
type shim struct{ dir string }

// newShim lets the next managers of the group find it.
func newShim(t *testing.T, g *groupPool) shim {
	t.Helper()
	s := shim{t.TempDir()}
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "lvm"), fmt.Appendf(nil, lvmShim, testenv.Tool(t, "lvm"), s.dir), 0o700))
	g.env = []string{"PATH=" + s.dir + ":" + os.Getenv("PATH")}
	g.proc.Kill()
	g.start()
	return s
}

// plan has the manager killed at that step of the next command of that kind.
func (s shim) plan(t *testing.T, verb, step string) {
	t.Helper()
	_ = os.Remove(filepath.Join(s.dir, "changed"))
	_ = os.Remove(filepath.Join(s.dir, "done"))
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "new"), []byte(verb+" "+step+"\n"), 0o600))
	require.NoError(t, os.Rename(filepath.Join(s.dir, "new"), filepath.Join(s.dir, "plan")))
}

// killed waits until that has happened.
func (s shim) killed(t *testing.T, g *groupPool, step string) {
	t.Helper()
	require.Error(t, g.proc.Wait(t, startLimit), "%s: it was killed", step)
	require.FileExists(t, filepath.Join(s.dir, "done"), step)
}

// The manager is killed at each step of an extension. What LVM has is what the next
// one says, and it goes on.
func TestGroupSPMKilledAtEachStep(t *testing.T) {
	workspace(t)
	g := newGroupPool(t, 1, 6*gib)
	lvm := newShim(t, g)
	v := g.create("disk", 10*gib)
	s := g.serve("disk")
	c := s.dial()
	fill(t, c, 1, 0, 64*mib)
	require.NoError(t, c.Flush(t.Context()))
	size := g.create("a", 100*gib).Granted

	const extended, either = chunk, -1
	for _, step := range []struct {
		name string
		gets int64
	}{
		{"before the command", 0},
		{"during the command", either},
		{"after the command", extended},
		{"before it is read again", extended},
		{"before it is flushed", extended},
	} {
		lvm.plan(t, "lvextend", step.name)
		_, err := g.client.ExtendVolume(t.Context(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "a"}, Need: size + chunk})
		require.Error(t, err, "%s: nobody was told", step.name)
		lvm.killed(t, g, step.name)
		g.start()
		now := g.volume("a").Granted
		t.Logf("killed %s: %d MiB before, %d MiB after", step.name, size/mib, now/mib)
		if step.gets == either {
			require.Contains(t, []int64{size, size + chunk}, now, step.name)
		} else {
			require.Equal(t, size+step.gets, now, step.name)
		}
		g.requireAgrees(t)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		r, err := g.client.ExtendVolume(ctx, spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "a"}, Need: size + chunk})
		cancel()
		require.NoError(t, err, step.name)
		require.Equal(t, size+chunk, r.Size, "%s: once, not twice", step.name)
		size = r.Size
	}
	fill(t, c, 2, gib, 256*mib) // its server has not noticed
	requirePattern(t, c, 1, 0, 64*mib)
	requirePattern(t, c, 2, gib, 256*mib)
	s.stop()
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", g.copyOf(t, v.VolumeUUID))
	g.requireAgrees(t)
}

// The manager is killed at each step of taking headroom back. The export that has
// given it is not taken for one that somebody has changed by hand: it finds out what
// became of it, and grows again.
func TestGroupSPMKilledWhileHeadroomIsGivenBack(t *testing.T) {
	workspace(t)
	g := newGroupPool(t, 1, 2*gib)
	lvm := newShim(t, g)
	v := g.create("disk", 4*gib)
	s := g.serve("disk")
	c := s.dial()
	written := int64(0)
	more := func(n int64) {
		fill(t, c, 1, written, n)
		require.NoError(t, c.Flush(t.Context()))
		written += n
	}
	more(16 * mib)
	for i, step := range []string{"before the command", "during the command", "after the command", "before it is read again", "before it is flushed"} {
		had, since := int64(0), time.Now()
		testenv.Eventually(t, startLimit, "the disk has its headroom", func() bool {
			if p, now := g.info(), g.volume("disk").Granted; now != had || p.Free != p.HostFree {
				had, since = now, time.Now()
			}
			return time.Since(since) > time.Second
		})
		require.GreaterOrEqual(t, had, written+chunk)
		lvm.plan(t, "lvreduce", step)
		ballast := fmt.Sprintf("ballast%d", i)
		g.create(ballast, g.info().HostFree, "--format", "raw") // the group is full
		lvm.killed(t, g, step)
		time.Sleep(2 * time.Second) // its server looks every second what there is
		g.start()
		testenv.Eventually(t, startLimit, step+": the headroom is back in the group", func() bool { return g.volume("disk").Granted < had })
		g.requireSettled(t)
		ok(t, "volume", "remove", "--spm", g.socket, ballast)
		more(chunk) // it grows again, and again a whole chunk is behind what is reserved
		requirePattern(t, c, 1, 0, written)
		t.Logf("killed %s: %d MiB, then %d MiB", step, had/mib, g.volume("disk").Granted/mib)
	}
	require.NotContains(t, s.proc.Output(), "ALARM")
	s.stop()
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", g.copyOf(t, v.VolumeUUID))
	g.requireAgrees(t)
}
