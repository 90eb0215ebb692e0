//go:build linux

package main_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
)

// The manager is killed in the middle of extensions, again and again: at once
// after a file became longer, before it could answer, and at random moments.
// fio notices nothing, and no extension happens twice.
//
// fio's volume cannot show every repetition, because its server asks for sizes
// by a policy that makes up for one. So a second volume is extended by exact
// sizes all the time.
func TestSPMKilledDuringExtensions(t *testing.T) {
	dir := workspace(t)
	_, rng := testenv.Seed(t)
	p := newPool(t, filepath.Join(dir, "pool"), 16*gib)
	v, exact := p.create("disk", 10*gib), p.create("exact", 10*gib)
	s := p.serve("disk")

	lengths, stopWatching := watchLength(t, v.Path, 200*time.Microsecond)
	exactLengths, stopExact := watchLength(t, exact.Path, 200*time.Microsecond)
	asked, stopAsking := extendExactly(t, p, "exact")
	load := startFio(t, s, "--rw=randwrite", "--bs=128k", "--iodepth=8", "--numjobs=2", "--size=768m", "--offset_increment=4g", "--rate=,100m",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1")

	// Sometimes a manager is faster than we are.
	const killsMin, killsMax, amidMin = 8, 20, 5
	killer := spmKiller{p: p, rng: rng, lengths: lengths, exact: exactLengths}
	kills := 0
	for ; kills < killsMin || killer.amid < amidMin && kills < killsMax; kills++ {
		killer.kill(t, kills)
		p.start()
		p.requireSum()
	}
	r, err := load.wait(2 * time.Minute)
	require.NoError(t, err)
	require.Zero(t, r.Error)
	require.EqualValues(t, 2*768*mib, r.Read, "bytes read back and verified")
	require.NoError(t, stopAsking())
	require.NoError(t, stopWatching())
	require.NoError(t, stopExact())
	t.Logf("%d kills, %d of them between a longer file and the answer; %d steps of fio's volume, %d of the other",
		kills, killer.amid, len(lengths.Lengths())-1, len(exactLengths.Lengths())-1)

	require.GreaterOrEqual(t, killer.amid, amidMin, "kills between a longer file and the answer")
	require.Positive(t, killer.logged, "extensions in the managers' logs; without them nobody knows what was answered")
	requireGrowth(t, lengths.Lengths(), v.Bound)
	require.Subset(t, asked.Sizes(), exactLengths.Lengths(), "lengths of exact: nobody asked for one of them")
	// What fio wrote and the headroom of the policy is all that was granted.
	require.LessOrEqual(t, fileLength(t, v.Path), r.Written+512*mib+v.Bound-v.Size)
	s.stop()
	requireClean(t, v.Path)
	p.requireSum()
	p.proc.Kill()
	p.start()
	p.requireSum()
}

// An spmKiller kills the manager at moments that matter.
type spmKiller struct {
	p              *testPool
	rng            *rand.Rand
	lengths, exact *lengthLog
	amid           int // kills after a file had become longer, and before that was logged, which comes before the answer
	logged         int // extensions that the managers have logged
}

// kill kills the manager: in turn when fio's volume has just become longer, when
// the other has, and at some moment.
func (k *spmKiller) kill(t *testing.T, i int) {
	t.Helper()
	moment := time.After(time.Duration(k.rng.IntN(150)) * time.Millisecond)
	var grown <-chan int64
	switch i % 3 {
	case 0:
		grown = fresh(k.lengths.changed)
	case 1:
		grown = fresh(k.exact.changed)
	}
	if grown != nil {
		moment = time.After(5 * time.Second)
	}
	var length int64 // 0: none was seen
	select {
	case length = <-grown:
	case <-moment:
	}
	k.p.proc.Kill()
	log := k.p.proc.Output()
	k.logged += strings.Count(log, "volume extended")
	if length > 0 && !strings.Contains(log, fmt.Sprintf(" to=%d ", length)) {
		k.amid++
	}
}

// fresh forgets what c holds.
func fresh(c <-chan int64) <-chan int64 {
	select {
	case <-c:
	default:
	}
	return c
}

// exactSizes are the sizes that a volume was asked to have.
type exactSizes struct {
	mu    sync.Mutex // guards sizes
	sizes []int64
}

// Sizes returns them.
func (e *exactSizes) Sizes() []int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return append([]int64(nil), e.sizes...)
}

func (e *exactSizes) add(n int64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sizes = append(e.sizes, n)
}

// extendExactly extends a volume by a little, again and again, across the
// manager's deaths. Every answer must be the size that was asked for, and so
// must be the file's length.
func extendExactly(t *testing.T, p *testPool, name string) (*exactSizes, func() error) {
	t.Helper()
	h, err := p.client.Volume(t.Context(), spm.VolumeRef{Volume: name})
	require.NoError(t, err)
	size := h.Info().Granted
	asked := &exactSizes{sizes: []int64{size}}
	return asked, every(t, 10*time.Millisecond, func() error {
		size += mib
		asked.add(size)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), startLimit)
		defer cancel()
		got, err := h.Extend(ctx, size, size)
		if err != nil {
			return fmt.Errorf("extend %s to %d: %w", name, size, err)
		}
		st, err := os.Stat(h.Path())
		if err != nil {
			return err
		}
		if got != size || st.Size() != size {
			return fmt.Errorf("extend %s: asked for %d, answered %d, and the file has %d", name, size, got, st.Size())
		}
		r, err := p.client.GetVolumeInfo(ctx, spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: name}})
		if err == nil && r.Granted != size { // an error: the manager is dead right now
			return fmt.Errorf("extend %s: asked for %d, and the pool says %d", name, size, r.Granted)
		}
		return nil
	})
}
