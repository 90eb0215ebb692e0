//go:build linux

package main_test

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

var listAll = spm.VolumeListRequest{}

// extendedLine is what a server logs of an extension.
var extendedLine = regexp.MustCompile(`msg="volume extended" .* to=(\d+) asked=\d+ end=(\d+) `)

// A volume on a volume group grows under fio on four connections, and whoever
// reads it without us finds what was written.
func TestGroupGrowthUnderFio(t *testing.T) {
	dir := workspace(t)
	qemuImg, nbdcopy := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "nbdcopy")
	g := newGroupPool(t, 2, 6*gib, 6*gib)
	v := g.create("disk", 10*gib)
	g.create("neighbour", 10*gib)
	before := g.seqno(t)
	s := g.serve("disk")

	const jobs, each = 4, 576 * mib
	r, err := startFio(t, s, "--rw=randwrite", "--bsrange=64k-512k", "--blockalign=64k", "--iodepth=8",
		fmt.Sprintf("--numjobs=%d", jobs), fmt.Sprintf("--size=%d", each), "--offset_increment=2g",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1").wait(3 * time.Minute)
	require.NoError(t, err)
	require.Zero(t, r.Error)
	require.EqualValues(t, jobs*each, r.Written, "bytes written")
	require.EqualValues(t, jobs*each, r.Read, "bytes read back and verified")

	changes := g.seqno(t) - before
	require.GreaterOrEqual(t, changes, int64(10), "changes of the group")
	require.Equal(t, changes, g.info().Extensions, "all of them are extensions")
	lines := extendedLine.FindAllStringSubmatch(s.proc.Output(), -1)
	require.NotEmpty(t, lines)
	for _, l := range lines {
		to, _ := strconv.ParseInt(l[1], 10, 64)
		end, _ := strconv.ParseInt(l[2], 10, 64)
		require.LessOrEqual(t, to-end, int64(512*mib), l[0])
	}

	raw := filepath.Join(dir, "copy.raw")
	testenv.Run(t, nbdcopy, "--connections=4", s.uri(), raw)
	s.stop()
	segments := g.segments(t, v.VolumeUUID)
	t.Logf("%d MiB written and verified, %d extensions, %d segments", r.Written/mib, changes, len(segments))
	require.LessOrEqual(t, len(segments), 8)
	image := g.copyOf(t, v.VolumeUUID)
	testenv.Run(t, qemuImg, "check", "-f", "qcow2", image)
	testenv.Run(t, qemuImg, "compare", "-f", "qcow2", "-F", "raw", image, raw)
	g.requireAgrees(t)
	require.Positive(t, g.info().Group.Segments)
	require.Less(t, g.info().Group.Segments, g.info().Group.SegmentsLimit)
}

// A group that is full holds writes, and goes on within a second of vgextend;
// without one the writer gets ENOSPC when its patience is over.
func TestGroupFullAndVgextend(t *testing.T) {
	workspace(t)
	g := newGroupPool(t, 1, 2*gib, 2*gib)
	v := g.create("disk", 10*gib)
	const patience = 8 * time.Second // the first write that is held is known after 2 s, and has to be held still at vgextend
	s := g.serve("disk", "--patience", patience.String())
	c := s.dial()
	second := testenv.Start(t, program(t, "nbd", "-k", filepath.Join(t.TempDir(), "s"), "--spm", g.socket, "disk"))
	require.Error(t, second.Wait(t, startLimit))
	require.Contains(t, second.Output(), "stop who has it open, then repeat")
	write := func(at int64) error { return c.WriteAt(t.Context(), patterned(1, at, mib), at, 0) }

	wrote := int64(0)
	var held chan error
	for held == nil {
		ended := make(chan error, 1)
		go func(at int64) { ended <- write(at) }(wrote)
		select {
		case err := <-ended:
			require.NoError(t, err)
			wrote += mib
		case <-time.After(2 * time.Second):
			held = ended
		}
	}
	requireWaiting(t, g.testPool, "disk")
	require.Zero(t, g.info().HostFree)
	require.Greater(t, wrote, int64(gib))

	g.lvm(t, "vgextend", "-qq", "--metadatasize", "128m", g.name, g.devices[1].Path)
	began := time.Now()
	require.NoError(t, <-held)
	resumed := time.Since(began)
	require.Less(t, resumed, resumeLimit, "from the return of vgextend to the end of the held write")
	require.NoError(t, c.Flush(t.Context()))
	for at := int64(0); at <= wrote; at += 64 * mib {
		requirePattern(t, c, 1, at, mib)
	}
	t.Logf("measured: held after %d MiB, resumed %v after vgextend", wrote/mib, resumed.Round(time.Millisecond))

	var err error
	for at := wrote + mib; err == nil; at += mib {
		began = time.Now()
		err = write(at)
	}
	require.ErrorContains(t, err, "ENOSPC")
	require.InDelta(t, patience.Seconds(), time.Since(began).Seconds(), 3, "the patience")
	s.stop()
	testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", g.copyOf(t, v.VolumeUUID))
	g.requireAgrees(t)
}
