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
// that the file plan names, once. A command that runs meanwhile is not the manager's
// child any more, and goes on: the next manager has to wait for it.
const lvmShim = `#!/bin/sh
lvm=%s
cd %s
kill_manager() { mv plan done; kill -9 $PPID; }
read step <plan || exec $lvm "$@"
case "$step:$1" in
"before the command:lvextend") kill_manager ;;
"during the command:lvextend") $lvm "$@" & kill_manager; wait ;;
"after the command:lvextend") $lvm "$@"; kill_manager ;;
*:lvextend) : >extended ;;
"before it is read again:"*) [ ! -e extended ] || kill_manager ;;
"before it is flushed:"*) [ ! -e extended ] || { $lvm "$@"; kill_manager; exit; } ;;
esac
exec $lvm "$@"
`

// The manager is killed at each step of an extension. What LVM has is what the next
// one says, and it goes on.
func TestGroupSPMKilledAtEachStep(t *testing.T) {
	dir := workspace(t)
	g := newGroupPool(t, 1, 6*gib)
	shims := filepath.Join(dir, "shims")
	require.NoError(t, os.Mkdir(shims, 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(shims, "lvm"), fmt.Appendf(nil, lvmShim, testenv.Tool(t, "lvm"), shims), 0o700))
	g.env = []string{"PATH=" + shims + ":" + os.Getenv("PATH")}
	v := g.create("disk", 10*gib)
	s := g.serve("disk")
	c := s.dial()
	fill(t, c, 1, 0, 64*mib)
	require.NoError(t, c.Flush(t.Context()))
	size := g.create("a", 100*gib).Granted
	g.proc.Kill()
	g.start() // with the shim

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
		_ = os.Remove(filepath.Join(shims, "extended"))
		_ = os.Remove(filepath.Join(shims, "done"))
		require.NoError(t, os.WriteFile(filepath.Join(shims, "plan"), []byte(step.name+"\n"), 0o600))
		_, err := g.client.ExtendVolume(t.Context(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "a"}, Need: size + chunk})
		require.Error(t, err, "%s: nobody was told", step.name)
		require.Error(t, g.proc.Wait(t, startLimit), "%s: it was killed", step.name)
		require.FileExists(t, filepath.Join(shims, "done"), step.name)
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
