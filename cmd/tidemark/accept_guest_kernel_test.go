//go:build linux

package main_test

import (
	"io"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/internal/testenv/guest"
	"tidemark/internal/testenv/guest/wire"
	"tidemark/nbd"
)

// A guest uses a volume as in TestGuestOnVolume, with the NBD client of its kernel,
// over TCP and with four connections, one for each of its processors.
func TestGuestKernelClient(t *testing.T) {
	dir := workspace(t)
	needMountedFiles(t)
	tree := guestTree(t)
	p := newPool(t, filepath.Join(dir, "pool"), 4*gib)
	before := p.create("disk", 2*gib)
	s, address := serveTCP(t, "--spm", p.socket, "disk")
	c, err := nbd.Dial(t.Context(), "tcp", address, nbd.ClientOptions{})
	require.NoError(t, err)
	between := newCountingProxy(t, address)

	g := guest.Start(t, guest.Options{
		Modules: []string{"virtio_net", "nbd"}, Programs: guestPrograms,
		Args: []string{"-smp", "4", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="},
	})
	g.Do(wire.Network, "10.0.2.15")
	attempts := g.Do(wire.Connect, "/dev/nbd0", "tcp", "10.0.2.2:"+between.port(), "", "4") // QEMU's name for this host
	fillAndTrim(t, g, "/dev/nbd0", tree, c)
	g.Do(wire.Disconnect, "/dev/nbd0")
	g.PowerOff()
	counts := between.counts()
	t.Logf("%s; bytes that the guest has sent on each connection: %d", attempts, counts)
	require.GreaterOrEqual(t, len(counts), 4)
	counts = counts[len(counts)-4:] // those of the last attempt
	require.Greater(t, slices.Min(counts), int64(mib), "all of them are used: %d", counts)

	require.NoError(t, s.Signal(syscall.SIGTERM))
	require.NoError(t, s.Wait(t, stopLimit), s.Output())
	requireGrown(t, p, before)
	requireFiles(t, tree, "--spm", p.socket, "disk")
}

// A countingProxy hands connections on to a server and counts what clients send.
type countingProxy struct {
	l    net.Listener
	mu   sync.Mutex // guards sent
	sent []*atomic.Int64
}

func newCountingProxy(t *testing.T, server string) *countingProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	p := &countingProxy{l: l}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return // the test has ended
			}
			go p.handOn(client, server)
		}
	}()
	return p
}

// handOn copies both ways until one side closes.
func (p *countingProxy) handOn(client net.Conn, server string) {
	defer client.Close()
	s, err := net.Dial("tcp", server)
	if err != nil {
		return // the client sees that it is closed
	}
	defer s.Close()
	n := &atomic.Int64{}
	p.mu.Lock()
	p.sent = append(p.sent, n)
	p.mu.Unlock()
	go func() {
		defer s.Close()
		b := make([]byte, mib)
		for {
			k, err := client.Read(b)
			n.Add(int64(k))
			if _, failed := s.Write(b[:k]); err != nil || failed != nil {
				return
			}
		}
	}()
	_, _ = io.Copy(client, s) // either side may end it
}

func (p *countingProxy) port() string {
	_, port, _ := net.SplitHostPort(p.l.Addr().String()) // it is one
	return port
}

func (p *countingProxy) counts() (all []int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.sent {
		all = append(all, n.Load())
	}
	return all
}

// listeningOn finds the address in what a server logs.
var listeningOn = regexp.MustCompile(`msg=listening tcp=(127\.0\.0\.1:\d+)`)

// serveTCP starts tidemark nbd on a free port of this host.
func serveTCP(t *testing.T, args ...string) (p *testenv.Process, address string) {
	t.Helper()
	p = testenv.Start(t, program(t, append([]string{"nbd", "-t", "-p", "0"}, args...)...))
	testenv.Eventually(t, startLimit, "the server says where it listens", func() bool {
		found := listeningOn.FindStringSubmatch(p.Output())
		if found != nil {
			address = found[1]
		}
		return found != nil
	})
	return p, address
}
