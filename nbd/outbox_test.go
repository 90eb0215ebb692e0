package nbd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// pipeEnd is a stream that takes as much as a test allows at a time.
type pipeEnd struct {
	stream // what is not called

	room    int           // that writeNow may take
	wait    chan struct{} // write waits for it, if there is one
	writing func()        // called at the start of write
	closed  chan struct{}

	mu     sync.Mutex // guards what follows
	taken  []byte
	writes int
	fail   error
	ended  []int // bytes that were taken when each end came
}

func (p *pipeEnd) take(limit int, message [][]byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return 0, p.fail
	}
	p.writes++
	all := bytes.Join(message, nil)
	n := min(limit, len(all))
	p.taken = append(p.taken, all[:n]...)
	return n, nil
}

func (p *pipeEnd) writeNow(message [][]byte) (int, error) { return p.take(p.room, message) }

func (p *pipeEnd) write(message [][]byte) error {
	if p.writing != nil {
		p.writing()
	}
	if p.wait != nil {
		<-p.wait
	}
	_, err := p.take(math.MaxInt, message)
	return err
}

func (p *pipeEnd) Read([]byte) (int, error) {
	<-p.closed
	return 0, io.EOF
}

func (p *pipeEnd) CloseWrite() error { return p.end() }

func (p *pipeEnd) Close() error {
	_ = p.end()
	select {
	case <-p.closed:
	default:
		close(p.closed)
	}
	return nil
}

func (p *pipeEnd) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = append(p.ended, len(p.taken))
	return nil
}

// testOutbox is an outbox without a session.
type testOutbox struct {
	outbox
	wg   sync.WaitGroup
	mu   sync.Mutex // guards what follows
	over int        // requests that are done
	errs []error
}

func newTestOutbox(p *pipeEnd) *testOutbox {
	o := &testOutbox{}
	o.to, o.pool = p, &buffers{}
	o.allowed, o.late = func(int) time.Duration { return time.Minute }, func() {}
	o.later = func(f func()) { o.wg.Go(f) }
	o.changed.L = &o.outbox.mu
	o.done = func(*request) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.over++
	}
	o.broken = func(err error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.errs = append(o.errs, err)
	}
	return o
}

func (o *testOutbox) isOver() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.over
}

// answer puts a request with m as its reply, in the background.
func (o *testOutbox) answer(m []byte) {
	o.wg.Go(func() { o.put(&request{reply: m[:len(m)/2], data: m[len(m)/2:]}) })
}

func batchOf(o *outbox, b []byte) replies {
	var r replies
	copy(r.room(len(b), o.pool), b)
	r.add(len(b))
	return r
}

// message is n bytes that tell who sent them and where in it they are.
func message(id byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = id
	}
	be.PutUint16(b, uint16(n))
	return b
}

// From the reader and the off-load at once, over a stream that takes odd amounts:
// every message arrives once and whole.
func TestOutboxKeepsMessagesWhole(t *testing.T) {
	t.Parallel()
	seed := testSeed(t)
	for round := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, round))
		p := &pipeEnd{room: []int{0, 1, 7, 100, 1 << 20}[rng.IntN(5)]}
		o := newTestOutbox(p)
		const senders, each = 8, 50
		sent := map[byte]int{}
		for id := range byte(senders) {
			sent[id] = each
			rng := rand.New(rand.NewPCG(seed, round<<8|uint64(id)))
			o.wg.Go(func() {
				for range each {
					m := message(id, 3+rng.IntN(10000))
					k := 2 + rng.IntN(len(m)-1)
					o.put(&request{reply: m[:k], data: m[k:]})
				}
			})
		}
		for range each {
			if o.full.Load() {
				continue
			}
			m := message(senders, 3+rng.IntN(10000))
			o.offer(batchOf(&o.outbox, m))
			sent[senders]++
		}
		o.wg.Wait()
		o.finish()
		require.Empty(t, o.errs)
		require.Equal(t, senders*each, o.over)
		for b := p.taken; len(b) > 0; {
			n := int(be.Uint16(b))
			require.LessOrEqual(t, n, len(b))
			require.Equal(t, n-2, bytes.Count(b[2:n], b[2:3]))
			sent[b[2]]--
			b = b[n:]
		}
		for id, n := range sent {
			require.Zero(t, n, "of %d", id)
		}
	}
}

// While somebody writes, what others answer collects and leaves in one write. Until
// then nobody waits, and no request is done.
func TestRepliesAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = messageParts/2 - 1
		p := &pipeEnd{wait: make(chan struct{})}
		o := newTestOutbox(p)
		o.answer(message(1, 100))
		synctest.Wait() // in write
		for range n {
			o.put(&request{reply: message(2, 50), data: message(2, 50)})
		}
		o.offer(batchOf(&o.outbox, message(3, 64)))
		require.True(t, o.full.Load())
		p.wait <- struct{}{}
		synctest.Wait()
		require.False(t, o.full.Load(), "it is on its way")
		require.Equal(t, 1, o.isOver())
		close(p.wait)
		o.wg.Wait()
		require.Len(t, p.taken, (n+1)*100+64)
		require.Equal(t, 3, p.writes, "one that did not wait, the first reply, all others")
		require.Equal(t, n+1, o.isOver())
	})
}

// A write is bounded in parts and in bytes, and what comes first goes first.
func TestOutboxMessagesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, row := range []struct{ n, size, writes int }{
			{3 * messageParts / 2, 100, 3}, {10, messageBytes / 2, 5}, {3, 2 * messageBytes, 3},
		} {
			p := &pipeEnd{wait: make(chan struct{})}
			o := newTestOutbox(p)
			o.answer([]byte{0, 0})
			synctest.Wait()
			for i := range row.n {
				o.put(&request{reply: []byte{byte(i)}, data: bytes.Repeat([]byte{byte(i)}, row.size)})
			}
			p.writes = 0
			close(p.wait)
			o.wg.Wait()
			require.Equal(t, 1+row.writes, p.writes, "%+v", row)
			require.Equal(t, row.n+1, o.over)
			want := []byte{0, 0}
			for i := range row.n {
				want = append(want, bytes.Repeat([]byte{byte(i)}, 1+row.size)...)
			}
			require.True(t, bytes.Equal(want, p.taken), "%+v", row)
		}
	})
}

// finish lets everything leave that was taken in, and takes nothing more in.
func TestOutboxFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{})}
		o := newTestOutbox(p)
		o.offer(batchOf(&o.outbox, message(1, 100)))
		o.answer(message(2, 100))
		o.answer(message(3, 100))
		synctest.Wait()
		finished := make(chan struct{})
		go func() {
			o.finish()
			close(finished)
		}()
		synctest.Wait()
		o.answer(message(4, 100))
		o.offer(batchOf(&o.outbox, message(4, 100)))
		synctest.Wait()
		require.Equal(t, 1, o.isOver(), "the one that came too late")
		select {
		case <-finished:
			t.Fatal("finished with replies on their way")
		default:
		}
		close(p.wait)
		<-finished
		o.wg.Wait()
		require.Len(t, p.taken, 300)
		require.Equal(t, 3, o.over)
	})
}

// When the stream fails, what has not left is done all the same.
func TestOutboxFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{})}
		o := newTestOutbox(p)
		for range messageParts {
			o.answer(message(1, 100))
		}
		synctest.Wait()
		o.offer(batchOf(&o.outbox, message(1, 100)))
		p.fail = errors.New("broken")
		close(p.wait)
		o.wg.Wait()
		require.Equal(t, []error{p.fail}, o.errs)
		require.Equal(t, messageParts, o.over)
		o.answer(message(1, 100))
		o.finish()
		o.wg.Wait()
		require.Equal(t, messageParts+1, o.over)
		require.Len(t, o.errs, 1)
	})
}

// Only a write that does not end is too late.
func TestOutboxClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{}
		o := newTestOutbox(p)
		late := 0
		o.late = func() {
			late++
			close(p.wait)
		}
		for range 2 { // the second time the clock is there already
			o.put(&request{reply: message(1, 100)})
			time.Sleep(time.Hour)
			require.Zero(t, late)
		}
		p.wait = make(chan struct{})
		start := time.Now()
		o.put(&request{reply: message(1, 100)})
		require.Equal(t, time.Minute, time.Since(start))
		require.Equal(t, 1, late)
	})
}

func TestAdvance(t *testing.T) {
	parts := func() [][]byte { return [][]byte{{1, 2}, nil, {3}, {4, 5, 6}} }
	for n, want := range []string{"1 2 3 4 5 6", "2 3 4 5 6", "3 4 5 6", "4 5 6", "5 6", "6", ""} {
		var got []string
		for _, p := range advance(parts(), n) {
			for _, c := range p {
				got = append(got, fmt.Sprint(c))
			}
		}
		require.Equal(t, want, strings.Join(got, " "))
	}
	require.Empty(t, advance(parts(), 6))
}

// A session that ends waits for the replies on their way before it says so.
func TestSessionEndsAfterItsReplies(t *testing.T) {
	for name, end := range map[string]func(*session){
		"hang up": (*session).hangUp, "DISC": func(s *session) { s.disconnect(errDisconnect) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				srv := NewServer(Options{})
				p := &pipeEnd{wait: make(chan struct{}), closed: make(chan struct{})}
				s := newSession(srv, nil, nil, srv.opts.Logger, terms{})
				s.stream, s.out.to, s.in = p, p, newInbox(p, &srv.buffers, nil)
				s.out.offer(batchOf(&s.out, message(1, 1000)))
				synctest.Wait()
				ended := make(chan struct{})
				go func() {
					end(s)
					close(ended)
				}()
				synctest.Wait()
				close(p.wait)
				<-ended
				time.Sleep(time.Minute) // what lingers
				s.kill(errGone)
				s.wg.Wait()
				require.Len(t, p.taken, 1000)
				require.Equal(t, 1000, p.ended[0])
			})
		})
	}
}

// takenOver is a stream that another one takes the place of while it is being ended.
type takenOver struct {
	*pipeEnd
	over func()
}

func (k takenOver) CloseWrite() error {
	k.over()
	return net.ErrClosed
}

// A drain may come when the handshake has ended, and the stream of the transmission takes
// the place of the handshake's: that one is ended then.
func TestHangUpWhileTakenOver(t *testing.T) {
	srv := NewServer(Options{})
	p := &pipeEnd{closed: make(chan struct{})}
	s := newSession(srv, nil, nil, srv.opts.Logger, terms{})
	s.stream = takenOver{&pipeEnd{closed: make(chan struct{})}, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stream = p
	}}
	s.hangUp()
	select {
	case <-p.closed:
	default:
		t.Fatal("the client is never told")
	}
}

// A client that sends before it reads is read from, also when its replies fill
// the socket: whoever waits for the other would wait for ever.
func TestClientThatSendsBeforeItReads(t *testing.T) {
	for _, kind := range streamKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const n, size = 60, inlineBytesMax
			d := newMemDevice(1 << 20)
			r := serveOver(t, kind, NewServer(Options{}), Export{Device: d}).transmission(t, false)
			var requests []requestHeader
			for i := range uint64(n) { // 60 x 64 KiB each way, more than the sockets take
				requests = append(requests,
					requestHeader{cmd: cmdRead, cookie: 2 * i, length: size}, requestHeader{cmd: cmdWrite, cookie: 2*i + 1, length: size})
			}
			for _, h := range requests {
				r.send(append(h.append(nil), make([]byte, h.payload())...))
			}
			r.answers(requests, func(_ requestHeader, e Errno, _ []byte) { require.Zero(t, e) })
		})
	}
}

// A client that asks for a little and never reads makes the server keep no more
// than its budget and the batches on their way, harms nobody, and is thrown out.
func TestClientThatDoesNotReadSmallReplies(t *testing.T) {
	for _, kind := range streamKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const size = 4096
			d := newMemDevice(1 << 20)
			ts := serveOver(t, kind, NewServer(Options{WriteTimeout: time.Second}), Export{Device: d})
			other := ts.dial(t, ClientOptions{})
			r := ts.transmission(t, false)
			go func() { // until the server hangs up
				b := requestHeader{cmd: cmdRead, length: size}.append(nil)
				for {
					if _, err := r.conn.Write(b); err != nil {
						return
					}
				}
			}()
			eventually(t, "stuck", func() bool {
				n := d.seen("read")
				time.Sleep(50 * time.Millisecond) // long enough for the next, if there is one
				return n > 0 && n == d.seen("read")
			})
			for range 10 {
				require.NoError(t, other.ReadAt(t.Context(), make([]byte, size), 0, 0))
			}
			const sockets = 16 << 20 // both ends, at most
			require.LessOrEqual(t, d.seen("read"), 10+inFlightMax+(4*batchBytes+sockets)/size)
			eventually(t, "thrown out", func() bool { return ts.Stats().Connections == 1 })
		})
	}
}

// What was answered before the end of the connection arrives, however slowly the
// client reads it.
func TestLastRepliesArrive(t *testing.T) {
	for _, kind := range streamKinds {
		for _, how := range []string{"DISC", "shutdown"} {
			t.Run(kind+"/"+how, func(t *testing.T) {
				t.Parallel()
				const n, size = 40, inlineBytesMax
				d := newMemDevice(1 << 20)
				ts := serveOver(t, kind, NewServer(Options{}), Export{Device: d})
				r := ts.transmission(t, false)
				var requests []requestHeader
				for i := range uint64(n) {
					h := requestHeader{cmd: cmdRead, cookie: i, length: size}
					requests = append(requests, h)
					r.send(h.append(nil))
				}
				eventually(t, "all executed", func() bool { return d.seen("read") == n })
				stopped := make(chan error, 1)
				if how == "DISC" {
					r.send(requestHeader{cmd: cmdDisc}.append(nil))
					stopped <- nil
				} else {
					go func() { stopped <- ts.RemoveExport(context.Background(), "") }()
				}
				r.answers(requests, func(_ requestHeader, e Errno, _ []byte) { require.Zero(t, e) })
				r.closed()
				require.NoError(t, <-stopped)
			})
		}
	}
}

// A request that is still arriving does not delay a shutdown, whether or not it
// will be executed inline.
func TestShutdownDoesNotWaitForHalfALargePayload(t *testing.T) {
	t.Parallel()
	ts := serve(t, Options{}, Export{Device: newMemDevice(1 << 20)})
	r := ts.transmission(t, false)
	r.send(requestHeader{cmd: cmdWrite, length: inlineBytesMax + 1}.append(nil))
	r.zeroes(100)
	eventually(t, "being received", func() bool { return ts.Stats().Requests.Write == 1 })
	require.NoError(t, ts.RemoveExport(t.Context(), ""))
	r.closed()
	require.EqualValues(t, 100, ts.Stats().BytesIn)
}

// What comes after a drain has begun is refused, also if it could be executed
// inline.
func TestDrainRefusesInline(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.inline = func(_ string, off, _ int64) error {
		if off > 0 {
			return block.ErrWouldBlock
		}
		return nil
	}
	d.late = func(string, int64) { <-gate }
	ts := serve(t, Options{}, Export{Device: d})
	r := ts.transmission(t, false)
	slow := requestHeader{cmd: cmdRead, cookie: 1, offset: 512, length: 512}
	r.send(slow.append(nil))
	eventually(t, "in progress", func() bool { _, n := d.inlined(); return n == 1 })
	stopped := make(chan error, 1)
	go func() { stopped <- ts.RemoveExport(context.Background(), "") }()
	h := requestHeader{cmd: cmdRead, cookie: 2, length: 512}
	eventually(t, "draining", func() bool {
		r.send(h.append(nil))
		b := r.read(simpleBytes)
		if Errno(be.Uint32(b[4:])) == ESHUTDOWN {
			return true
		}
		r.read(int(h.length))
		return false
	})
	n := d.seen("read")
	r.ask(h, nil, ESHUTDOWN)
	require.Equal(t, n, d.seen("read"))
	close(gate)
	r.expect(slow, 0)
	r.closed()
	require.NoError(t, <-stopped)
}

// With a budget that is full the replies of the batch leave all the same.
func TestRepliesLeaveBeforeTheBudget(t *testing.T) {
	d := newMemDevice(1 << 20)
	gate := make(chan struct{})
	d.inline = func(_ string, off, _ int64) error {
		if off > 0 {
			return block.ErrWouldBlock
		}
		return nil
	}
	d.late = func(_ string, off int64) {
		if off > 0 {
			<-gate
		}
	}
	r := serve(t, Options{}, Export{Device: d}).transmission(t, false)
	var b []byte
	h := requestHeader{cmd: cmdRead, cookie: 7, length: 512}
	b = h.append(b)
	var blocked []requestHeader
	for i := range uint64(inFlightMax + 1) {
		x := requestHeader{cmd: cmdRead, cookie: 100 + i, offset: 512, length: 512}
		blocked = append(blocked, x)
		b = x.append(b)
	}
	r.send(b)
	r.expect(h, 0)
	close(gate)
	r.answers(blocked, func(_ requestHeader, e Errno, _ []byte) { require.Zero(t, e) })
}
