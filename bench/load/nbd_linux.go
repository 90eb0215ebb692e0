package load

import (
	"encoding/binary"
	"fmt"
)

// An nbdLine is a connection to an NBD server, and its memory.
type nbdLine struct {
	*conn
	job  Job
	out  []byte // requests to send: room for headerLen + Block for each in flight
	n    int    // bytes of them
	in   []byte
	have int // bytes of in that are not looked at yet
}

func newNBDLine(c *conn, j Job) *nbdLine {
	slot, reply := headerLen, replyLen
	switch j.Op {
	case Write:
		slot += j.Block
	case Read:
		reply += j.Block
	case Trim:
	}
	l := &nbdLine{conn: c, job: j, out: make([]byte, slot*j.Depth), in: make([]byte, reply*j.Depth)}
	for i := 0; j.Op == Write && i < j.Depth; i++ {
		fill(l.out[i*slot+headerLen:][:j.Block], j.Seed)
	}
	return l
}

var commandOf = [...]uint16{Write: cmdWrite, Read: cmdRead, Trim: cmdTrim}

func (l *nbdLine) add(cookie uint64, off int64) {
	putRequest(l.out[l.n:], commandOf[l.job.Op], cookie, off, l.job.Block)
	l.n += headerLen
	if l.job.Op == Write {
		stamp(l.out[l.n:][:l.job.Block], off, l.job.Seed)
		l.n += l.job.Block
	}
}

// send sends the batch with one system call.
func (l *nbdLine) send() error {
	err := l.write(l.out[:l.n])
	l.n = 0
	return err
}

func (l *nbdLine) receive(free []uint64) ([]uint64, error) {
	size := replyLen
	if l.job.Op == Read {
		size += l.job.Block
	}
	for l.have < size {
		n, err := l.readSome(l.in[l.have:])
		if err != nil {
			return free, err
		}
		l.have += n
	}
	at := 0
	for ; at+size <= l.have; at += size {
		cookie, err := l.reply(l.in[at:])
		if err != nil {
			return free, err
		}
		free = append(free, cookie)
	}
	l.have = copy(l.in, l.in[at:l.have])
	return free, nil
}

// reply checks the head of a simple reply.
func (l *nbdLine) reply(b []byte) (uint64, error) {
	cookie := binary.BigEndian.Uint64(b[8:])
	switch {
	case binary.BigEndian.Uint32(b) != magicSimple:
		return 0, fmt.Errorf("expected a simple reply, found % x", b[:replyLen])
	case binary.BigEndian.Uint32(b[4:]) != 0:
		return 0, fmt.Errorf("request failed with error %d", binary.BigEndian.Uint32(b[4:]))
	case cookie >= uint64(l.job.Depth):
		return 0, fmt.Errorf("reply to request %d, of %d", cookie, l.job.Depth)
	}
	return cookie, nil
}

func (l *nbdLine) flush() error {
	b := make([]byte, headerLen)
	putRequest(b, cmdFlush, 0, 0, 0)
	if err := l.write(b); err != nil {
		return err
	}
	if err := l.readFull(b[:replyLen]); err != nil {
		return err
	}
	_, err := l.reply(b)
	return err
}
