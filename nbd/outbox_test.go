package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
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

func (p *pipeEnd) take(limit int, header, payload []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return 0, p.fail
	}
	p.writes++
	all := append(append([]byte(nil), header...), payload...)
	n := min(limit, len(all))
	p.taken = append(p.taken, all[:n]...)
	return n, nil
}

func (p *pipeEnd) writeNow(header, payload []byte) (int, error) {
	return p.take(p.room, header, payload)
}

func (p *pipeEnd) write(header, payload []byte) error {
	if p.writing != nil {
		p.writing()
	}
	if p.wait != nil {
		<-p.wait
	}
	_, err := p.take(len(header)+len(payload), header, payload)
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

func newTestOutbox(p *pipeEnd) (*outbox, *sync.WaitGroup, *[]error) {
	var wg sync.WaitGroup
	var errs []error
	o := &outbox{
		to: p, pool: &buffers{}, allowed: func(int) time.Duration { return time.Minute },
		late: func() {}, broken: func(err error) { errs = append(errs, err) }, later: func(f func()) { wg.Go(f) },
	}
	o.changed.L = &o.mu
	return o, &wg, &errs
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
		o, wg, errs := newTestOutbox(p)
		const posters, each = 8, 50
		sent := map[byte]int{}
		for id := range byte(posters) {
			sent[id] = each
			rng := rand.New(rand.NewPCG(seed, round<<8|uint64(id)))
			wg.Go(func() {
				for range each {
					m := message(id, 3+rng.IntN(postBytesMax-2))
					if rng.IntN(4) == 0 {
						o.send(m[:2], m[2:])
					} else {
						o.post(m)
					}
				}
			})
		}
		for range each {
			if o.full.Load() {
				continue
			}
			m := message(posters, 3+rng.IntN(10000))
			o.offer(batchOf(o, m))
			sent[posters]++
		}
		wg.Wait()
		o.finish()
		require.Empty(t, *errs)
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

// While somebody writes, what others answer collects and leaves in one write.
func TestRepliesAreCoalesced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{})}
		o, wg, _ := newTestOutbox(p)
		for range 100 {
			wg.Go(func() { o.post(message(1, simpleBytes)) })
		}
		synctest.Wait() // the first one writes
		o.offer(batchOf(o, message(2, 64)))
		require.True(t, o.full.Load())
		close(p.wait)
		wg.Wait()
		require.False(t, o.full.Load())
		require.Len(t, p.taken, 100*simpleBytes+64)
		require.Equal(t, 3, p.writes, "one that did not go, the first message, all others")
	})
}

// Long replies wait for their turn, and what waits when they get it goes first:
// nobody starves.
func TestOutboxIsFair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{}, 100)}
		o, wg, _ := newTestOutbox(p)
		send := func(id byte) {
			wg.Go(func() { o.send(message(id, 100), nil) })
			synctest.Wait()
		}
		send(1)
		send(2)
		o.post(message(3, 100))
		send(4)
		o.offer(batchOf(o, message(5, 100)))
		close(p.wait)
		wg.Wait()
		var order []byte
		for b := p.taken; len(b) > 0; b = b[100:] {
			order = append(order, b[50])
		}
		require.Equal(t, []byte{1, 3, 5}, order[:3])
		require.ElementsMatch(t, []byte{2, 4}, order[3:])
	})
}

// Who waits for a turn gets it, however much comes in the meantime, and nobody
// goes before him.
func TestOutboxGivesTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{})}
		o, wg, _ := newTestOutbox(p)
		posts := 0
		p.writing = func() {
			if posts++; posts < 20 {
				o.post(message(1, 100))
			}
		}
		wg.Go(func() { o.post(message(1, 100)) })
		synctest.Wait()
		wg.Go(func() { o.send(message(2, 100), nil) })
		synctest.Wait()
		close(p.wait)
		wg.Wait()
		require.Contains(t, string(p.taken[:400]), string(message(2, 100)))

		o, _, _ = newTestOutbox(p)
		o.waiting = 1 // about to take the turn
		before := len(p.taken)
		o.post(message(3, 100))
		o.offer(batchOf(o, message(3, 100)))
		require.Len(t, p.taken, before)
	})
}

// Only a write that does not end is too late.
func TestOutboxClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{}
		o, wg, _ := newTestOutbox(p)
		late := 0
		o.late = func() {
			late++
			close(p.wait)
		}
		for range 2 { // the second time the clock is there already
			o.post(message(1, 100))
			time.Sleep(time.Hour)
			require.Zero(t, late)
		}
		p.wait = make(chan struct{})
		start := time.Now()
		o.post(message(1, 100))
		require.Equal(t, time.Minute, time.Since(start))
		require.Equal(t, 1, late)
		wg.Wait()
	})
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

// The queue is bounded: who answers waits for room, and no longer when it ends.
func TestOutboxQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{})}
		o, wg, _ := newTestOutbox(p)
		for range 4 * queueBytes / simpleBytes {
			wg.Go(func() { o.post(message(1, simpleBytes)) })
		}
		synctest.Wait()
		require.Len(t, o.queue, queueBytes)
		p.wait <- struct{}{} // the first one has been written, the queue is on its way
		synctest.Wait()
		require.Len(t, o.queue, queueBytes, "there is room again")
		o.close()
		close(p.wait)
		wg.Wait()
		require.Less(t, len(p.taken), 4*queueBytes)
	})
}

// finish lets everything leave that was taken in, and takes nothing more in.
func TestOutboxFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pipeEnd{wait: make(chan struct{})}
		o, wg, _ := newTestOutbox(p)
		o.offer(batchOf(o, message(1, 100)))
		wg.Go(func() { o.post(message(2, 100)) })
		wg.Go(func() { o.send(message(3, 100), nil) })
		synctest.Wait()
		finished := make(chan struct{})
		go func() {
			o.finish()
			close(finished)
		}()
		synctest.Wait()
		o.post(message(4, 100))
		o.send(message(4, 100), nil)
		o.offer(batchOf(o, message(4, 100)))
		select {
		case <-finished:
			t.Fatal("finished with replies on their way")
		default:
		}
		close(p.wait)
		<-finished
		wg.Wait()
		require.Len(t, p.taken, 300)
	})
}

func TestOutboxFails(t *testing.T) {
	p := &pipeEnd{fail: errors.New("broken")}
	o, wg, errs := newTestOutbox(p)
	o.post(message(1, 100))
	o.offer(batchOf(o, message(1, 100)))
	o.send(message(1, 100), nil)
	wg.Wait()
	require.Equal(t, []error{p.fail}, *errs)
	o.finish()
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
