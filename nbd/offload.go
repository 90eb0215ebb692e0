package nbd

import "sync/atomic"

// offload has a request executed and answered in a goroutine of its own. Only the
// reader calls it.
func (s *session) offload(rq *request) {
	s.started = true
	s.wg.Add(1)
	go rq.run()
}

// takeRequest returns a request without content.
func (srv *Server) takeRequest() *request {
	if rq, ok := srv.requests.Get().(*request); ok {
		return rq
	}
	rq := &request{}
	rq.run = rq.work
	return rq
}

// work is the goroutine of a request. It goes on to send replies, its own and
// others', when nobody else does.
func (rq *request) work() {
	deepStack()
	s := rq.s
	defer s.wg.Done()
	var err error
	defer func() {
		if err != nil {
			s.kill(err)
		}
	}()
	defer recoverTo(&err, s.srv, s.log)
	if s.try(rq) {
		s.out.put(rq)
	}
}

// deepStack makes room for the stack of a request before there is anything on it: a new
// goroutine's is doubled and copied, frame by frame, each time that it is too small.
//
//go:noinline
func deepStack() byte {
	var room [stackBytes]byte
	return room[stackAt.Load()]
}

// stackBytes is about what a request needs in the engine and below it.
const stackBytes = 6 << 10

var stackAt atomic.Uint32 // 0, which the compiler does not know

// try executes a request, unless that ends in a panic.
func (s *session) try(rq *request) bool {
	var err error
	func() {
		defer recoverTo(&err, s.srv, s.log)
		s.serve(rq)
	}()
	if err == nil {
		return true
	}
	rq.buf = nil // whoever the Device left behind may still use it
	s.kill(err)
	s.release(rq)
	return false
}

// release gives back everything that a request has, when its reply has left. One that
// was given to the Device as a Hold is not used again: the Device may be late with its
// End.
func (s *session) release(rq *request) {
	if rq.space != nil {
		rq.space.free()
	}
	s.srv.buffers.put(rq.buf)
	s.mu.Lock()
	if rq.holds > 0 { // a Device that panicked, or forgot
		rq.holds = 0
		s.endHoldLocked(rq)
	}
	s.mu.Unlock()
	s.budget.release(rq.cost)
	if rq.working {
		s.finished()
	}
	if rq.space == nil {
		*rq = request{run: rq.run, extents: rq.extents}
		s.srv.requests.Put(rq)
	}
}

func (s *session) finished() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.working--; s.working == 0 {
		s.idle.Broadcast()
	}
}
