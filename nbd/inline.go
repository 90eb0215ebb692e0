package nbd

import (
	"errors"

	"tidemark/internal/block"
)

// This file executes requests on the reader, without waiting and without
// allocating.

// inline executes a valid request whose payload has arrived, and adds its reply.
// With done and failure both unset nothing was done: the off-load has to do it.
func (s *session) inline(h requestHeader, a action, payload []byte) (done bool, failure *Error) {
	switch h.cmd {
	case cmdRead:
		return s.inlineRead(h, a)
	case cmdWrite, cmdTrim, cmdWriteZeroes:
		return s.inlineChange(h, a, payload)
	}
	return false, nil
}

func (s *session) inlineChange(h requestHeader, a action, payload []byte) (done bool, failure *Error) {
	if !s.onePiece(len(payload)) || a.n > inlineEffectMax {
		return false, nil
	}
	room := s.room(doneBytes(s.terms))
	if room == nil {
		return false, nil
	}
	if a.n > 0 {
		if err := s.changeNow(h.cmd, a, payload); err != nil {
			return false, failureOf(h, err)
		}
	}
	appendDoneReply(room[:0], h, s.terms)
	s.replies.add(len(room))
	return true, nil
}

func (s *session) changeNow(c command, a action, payload []byte) error {
	d, f := s.export.Device, a.flags|block.NoWait
	switch c {
	case cmdWrite:
		return d.WriteAt(s.ctx, payload, a.off, f)
	case cmdTrim:
		return d.Discard(s.ctx, a.off, a.n, f)
	default:
		return d.WriteZeroes(s.ctx, a.off, a.n, f)
	}
}

// inlineRead reads to where the data is in the reply.
func (s *session) inlineRead(h requestHeader, a action) (done bool, failure *Error) {
	if a.n == 0 || a.n > inlineBytesMax || !s.onePiece(int(a.n)) {
		return false, nil
	}
	head := dataHeaderBytes(s.terms)
	room := s.room(head + int(a.n))
	if room == nil {
		return false, nil
	}
	if err := s.export.Device.ReadAt(s.ctx, room[head:], a.off, block.NoWait); err != nil {
		return false, failureOf(h, err)
	}
	appendDataHeader(room[:0], h, s.terms)
	s.replies.add(len(room))
	s.bytesOut += uint64(a.n)
	return true, nil
}

// failureOf is what an error of the Device means to the client; nil if it is that
// the request would have to wait.
func failureOf(h requestHeader, err error) *Error {
	if errors.Is(err, block.ErrWouldBlock) {
		return nil
	}
	return translate(h, err)
}

// refuse adds an error reply, and reports false if there is no room for it.
func (s *session) refuse(h requestHeader, e *Error) bool {
	b := appendErrorReply(nil, h, e, s.terms)
	room := s.room(len(b))
	if room == nil {
		return false
	}
	s.replies.add(copy(room, b))
	s.srv.counters.failures.Add(1)
	return true
}

// room returns the next n bytes of the batch's replies. If its buffer is full, it
// is offered first; nil if that has to wait.
func (s *session) room(n int) []byte {
	pool := &s.srv.buffers
	if b := s.replies.room(n, pool); b != nil {
		return b
	}
	s.offer()
	if s.out.full.Load() {
		return nil
	}
	return s.replies.room(n, pool)
}

// onePiece tells whether the Device takes n bytes in one call.
func (s *session) onePiece(n int) bool {
	m := s.export.maxTransfer
	return m == 0 || n <= m
}
