//go:build linux

package main_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// A volume that fio fills over four connections grows by itself, is never far
// ahead of what was written, and holds what was written.
func TestGrowthUnderFio(t *testing.T) {
	dir := workspace(t)
	qemuImg, nbdcopy := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "nbdcopy")
	p := newPool(t, filepath.Join(dir, "pool"), 6*gib)
	v := p.create("disk", 10*gib)
	s := p.serve("disk")

	lengths, stopWatching := watchLength(t, v.Path, time.Millisecond)
	h := &headrooms{p: p, v: v}
	stopSampling := every(t, 100*time.Millisecond, h.sample)
	const jobs, each = 4, 576 * mib
	r, err := startFio(t, s, "--rw=randwrite", "--bsrange=64k-512k", "--blockalign=64k", "--iodepth=8",
		fmt.Sprintf("--numjobs=%d", jobs), fmt.Sprintf("--size=%d", each), "--offset_increment=2g",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1").wait(2 * time.Minute)
	require.NoError(t, err)
	require.Zero(t, r.Error)
	require.EqualValues(t, jobs*each, r.Written, "bytes written")
	require.EqualValues(t, jobs*each, r.Read, "bytes read back and verified")
	require.NoError(t, stopSampling())
	require.NoError(t, stopWatching())

	h.require(t, r.Written)
	steps := lengths.Lengths()
	requireGrowth(t, steps, v.Bound)
	extensions := p.info().Extensions
	t.Logf("%d MiB written and verified; %d extensions by the pool's count, %d steps of the file's length",
		r.Written/mib, extensions, len(steps)-1)
	require.GreaterOrEqual(t, extensions, int64(10), "extensions by the pool's count")
	require.GreaterOrEqual(t, len(steps)-1, 10, "steps of the file's length")
	require.LessOrEqual(t, int64(len(steps)-1), extensions, "the file was made longer by somebody else")

	raw := filepath.Join(dir, "copy.raw")
	testenv.Run(t, nbdcopy, "--connections=4", s.uri(), raw)
	s.stop()
	requireClean(t, v.Path)
	testenv.Run(t, qemuImg, "compare", "-f", "qcow2", "-F", "raw", v.Path, raw)
	p.requireSum()
}

// headrooms samples how far a volume's granted size is ahead of what was
// written. What was written is taken before the granted size, so that the
// difference is never too small.
type headrooms struct {
	p    *testPool
	v    spm.Volume
	file *os.File

	samples          int
	max, maxReported int64 // by the file's data and its length; by what the pool reports
	data             int64 // the last
}

func (h *headrooms) sample() error {
	if h.file == nil {
		f, err := os.Open(h.v.Path)
		if err != nil {
			return err
		}
		h.p.t.Cleanup(func() { _ = f.Close() })
		h.file = f
	}
	data, err := dataBytes(h.file)
	if err != nil {
		return err
	}
	st, err := h.file.Stat()
	if err != nil {
		return err
	}
	r, err := h.p.client.GetVolumeInfo(h.p.t.Context(), spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: h.v.Name}})
	if err != nil {
		return err
	}
	h.samples++
	h.data = data
	h.max = max(h.max, st.Size()-data)
	h.maxReported = max(h.maxReported, r.Granted-r.Allocated)
	return nil
}

// require requires that the headroom was never too large, and that what was
// taken for written was.
func (h *headrooms) require(t *testing.T, written int64) {
	t.Helper()
	metadata := h.v.Bound - h.v.Size
	t.Logf("%d samples: at most %d MiB granted above what was written, %d MiB by the pool's own figures; metadata bound %d KiB",
		h.samples, h.max/mib, h.maxReported/mib, metadata>>10)
	require.Less(t, metadata, int64(16*mib), "the metadata bound of an image of 10 GiB")
	require.GreaterOrEqual(t, h.samples, 10)
	require.LessOrEqual(t, h.max, 512*mib+metadata, "granted above written")
	require.LessOrEqual(t, h.maxReported, 512*mib+metadata, "granted above allocated, as the pool reports")
	require.InDelta(t, written, h.data, float64(metadata), "data in the file against what fio wrote")
}
