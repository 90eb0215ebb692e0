//go:build linux

package main_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
	"tidemark/spm"
)

// freezeLimit is how soon an export freezes after somebody has changed its
// volume: the manager looks every second, the server too.
const freezeLimit = 5 * time.Second

// What somebody takes away from a volume by hand freezes its export, and is given
// to nobody else while the export still has it.
func TestGroupChangedByHandFreezes(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, g *groupPool, lv string){
		"lvremove": func(t *testing.T, g *groupPool, lv string) { g.lvm(t, "lvremove", "-qq", "-f", g.name+"/"+lv) },
		"lvreduce": func(t *testing.T, g *groupPool, lv string) {
			g.lvm(t, "lvreduce", "-qq", "-f", "-l", "1", g.name+"/"+lv)
		},
	} {
		t.Run(name, func(t *testing.T) {
			workspace(t)
			g := newGroupPool(t, 1, 3*gib)
			v := g.create("disk", 4*gib)
			s := g.serve("disk")
			c := s.dial()
			fill(t, c, 1, 0, 256*mib)
			require.NoError(t, c.Flush(t.Context()))
			had := g.segments(t, v.VolumeUUID)
			writing := keepWriting(t, c)

			change(t, g, v.VolumeUUID)
			select {
			case err := <-writing:
				require.Error(t, err)
			case <-time.After(freezeLimit):
				t.Fatalf("the export still writes %v after %s", freezeLimit, name)
			}
			testenv.Eventually(t, freezeLimit, "the alarm", func() bool { return strings.Contains(s.proc.Output(), "ALARM") })
			require.Error(t, c.ReadAt(t.Context(), make([]byte, 4096), 0, 0), "nor does it read")

			// Another volume takes all that there is, and gets none of it.
			g.create("other", 4*gib)
			_, err := g.client.ExtendVolume(t.Context(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "other"}, Need: 1, Want: 4 * gib})
			require.NoError(t, err)
			other := g.volume("other")
			for _, o := range g.segments(t, other.VolumeUUID) {
				for _, h := range had {
					overlap := o.device == h.device && o.first < h.first+h.count && h.first < o.first+o.count
					require.False(t, overlap, "other has %+v of %+v", o, h)
				}
			}
			require.Greater(t, other.Granted, int64(gib))

			// When the export has gone, it is free.
			s.proc.Kill()
			testenv.Eventually(t, freezeLimit, "what was taken away is free", func() bool {
				_, err := g.client.ExtendVolume(t.Context(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: "other"}, Need: other.Granted + 128*mib})
				return err == nil
			})
			require.NotContains(t, g.proc.Output(), "panic")
		})
	}
}

// keepWriting overwrites the same mebibytes until that fails.
func keepWriting(t *testing.T, c *nbd.Client) <-chan error {
	t.Helper()
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() {
		for at := int64(0); ; at = (at + mib) % (256 * mib) {
			if err := c.WriteAt(ctx, patterned(2, at, mib), at, 0); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

// The manager is killed at every moment of an extension, again and again, while
// fio writes to one volume and others are extended. Sizes and segments agree with
// lvm, and no extent is given twice.
func TestGroupSPMKilledDuringExtensions(t *testing.T) {
	workspace(t)
	_, rng := testenv.Seed(t)
	g := newGroupPool(t, 2, 12*gib, 12*gib)
	v := g.create("disk", 10*gib)
	names := []string{"a", "b"}
	sizes := map[string]int64{}
	for _, n := range names {
		sizes[n] = g.create(n, 100*gib).Granted
	}
	s := g.serve("disk")
	load := startFio(t, s, "--rw=randwrite", "--bs=128k", "--iodepth=8", "--numjobs=2", "--size=512m", "--offset_increment=4g", "--rate=,60m",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1")

	const kills = 40
	for i := range kills {
		name := names[i%2]
		want := sizes[name] + 128*mib
		answered := make(chan int64, 1)
		go func() {
			r, err := g.client.ExtendVolume(context.Background(), spm.VolumeExtendRequest{VolumeRef: spm.VolumeRef{Volume: name}, Need: want})
			if err != nil {
				r.Size = 0
			}
			answered <- r.Size
		}()
		// Swept over the time of an extension, and a little at random.
		time.Sleep(time.Duration(i)*time.Millisecond + time.Duration(rng.IntN(1000))*time.Microsecond)
		g.proc.Kill()
		size := <-answered
		g.start()
		now := g.volume(name).Granted
		require.Contains(t, []int64{sizes[name], want}, now, "%s: the old size or the new one", name)
		if size != 0 {
			require.Equal(t, want, now, "%s: it was answered", name)
		}
		sizes[name] = now
		g.requireSettled(t)
	}
	r, err := load.wait(3 * time.Minute)
	require.NoError(t, err)
	require.Zero(t, r.Error)
	require.EqualValues(t, 2*512*mib, r.Read, "bytes read back and verified")
	s.stop()
	grown := 0
	for _, n := range names {
		grown += int(sizes[n]/(128*mib)) - 1
	}
	t.Logf("%d kills, %d extensions that survived or were answered", kills, grown)
	require.Greater(t, grown, kills/4, "some kills come too late")
	require.Less(t, grown, kills, "and some before the change")
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", g.copyOf(t, v.VolumeUUID))
	g.requireAgrees(t)
}

// requireSettled is requireAgrees while volumes may grow: there must be a moment
// in which the manager and lvm say the same.
func (g *groupPool) requireSettled(t testing.TB) {
	t.Helper()
	testenv.Eventually(t, startLimit, "a moment in which the manager and lvm agree", func() bool {
		before := g.seqno(t)
		l, err := g.client.ListVolumes(t.Context(), listAll)
		require.NoError(t, err)
		sizes := map[string]int64{}
		for _, r := range g.extents(t) {
			sizes[r.lv] += r.count * chunk
		}
		agree := g.seqno(t) == before
		for _, v := range l.Volumes {
			agree = agree && sizes[v.VolumeUUID] == v.Granted
		}
		return agree
	})
}
