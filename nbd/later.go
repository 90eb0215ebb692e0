package nbd

import "tidemark/internal/block"

// This file is about writes that the Device has begun and nobody waits for.

// begin has the Device begin a write. It reports whether that is all that the caller has
// to do. One that is alone is left to a goroutine, which is told of its end sooner.
func (s *session) begin(rq *request) bool {
	a := rq.action
	if rq.header.cmd != cmdWrite || rq.failure != nil || a.n == 0 || a.flags.Has(block.FUA) || !s.onePiece(len(rq.buf.data)) || s.alone() {
		return false
	}
	s.wg.Add(1)
	var err error
	begun := s.beginOn(s.export.Device, rq, &err)
	switch {
	case err != nil: // a panic: nobody will be told
		rq.buf = nil // whoever the Device left behind may still use it
		s.kill(err)
		s.release(rq)
	case begun:
		s.started = true
		if s.begun++; s.begun == begunTogether {
			s.yield()
		}
		return true
	}
	s.wg.Done()
	return err != nil
}

func (s *session) beginOn(d block.Device, rq *request, err *error) bool {
	defer recoverTo(err, s.srv, s.log)
	return d.WriteLater(rq.buf.data, rq.action.off, rq)
}

// alone tells whether nothing else is in progress, or has arrived.
func (s *session) alone() bool { return s.budget.one() && len(s.in.unread()) == 0 }

// Ended is called by the Device when a write that it has begun has ended. One that is to
// be done again goes to the off-load, which may hold it, and has its error.
func (rq *request) Ended(ok bool) {
	s := rq.s
	if !ok {
		go rq.run()
		return
	}
	rq.reply = appendDoneReply(rq.head[:0], rq.header, s.terms)
	if s.out.add(rq) {
		s.wg.Add(1)
		go s.answer()
	}
	s.wg.Done()
}

// answerNow writes the replies to requests that have ended. Its caller has the turn.
func (s *session) answerNow() {
	defer s.wg.Done()
	var err error
	defer func() {
		if err != nil {
			s.kill(err)
		}
	}()
	defer recoverTo(&err, s.srv, s.log)
	s.out.answer()
}
