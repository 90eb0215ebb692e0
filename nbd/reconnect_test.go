package nbd

import (
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// TestZombieWriteOfADeadConnection (design review 2.7): a write is held, another one is
// on its way to the storage; their client dies, connects again and, as QEMU does, sends
// both anew, then newer ones to the same sectors, and flushes. When the storage answers
// and there is space at last, the newer ones are what is there.
func TestZombieWriteOfADeadConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const held, issued = 0, 8 * memBlock
		d := newMemDevice(1 << 20)
		slow := make(chan struct{})
		first := true
		d.before = func(_ context.Context, op string, off, _ int64, _ block.Flags) error {
			if op == "write" && off == issued && first {
				first = false
				<-slow
			}
			return nil
		}
		d.mark(issued, memBlock, true)
		d.setFull()
		srv, dying := pipeClient(t, Options{Patience: -1}, Export{Device: d})
		old, newer := bytes.Repeat([]byte{1}, 512), bytes.Repeat([]byte{2}, 512)
		dead := make(chan error, 2)
		for _, off := range []int64{held, issued} {
			go func() { dead <- dying.WriteAt(context.Background(), old, off, 0) }()
		}
		synctest.Wait()
		require.Equal(t, 1, srv.Stats().HeldNow)
		require.NoError(t, dying.conn.Close())
		require.Error(t, <-dead)
		require.Error(t, <-dead)
		synctest.Wait() // the server has seen it: of a pipe it cannot ask, as of a socket

		again := make(chan error, 1)
		go func() {
			a, b := netPipe()
			srv.ServeConn(a)
			again <- func() error {
				c, err := NewClient(context.Background(), b, ClientOptions{})
				if err != nil {
					return err
				}
				for _, p := range [][]byte{old, newer} {
					for _, off := range []int64{held, issued} {
						if err := c.WriteAt(context.Background(), p, off, 0); err != nil {
							return err
						}
					}
				}
				if err := c.Flush(context.Background()); err != nil {
					return err
				}
				return c.Close()
			}()
		}()
		synctest.Wait()
		d.makeSpace()
		synctest.Wait()
		time.Sleep(time.Second) // of the bubble: whoever does not wait for the old write is done
		close(slow)
		require.NoError(t, <-again)
		synctest.Wait()
		got := d.snapshot()
		require.Equal(t, newer, got[held:held+512], "the write that was held")
		require.Equal(t, newer, got[issued:issued+512], "the write that was on its way")
		require.NoError(t, srv.Shutdown(t.Context()))
	})
}

// TestSixteenHeldWrites (design review 4.2): QEMU has 16 slots on a connection. Sixteen
// writes that find no space must not take all of them: eight are held, the others are
// answered, and a read, an overwrite and a flush behind them complete. The client is
// libnbd, with as many in flight.
func TestSixteenHeldWrites(t *testing.T) {
	t.Parallel()
	python := testenv.Python(t)
	d := newMemDevice(1 << 20)
	d.mark(512<<10, 64<<10, true)
	d.setFull()
	srv := NewServer(Options{Patience: -1})
	srv.overGrace = time.Millisecond
	ts := serveOn(t, srv, Export{Device: d})
	script := `
import nbd, sys
h = nbd.NBD()
h.connect_uri("` + ts.uri("") + `")
data = nbd.Buffer.from_bytearray(bytearray(b"7" * 4096))
writes = [h.aio_pwrite(data, i * 4096) for i in range(16)]
def done(): return [c for c in writes if c in finished or check(c)]
finished = {}
def check(c):
    try:
        if not h.aio_command_completed(c): return False
        finished[c] = 0
    except nbd.Error as e:
        finished[c] = e.errno
    return True
while h.aio_in_flight() > 8: h.poll(-1)
assert len(done()) == 8 and set(finished.values()) == {"ENOSPC"}, finished
h.pwrite(b"5" * 4096, 512 << 10)
assert h.pread(4096, 512 << 10) == b"5" * 4096
h.flush()
print("free", flush=True)
sys.stdin.readline()
while h.aio_in_flight() > 0: h.poll(-1)
assert len(done()) == 16 and list(finished.values()).count(0) == 8, finished
h.shutdown()
`
	cmd := testenv.Command(t, python, "-c", script)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	p := testenv.Start(t, cmd)
	eventually(t, "everything else answered", func() bool { return strings.Contains(p.Output(), "free") })
	require.Equal(t, heldDefault, srv.Stats().HeldNow)
	d.makeSpace()
	_, err = io.WriteString(in, "\n")
	require.NoError(t, err)
	require.NoError(t, p.Wait(t, time.Minute))
}
