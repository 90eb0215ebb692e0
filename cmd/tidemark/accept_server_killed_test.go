//go:build linux

package main_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// The server is killed while a client writes, zeroes and discards over several
// connections, with flushes and without; it reconnects, goes on, and has to find
// every operation that was answered, also those that no flush has covered: over fresh
// clusters and tables, overwrites, holes, what a backing file has, sub-clusters, an
// image that cannot have a ring, and a volume of a pool.
func TestServerKilled(t *testing.T) {
	for name, c := range map[string]struct {
		options []string // of create
		base    uint64
	}{
		"image":                   {},
		"small clusters":          {options: []string{"-o", "cluster_size=4k"}},
		"without a ring":          {options: []string{"-o", "compat=0.10"}},
		"sub-clusters":            {options: []string{"-o", "extended_l2=on"}},
		"backing":                 {base: 0xba5e},
		"backing, sub-clusters":   {base: 0xba5e, options: []string{"-o", "extended_l2=on,cluster_size=32k"}},
		"backing, without a ring": {base: 0xba5e, options: []string{"-o", "compat=0.10,cluster_size=4k"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // most of it waits for syncs and for processes
			dir := workspace(t)
			image, base := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "base.raw")
			args := append([]string{"create", "-f", "qcow2"}, c.options...)
			if c.base != 0 {
				require.NoError(t, os.WriteFile(base, patterned(c.base, 0, ledgerSize), 0o600))
				args = append(args, "-b", "base.raw", "-F", "raw")
			}
			ok(t, append(args, image, "64G")...)
			killServer(t, serve(t, dir, "--backing", "auto", image), image, newLedger(c.base), 5, nil)
		})
	}
	t.Run("volume", func(t *testing.T) {
		t.Parallel()
		dir := workspace(t)
		p := newPool(t, filepath.Join(dir, "pool"), 4*gib)
		v := p.create("disk", 64*gib)
		killServer(t, p.serve("disk"), v.Path, newLedger(0), 3, nil)
		p.requireSum()
	})
}

// The same while fio writes with fsync beside it, which checks what it wrote and
// flushed before.
func TestServerKilledUnderFio(t *testing.T) {
	t.Run("image", func(t *testing.T) {
		dir := workspace(t)
		image := filepath.Join(dir, "disk.qcow2")
		ok(t, "create", "-f", "qcow2", image, "64G")
		s := serve(t, dir, image)
		killServer(t, s, image, newLedger(0), 5, settleFio(t, s))
	})
	t.Run("volume", func(t *testing.T) {
		dir := workspace(t)
		p := newPool(t, filepath.Join(dir, "pool"), 4*gib)
		v := p.create("disk", 2*gib)
		s := p.serve("disk")
		killServer(t, s, v.Path, newLedger(0), 3, settleFio(t, s))
		p.requireSum()
	})
}

// A load is what uses the disk beside the ledger. wait waits for its end when the
// server was killed; check looks at what it had left before, under the next server.
type load struct {
	start func(rng *rand.Rand) (wait func())
	check func()
}

// killServer kills the server again and again, and looks at what is left.
func killServer(t *testing.T, s *server, image string, l *ledger, kills int, beside *load) {
	t.Helper()
	_, rng := testenv.Seed(t)
	leaks, newer := 0, 0
	for i := range kills {
		killUnderLoad(t, s, l, rng, i%2 == 0, beside)
		r := imageState(t, image)
		require.Contains(t, []int{0, 3}, r.ExitCode, "kill %d: clean or leaks at worst: %s", i+1, r)
		if r.ExitCode == 3 {
			leaks++
		}
		s.start()
		newer += l.verify(t, s.dial())
		if beside != nil {
			beside.check()
		}
	}
	c := s.dial()
	require.NoError(t, c.Flush(t.Context()))
	l.verify(t, c)
	t.Logf("%d kills: %d left leaks; of %d operations that were answered a flush covered %d, and %d were there without one; %d sectors were newer",
		kills, leaks, l.answered.Load(), l.proven.Load(), l.survived.Load(), newer)
	require.Greater(t, l.survived.Load(), int64(30*kills), "operations that were not flushed")
	s.stop()
	require.Contains(t, []int{0, 3}, imageState(t, image).ExitCode)
}

// killUnderLoad kills the server at some moment at which the ledger is busy, and what
// is beside it.
func killUnderLoad(t *testing.T, s *server, l *ledger, rng *rand.Rand, flushes bool, beside *load) {
	t.Helper()
	waitBeside := func() {}
	if beside != nil {
		waitBeside = beside.start(rng)
	}
	busy, wait := l.run(s, rng, flushes)
	select {
	case <-busy:
	case <-time.After(startLimit):
		t.Fatalf("the ledger is not in the middle of its work after %v", startLimit)
	}
	time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond) // any moment will do
	s.proc.Kill()
	wait()
	waitBeside()
	l.serverDied()
}

// The range of the disk in which fio makes the load.
const loadFrom, loadSize = 128 * mib, gib

// hasData reports whether fio has written anything.
func hasData(t *testing.T, c *nbd.Client) bool {
	t.Helper()
	extents, err := c.AppendExtents(t.Context(), nil, loadFrom, loadSize)
	require.NoError(t, err)
	return slices.ContainsFunc(extents, func(e block.Extent) bool { return e.State.Has(block.Data) })
}

// settleFio writes what is checked after every kill, and returns the load that writes
// elsewhere. What that wrote before is discarded first, so that it allocates again,
// out of space that was used.
func settleFio(t *testing.T, s *server) *load {
	t.Helper()
	settled := []string{"--rw=randwrite", "--bs=4k", "--iodepth=8", "--offset=64m", "--size=16m", "--randseed=7", "--verify=crc32c"}
	_, err := startFio(t, s, append(settled, "--do_verify=0", "--end_fsync=1")...).wait(time.Minute)
	require.NoError(t, err)
	fsync := 0
	return &load{
		start: func(rng *rand.Rand) func() {
			c := s.dial()
			require.NoError(t, c.Discard(t.Context(), loadFrom, loadSize, 0))
			require.NoError(t, c.Flush(t.Context()))
			require.False(t, hasData(t, c), "the range of fio after a discard")
			fsync = fsync%4 + 1
			f := startFio(t, s, "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=8",
				fmt.Sprintf("--offset=%d", loadFrom), fmt.Sprintf("--size=%d", loadSize),
				fmt.Sprintf("--fsync=%d", fsync), fmt.Sprintf("--randseed=%d", rng.Uint32()), "--time_based", "--runtime=60")
			testenv.Eventually(t, startLimit, "fio writes", func() bool { return hasData(t, c) })
			return func() {
				if _, err := f.wait(stopLimit); err == nil {
					t.Fatal("fio did not notice that the server was killed: it was not writing")
				}
			}
		},
		check: func() {
			_, err := startFio(t, s, append(settled, "--verify_only", "--verify_fatal=1")...).wait(time.Minute)
			require.NoError(t, err, "what fio had written and flushed before")
		},
	}
}

// TestServerKilledUnderQEMU: QEMU's own client, told to wait for the server, goes on
// when that was killed and started again: requests that were under way end well, and
// everything that it had been told is written is there.
func TestServerKilledUnderQEMU(t *testing.T) {
	dir := workspace(t)
	image := filepath.Join(dir, "disk.qcow2")
	const base = 0xba5e
	require.NoError(t, os.WriteFile(filepath.Join(dir, "base.raw"), patterned(base, 0, 16*mib), 0o600))
	ok(t, "create", "-b", "base.raw", "-F", "raw", image, "1G")
	s := serve(t, dir, "--backing", "auto", image)
	q := startQemuIO(t, "driver=nbd,server.type=unix,server.path="+s.sock+",reconnect-delay=30")
	const kills, writes, apart, size = 4, 8, 3 * mib, 96 << 10
	for kill := range kills {
		for w := range writes { // each its byte, half of them over the backing file
			q.do("aio_write -P %d %d %d", kill*writes+w+1, int64(kill*writes+w)*apart+512, size)
		}
		if kill%2 == 0 { // otherwise they are under way
			q.do("aio_flush")
		}
		s.proc.Kill()
		q.send("write -P %d %d 64k", 200+kill, 512*mib+kill*mib) // waits for the next server
		s.start()
		q.ready()
		q.do("aio_flush")
		q.do("flush")
		for w := range (kill + 1) * writes {
			q.do("read -P %d %d %d", w+1, int64(w)*apart+512, size)
		}
		q.do("read -P %d %d 64k", 200+kill, 512*mib+kill*mib)
	}
	q.send("quit")
	require.NoError(t, q.proc.Wait(t, stopLimit))
	out := q.proc.Output()
	require.NotContains(t, out, "failed")
	require.Equal(t, kills*(writes+1), strings.Count(out, "wrote "), "%s", out)
	require.Equal(t, kills*(kills+1)/2*writes+kills, strings.Count(out, "read "), "%s", out)
	requirePattern(t, s.dial(), base, 2*mib, 512<<10) // what nobody wrote
	s.stop()
	requireClean(t, image)
}

// A qemuIO is a qemu-io that is given commands, one when it asks for one: of several
// it would leave some in its buffer.
type qemuIO struct {
	t     *testing.T
	proc  *testenv.Process
	stdin io.Writer
	sent  int
}

func startQemuIO(t *testing.T, options string) *qemuIO {
	t.Helper()
	cmd := testenv.Command(t, testenv.Tool(t, "qemu-io"), "-t", "writeback", "--image-opts", options)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	diesWithUs(cmd)
	q := &qemuIO{t: t, proc: testenv.Start(t, cmd), stdin: stdin}
	q.ready()
	return q
}

// do gives it a command and waits until it asks for the next one.
func (q *qemuIO) do(format string, args ...any) {
	q.t.Helper()
	q.send(format, args...)
	q.ready()
}

func (q *qemuIO) send(format string, args ...any) {
	q.t.Helper()
	q.sent++
	_, err := fmt.Fprintf(q.stdin, format+"\n", args...)
	require.NoError(q.t, err)
}

func (q *qemuIO) ready() {
	q.t.Helper()
	testenv.Eventually(q.t, time.Minute, "qemu-io has done what it was told", func() bool {
		return strings.Count(q.proc.Output(), "qemu-io> ") > q.sent
	})
}
