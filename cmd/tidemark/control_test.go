package main

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// steered is a tidemark nbd with a control socket.
type steered struct {
	controlClient
	proc *testenv.Process
	nbd  string
}

func startSteered(t testing.TB, args ...string) *steered {
	t.Helper()
	s := &steered{controlClient: controlClient{filepath.Join(shortPath(t), "c")}}
	s.proc, s.nbd = startNBD(t, append([]string{"-t", "--control", s.socket}, args...)...)
	testenv.Eventually(t, serveLimit, "the control socket answers", func() bool {
		_, err := s.State(t.Context())
		return err == nil
	})
	return s
}

// do is a POST that must succeed.
func (s *steered) do(t testing.TB, verb, leaf string) controlExport {
	t.Helper()
	st, err := s.Do(t.Context(), verb, controlRequest{Leaf: leaf})
	require.NoError(t, err, s.proc.Output())
	return st.Exports[0]
}

// refused is a POST that must not.
func (s *steered) refused(t testing.TB, status int, verb string, r controlRequest, text string) {
	t.Helper()
	_, err := s.Do(t.Context(), verb, r)
	var f *controlFailure
	require.ErrorAs(t, err, &f)
	require.Equal(t, status, f.status, f)
	require.Contains(t, f.Message, text)
}

// awaitReady waits until the merge is ready.
func (s *steered) awaitReady(t testing.TB) {
	t.Helper()
	testenv.Eventually(t, serveLimit, "the merge is ready", func() bool {
		st, err := s.State(t.Context())
		require.NoError(t, err, s.proc.Output())
		require.NotEqual(t, "failed", st.Exports[0].Merge.State, st.Exports[0].Merge.Error)
		return st.Exports[0].Merge.State == "ready"
	})
}

// liveSpecs are a template and three leaves, each on the one before it. The last is
// larger, unless a raw volume could not become so.
func liveSpecs(base string, size int64) []chainSpec {
	last := size
	if base != "raw" {
		last += 4 << 20
	}
	return []chainSpec{
		{name: "base", format: base, size: size, granted: size}, {name: "a", size: size, parent: "base"},
		{name: "b", size: size, parent: "a"}, {name: "c", size: last, parent: "b"},
	}
}

func TestControlTellsAndRefuses(t *testing.T) {
	p := newChainPool(t, liveSpecs("", 8<<20)...)
	s := startSteered(t, "--spm", p.socket, "-x", "disk", p.id("a"))
	st, err := os.Stat(s.socket)
	require.NoError(t, err)
	require.EqualValues(t, 0o600, st.Mode().Perm())
	state, err := s.State(t.Context())
	require.NoError(t, err)
	require.Equal(t, s.proc.Cmd.Process.Pid, state.PID)
	require.Equal(t, s.nbd, state.Address)
	x := state.Exports[0]
	require.Equal(t, "disk", x.Name)
	require.Equal(t, p.id("a"), x.Leaf)
	require.Equal(t, []string{p.id("base")}, x.Chain)
	require.EqualValues(t, 8<<20, x.Size)
	require.Positive(t, x.Used)
	require.EqualValues(t, p.volumeInfo(t, p.id("a")).Granted, x.Granted)

	name, none := "disk", "none"
	s.do(t, "flush", "")
	_, err = s.Do(t.Context(), "flush", controlRequest{Export: &name})
	require.NoError(t, err)
	s.refused(t, http.StatusNotFound, "flush", controlRequest{Export: &none}, "no such export")
	s.refused(t, http.StatusNotFound, "nothing", controlRequest{}, "")
	s.refused(t, http.StatusNotFound, "snapshot", controlRequest{Leaf: "nobody"}, "no volume has")
	s.refused(t, http.StatusConflict, "snapshot", controlRequest{Leaf: p.id("c")}, "is based on")
	s.refused(t, http.StatusConflict, "merge", controlRequest{Leaf: p.id("b")}, "the leaf is")
	s.refused(t, http.StatusConflict, "pivot", controlRequest{Leaf: p.id("a")}, "is not being merged")
	s.refused(t, http.StatusConflict, "resize", controlRequest{Size: 1}, "does not become smaller")
	s.do(t, "cancel", p.id("a"))
	s.do(t, "snapshot", p.id("a"))

	_, err = s.Do(t.Context(), "stop", controlRequest{})
	require.NoError(t, err)
	require.NoError(t, s.proc.Wait(t, serveLimit), s.proc.Output())
	require.NoFileExists(t, s.socket)

	file := startSteered(t, newImage(t, "1M"))
	file.refused(t, http.StatusConflict, "snapshot", controlRequest{Leaf: "x"}, "only the leaf")
	_, err = file.Do(t.Context(), "resize", controlRequest{Size: 2 << 20})
	require.NoError(t, err)
	require.EqualValues(t, 2<<20, dialNBD(t, file.nbd, "").Info().Size)
	stopped(t, file.proc)
	r := cli(t, "nbd", "-t", "-k", filepath.Join(t.TempDir(), "s"), "--control", "/nowhere/c", newImage(t, "1M"))
	require.Equal(t, exitFailure, r.code)
	require.Contains(t, r.stderr, "--control: socket /nowhere/c")
}

// A guest writes to a served disk without end, from several connections, each to a part
// of its own, and knows what must be there.
type guestLoad struct {
	stop  atomic.Bool
	wg    sync.WaitGroup
	part  int64
	want  [][]byte
	doubt []doubt // the request that was in progress when the server died
	ended []error
}

// A doubt is what a request would have left at off in its part: each byte of it may be the
// old or the new one, and another one in every volume.
type doubt struct {
	off int64
	p   []byte
}

func (d doubt) allows(off int64, b byte) bool {
	return off >= d.off && off < d.off+int64(len(d.p)) && d.p[off-d.off] == b
}

func newGuestLoad(content []byte, n int) *guestLoad {
	g := &guestLoad{part: int64(len(content) / n), want: make([][]byte, n), doubt: make([]doubt, n), ended: make([]error, n)}
	for i := range n {
		g.want[i] = bytes.Clone(content[int64(i)*g.part : int64(i+1)*g.part])
	}
	return g
}

func (g *guestLoad) start(t testing.TB, socket string, rng *rand.Rand) {
	t.Helper()
	g.stop.Store(false)
	for i := range g.want {
		c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientOptions{})
		require.NoError(t, err)
		own := rand.New(rand.NewPCG(rng.Uint64(), 0))
		g.wg.Go(func() {
			g.ended[i] = g.write(c, own, i)
			_ = c.Close()
		})
	}
}

func (g *guestLoad) write(c *nbd.Client, rng *rand.Rand, i int) error {
	ctx := context.Background()
	for n := 0; !g.stop.Load(); n++ {
		length := 512 * (1 + rng.Int64N(200))
		off := rng.Int64N((g.part-length)/512+1) * 512
		p := make([]byte, length)
		var err error
		g.doubt[i] = doubt{off, make([]byte, length)}
		at := int64(i)*g.part + off
		switch rng.IntN(6) {
		case 0:
			err = c.WriteZeroes(ctx, at, length, block.MayUnmap)
		case 1:
			if err = c.Discard(ctx, at, length, 0); err == nil {
				err = c.ReadAt(ctx, p, at, 0)
			}
		case 2:
			g.doubt[i] = doubt{}
			if err = c.ReadAt(ctx, p, at, 0); err == nil && !bytes.Equal(p, g.want[i][off:off+length]) {
				return errors.New("what is read is not what was written")
			}
		default:
			for k := range p {
				p[k] = byte(rng.Uint32())
			}
			g.doubt[i].p = p
			err = c.WriteAt(ctx, p, at, 0)
		}
		if err != nil {
			return err
		}
		copy(g.want[i][off:], p)
		g.doubt[i] = doubt{}
		if n%16 == 0 {
			if err := c.Flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// end stops the writers, of which none may have failed.
func (g *guestLoad) end(t testing.TB) {
	t.Helper()
	g.stop.Store(true)
	g.wg.Wait()
	for _, err := range g.ended {
		require.NoError(t, err)
	}
}

// require compares a disk's content with what was written.
func (g *guestLoad) require(t testing.TB, got []byte) {
	t.Helper()
	for i, want := range g.want {
		for k, b := range got[int64(i)*g.part : int64(i+1)*g.part] {
			if b != want[k] && !g.doubt[i].allows(int64(k), b) {
				t.Fatalf("byte %d of part %d is %d, expected %d", k, i, b, want[k])
			}
		}
	}
}

// takeOver ends the doubt: what the guest finds is what it goes on with.
func (g *guestLoad) takeOver(t testing.TB, got []byte) {
	t.Helper()
	g.require(t, got)
	for i := range g.want {
		copy(g.want[i], got[int64(i)*g.part:])
		g.doubt[i] = doubt{}
	}
}

func readDisk(t testing.TB, socket string) []byte {
	t.Helper()
	c := dialNBD(t, socket, "")
	b := make([]byte, c.Info().Size)
	for off := 0; off < len(b); off += 1 << 20 {
		require.NoError(t, c.ReadAt(t.Context(), b[off:min(off+1<<20, len(b))], int64(off), 0))
	}
	require.NoError(t, c.Close())
	return b
}

// A guest that never stops writing sees nothing of snapshots and merges, and every
// volume is whole afterwards.
func TestLiveSnapshotAndMerge(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	for _, format := range []string{"qcow2", "raw"} {
		p := newChainPool(t, liveSpecs(format, 32<<20)...)
		p.scatter(t, rng, "base", make([]byte, 32<<20), 100)
		s := startSteered(t, "--spm", p.socket, p.id("a"))
		load := newGuestLoad(readDisk(t, s.nbd), 3)
		load.start(t, s.nbd, rng)
		x := s.do(t, "snapshot", p.id("b"))
		require.Equal(t, []string{p.id("a"), p.id("base")}, x.Chain)
		x = s.do(t, "snapshot", p.id("c"))
		require.Equal(t, p.id("c"), x.Leaf)
		size := x.Size
		time.Sleep(200 * time.Millisecond) // of writing
		for _, leaf := range []string{"c", "b", "a"} {
			if rng.IntN(2) == 0 {
				s.do(t, "merge", p.id(leaf))
				s.do(t, "cancel", p.id(leaf))
			}
			s.do(t, "merge", p.id(leaf))
			s.do(t, "merge", p.id(leaf))
			s.awaitReady(t)
			s.refused(t, http.StatusConflict, "resize", controlRequest{Size: 64 << 20}, "is being merged (ready): repeat the request when that is over")
			s.do(t, "pivot", p.id(leaf))
			x = s.do(t, "pivot", p.id(leaf))
			dropped, err := openDisk(t.Context(), diskSpec{Image: p.id(leaf), Pool: p, ReadOnly: true})
			if err == nil { // the chain below it is in use for writing
				require.NoError(t, dropped.Close())
				t.Fatal("what is below the leaf is being written to")
			}
		}
		require.Equal(t, p.id("base"), x.Leaf)
		require.Empty(t, x.Chain)
		load.end(t)
		load.require(t, readDisk(t, s.nbd))
		stopped(t, s.proc)
		all := p.content(t, "base")
		load.require(t, all)
		for _, v := range []string{"base", "a", "b", "c"} {
			if v != "base" || format == "qcow2" {
				testenv.Run(t, testenv.Tool(t, "qemu-img"), "check", "-q", p.volumes[v].Path)
			}
		}
		require.Len(t, all, int(size))
	}
}

// A server that is killed while it takes a snapshot or merges leaves the chain as the
// guest knows it; and the base alone, too, once the merge was ready.
func TestLiveIsKilled(t *testing.T) {
	seed, rng := testenv.Seed(t)
	t.Log("seed", seed)
	p := newChainPool(t, liveSpecs("qcow2", 24<<20)...)
	p.scatter(t, rng, "base", make([]byte, 24<<20), 50)
	leaf := map[string]string{"a": "b", "b": ""}
	now := "a"
	load := newGuestLoad(p.content(t, "a"), 3)
	for i := range 14 {
		s := startSteered(t, "--spm", p.socket, p.id(now))
		load.start(t, s.nbd, rng)
		ready := false
		asked := make(chan struct{})
		next := leaf[now]
		if next != "" {
			now = next // for the pool it is the leaf, whether the server gets so far or not
		}
		go func() { // until the server is gone
			defer close(asked)
			if next != "" {
				_, _ = s.Do(context.Background(), "snapshot", controlRequest{Leaf: p.id(next)})
				return
			}
			if _, err := s.Do(context.Background(), "merge", controlRequest{Leaf: p.id(now)}); err != nil {
				return
			}
			for {
				st, err := s.State(context.Background())
				if err != nil {
					return
				}
				if ready = ready || st.Exports[0].Merge.State == "ready"; ready {
					return
				}
			}
		}()
		if next == "" && i%4 == 3 {
			<-asked // so that it is ready
		}
		time.Sleep(time.Duration(rng.IntN(120)) * time.Millisecond)
		s.proc.Kill()
		require.Error(t, s.proc.Wait(t, serveLimit))
		<-asked
		load.wg.Wait()
		found := p.content(t, now)
		load.require(t, found)
		for _, v := range []string{"base", "a", "b"} {
			r := testenv.Try(t, testenv.Tool(t, "qemu-img"), "check", "-q", p.volumes[v].Path)
			require.Contains(t, []int{0, 3}, r.ExitCode, "attempt %d: %s", i, r) // leaks are no harm
		}
		if ready {
			require.Equal(t, "b", now)
			now = "a" // the pool has decided that the leaf is gone
			found = p.content(t, now)
			p.renew(t, "b")
		}
		load.takeOver(t, found)
	}
}

// renew makes a volume's image anew, on its parent.
func (p *chainPool) renew(t testing.TB, name string) {
	t.Helper()
	for _, s := range liveSpecs("qcow2", 24<<20) {
		if s.name == name {
			p.base(t, s)
		}
	}
}
