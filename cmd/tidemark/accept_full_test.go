//go:build linux

package main_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// answerLimit is how long a read or an overwrite may take on a connection
// whose other writes wait for space; resumeLimit how soon those go on.
const (
	answerLimit = 100 * time.Millisecond
	resumeLimit = time.Second
)

// fio fills a pool. What needs space waits and everything else goes on, until
// another volume is removed.
func TestPoolFullUnderFio(t *testing.T) {
	dir := workspace(t)
	testenv.Tool(t, "fio")
	p := newPool(t, filepath.Join(dir, "pool"), 512*mib)
	v := p.create("disk", 4*gib)
	p.create("ballast", 256*mib, "--format", "raw")
	s := p.serve("disk")

	// The first 16 MiB are written and known before the pool is full.
	conn, c := s.dialCounting()
	fill(t, c, 1, 0, 16*mib)
	require.NoError(t, c.Flush(t.Context()))

	load := startFio(t, s, "--rw=randwrite", "--bs=256k", "--iodepth=4", "--offset=1g", "--size=320m",
		"--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
	testenv.Eventually(t, time.Minute, "the pool says that disk waits", func() bool { return len(p.info().Waiting) > 0 })
	requireWaiting(t, p, "disk")
	awaitStandstill(t, v.Path)

	// Writes of ours wait too, on the connection that is measured.
	const held = 6
	sent := conn.written.Load()
	ended := make(chan error, held)
	for i := range int64(held) {
		go func() { ended <- c.WriteAt(t.Context(), patterned(2, 2*gib+i*mib, 64<<10), 2*gib+i*mib, 0) }()
	}
	testenv.Eventually(t, 5*time.Second, "the writes are on their way", func() bool { return conn.written.Load() >= sent+held*(64<<10) })
	answersWhileHeld(t, c)
	requireWaiting(t, p, "disk")
	select {
	case err := <-ended:
		t.Fatalf("a write that needs space has been answered while there is none: %v", err)
	case <-load.proc.Done():
		t.Fatal("fio ended although the pool is full")
	default:
	}

	since := p.info().Waiting[0].Since
	ok(t, "volume", "remove", "--spm", p.socket, "ballast")
	removed := time.Now()
	for range held {
		select {
		case err := <-ended:
			require.NoError(t, err, "a write that was held")
		case <-time.After(2 * resumeLimit):
			t.Fatalf("a write is still held %v after space was there", time.Since(removed))
		}
	}
	resumed := time.Since(removed)
	require.Less(t, resumed, resumeLimit, "from the return of volume remove to the end of the last held write")
	r, err := load.wait(time.Minute)
	require.NoError(t, err)
	require.Zero(t, r.Error)
	require.Greater(t, r.SlowestWrite, 2*time.Second, "fio's slowest write: it was to wait")
	require.Less(t, r.SlowestWrite, removed.Sub(since)+resumeLimit, "fio's slowest write, against how long it had to wait")
	require.Empty(t, p.info().Waiting)
	t.Logf("held for %v, resumed after %v", removed.Sub(since).Round(time.Millisecond), resumed.Round(time.Millisecond))

	for i := range int64(held) {
		requirePattern(t, c, 2, 2*gib+i*mib, 64<<10)
	}
	requirePattern(t, c, 3, 0, 16*mib)
	s.stop()
	requireClean(t, v.Path)
	p.requireSum()
}

// awaitStandstill waits until nothing has been added to the file for half a
// second. The pool says that a volume waits as soon as its engine does; the
// writer comes to a stop when it has used what was reserved for it before.
func awaitStandstill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	last, since := int64(-1), time.Now()
	testenv.Eventually(t, startLimit, "fio has come to a stop", func() bool {
		n, err := dataBytes(f)
		require.NoError(t, err)
		if n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) > 500*time.Millisecond
	})
}

// answersWhileHeld reads, overwrites and flushes for two seconds on a connection
// on which other writes wait. Afterwards the first 16 MiB have pattern 3.
func answersWhileHeld(t *testing.T, c *nbd.Client) {
	t.Helper()
	const size = 64 << 10
	var read, overwrite, flush time.Duration
	timed := func(longest *time.Duration, f func()) {
		began := time.Now()
		f()
		*longest = max(*longest, time.Since(began))
	}
	n, began := 0, time.Now()
	for ; n < 16*mib/size || time.Since(began) < 2*time.Second; n++ {
		off := int64(n) * size % (16 * mib)
		was := uint64(1)
		if n >= 16*mib/size {
			was = 3
		}
		got, next := make([]byte, size), patterned(3, off, size)
		timed(&read, func() { require.NoError(t, c.ReadAt(t.Context(), got, off, 0)) })
		require.Equal(t, patterned(was, off, size), got, "at %d", off)
		timed(&overwrite, func() { require.NoError(t, c.WriteAt(t.Context(), next, off, 0)) })
		if n%64 == 0 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			timed(&flush, func() { require.NoError(t, c.Flush(ctx), "flush of what was acknowledged") })
			cancel()
		}
	}
	t.Logf("while writes are held: %d reads, at most %v; overwrites at most %v; flushes at most %v", n, read, overwrite, flush)
	require.Less(t, read, answerLimit, "the slowest read while writes are held")
	require.Less(t, overwrite, answerLimit, "the slowest overwrite while writes are held")
}

// requireWaiting requires that the pool says who waits, for how much and since
// when, to programs and to people.
func requireWaiting(t *testing.T, p *testPool, name string) {
	t.Helper()
	w := p.info().Waiting
	require.Len(t, w, 1)
	require.Equal(t, name, w[0].Name)
	require.Positive(t, w[0].Bytes)
	require.Less(t, w[0].Bytes, int64(chunk))
	require.WithinDuration(t, time.Now().Add(-30*time.Second), w[0].Since, 30*time.Second)
	text := ok(t, "volume", "list", "--spm", p.socket)
	line := "waiting: " + name + " for "
	require.Contains(t, text, line)
	require.Contains(t, text, " since "+w[0].Since.Local().Format(time.TimeOnly))
}

// Nobody removes anything. The clients are told when the patience is over, and
// what was acknowledged before is whole, also after the server was killed.
func TestPoolFullPatienceEnds(t *testing.T) {
	dir := workspace(t)
	testenv.Tool(t, "fio")
	p := newPool(t, filepath.Join(dir, "pool"), 256*mib)
	v := p.create("disk", 4*gib)
	s := p.serve("disk", "--patience", "2s")
	c := s.dial()

	const size = mib
	acknowledged := int64(0)
	var err error
	var took time.Duration
	for err == nil {
		began := time.Now()
		err = c.WriteAt(t.Context(), patterned(1, acknowledged*size, size), acknowledged*size, 0)
		if took = time.Since(began); err == nil {
			acknowledged++
		}
	}
	require.ErrorIs(t, err, block.ErrNoSpace)
	require.InDelta(t, 2.5, took.Seconds(), 0.55, "seconds until ENOSPC")
	require.Greater(t, acknowledged*size, p.capacity*3/4, "bytes that found a place")
	require.NoError(t, c.Flush(t.Context()), "flush of what was acknowledged")
	t.Logf("%d MiB acknowledged, then ENOSPC after %v", acknowledged, took.Round(time.Millisecond))

	r, err := startFio(t, s, "--rw=write", "--bs=64k", "--iodepth=4", "--offset=2g", "--size=16m").wait(time.Minute)
	require.Error(t, err, "fio on a full pool")
	require.EqualValues(t, syscall.ENOSPC, r.Error, "the error that fio saw")

	whole := func(what string) {
		t.Helper()
		c := s.dial()
		for i := range acknowledged {
			requirePattern(t, c, 1, i*size, size)
		}
		require.NoError(t, c.Close(), what)
	}
	whole("while the pool is full")
	s.proc.Kill()
	require.Contains(t, []int{0, 3}, imageState(t, v.Path).ExitCode, "qemu-img check after a SIGKILL: clean or leaks")
	s.start()
	whole("after a SIGKILL")
	s.stop()
	s.start()
	whole("after a stop")
	s.stop()
	require.Contains(t, []int{0, 3}, imageState(t, v.Path).ExitCode, "qemu-img check after a stop: clean or leaks")
	p.requireSum()
}

// A countingConn counts what was sent.
type countingConn struct {
	net.Conn
	written atomic.Int64
}

func (c *countingConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written.Add(int64(n))
	return n, err
}

func (s *server) dialCounting() (*countingConn, *nbd.Client) {
	s.t.Helper()
	raw, err := net.Dial("unix", s.sock)
	require.NoError(s.t, err)
	conn := &countingConn{Conn: raw}
	c, err := nbd.NewClient(s.t.Context(), conn, nbd.ClientOptions{})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = c.Close() })
	return conn, c
}

// patterned is what belongs at off: every word is a function of the seed and
// of its place.
func patterned(seed uint64, off int64, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		x := (seed<<48 + uint64(off+int64(i))) * 0x9e3779b97f4a7c15
		binary.LittleEndian.PutUint64(p[i:], x^x>>29)
	}
	return p
}

// fill writes a pattern with some requests at a time.
func fill(t *testing.T, c *nbd.Client, seed uint64, off, n int64) {
	t.Helper()
	const workers = 4
	errs := make(chan error, workers)
	for w := range int64(workers) {
		go func() {
			var err error
			for at := off + w*mib; at < off+n && err == nil; at += workers * mib {
				err = c.WriteAt(t.Context(), patterned(seed, at, mib), at, 0)
			}
			errs <- err
		}()
	}
	for range workers {
		require.NoError(t, <-errs)
	}
}

func requirePattern(t *testing.T, c *nbd.Client, seed uint64, off, n int64) {
	t.Helper()
	got := make([]byte, min(n, mib))
	for end := off + n; off < end; off += int64(len(got)) {
		require.NoError(t, c.ReadAt(t.Context(), got, off, 0))
		if want := patterned(seed, off, len(got)); string(want) != string(got) {
			i := 0
			for want[i] == got[i] {
				i++
			}
			t.Fatalf("at byte %d: expected %s, found %s", off+int64(i), hex(want[i:]), hex(got[i:]))
		}
	}
}

func hex(p []byte) string { return strings.TrimSpace(fmt.Sprintf("% x", p[:min(len(p), 16)])) }
