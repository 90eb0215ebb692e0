//go:build linux

package fusefs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// serve executes a request and answers it.
func (r *reader) serve(in []byte) {
	h, ok := parseHeader(in)
	if !ok {
		r.crew.log.Error("no request", "bytes", len(in))
		return
	}
	switch h.op {
	case opRead:
		r.read(h, in)
	case opWrite:
		r.write(h, in)
	case opFsync:
		r.answer(h, r.crew.server.fsync(h, r))
	case opInterrupt:
		r.interrupt(h, in)
	default:
		r.delegate(h, in)
	}
}

// read reads to where the data is in the reply.
func (r *reader) read(h header, in []byte) {
	t, ok := parseTransfer(in)
	if !ok || int64(t.size) > int64(r.crew.bytes) {
		r.answer(h, fuse.EINVAL)
		return
	}
	n, st := r.crew.server.read(h, t, r.memory[dataAt:][:t.size], r)
	if !st.Ok() {
		r.answer(h, st)
		return
	}
	out := r.memory[dataAt-replyBytes:][:replyBytes+n]
	putReply(out, h.unique, fuse.OK)
	r.send(h, out)
}

func (r *reader) write(h header, in []byte) {
	t, ok := parseTransfer(in)
	if !ok || int64(t.size) > int64(len(in)-transferBytes) {
		r.answer(h, fuse.EINVAL)
		return
	}
	n, st := r.crew.server.write(h, t, in[transferBytes:][:t.size], r)
	if !st.Ok() {
		r.answer(h, st)
		return
	}
	putWritten(r.reply[:], h.unique, n)
	r.send(h, r.reply[:])
}

// interrupt is how the kernel tells that the caller of a request has got a signal.
// It asks again while the request is not found, until it was answered.
func (r *reader) interrupt(h header, in []byte) {
	unique, ok := parseInterrupt(in)
	if !ok || !r.crew.server.requests.interrupt(unique) {
		r.answer(h, fuse.EAGAIN)
	}
}

// delegate lets go-fuse execute a request.
func (r *reader) delegate(h header, in []byte) {
	r.standby()
	out := r.crew.replies.Get().(*[]byte) //nolint:errcheck,forcetypeassert // nothing else is put in
	defer r.crew.replies.Put(out)
	n, st := r.crew.cold.HandleRequest([][]byte{in}, [][]byte{*out})
	switch {
	case !st.Ok():
		r.answer(h, st)
	case n > 0:
		r.send(h, (*out)[:n])
	}
}

// answer sends a reply that is no more than a status.
func (r *reader) answer(h header, st fuse.Status) {
	out := r.reply[:replyBytes]
	putReply(out, h.unique, st)
	r.send(h, out)
}

// send sends a reply. That the kernel does not know the request any more, or has
// ended the connection, is no error.
func (r *reader) send(h header, reply []byte) {
	if _, err := unix.Write(r.crew.fd, reply); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		r.crew.log.Error("a reply was not accepted", "operation", h.op, "bytes", len(reply), "error", err)
	}
}
