//go:build linux

package fusefs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A crew are the goroutines that read requests from /dev/fuse. Each of them executes
// what it has read, and answers it, before it reads again.
//
// Who executes a request that may wait leaves the crew for that time, and sees to it
// that somebody reads; so the crew grows to as many as are of use, up to wanted.
// A write that the Device does at once is executed without leaving. Such writes to
// one file are done one after another in the host's file, whoever does them, and a
// second reader would only wait for its lock and be woken for every request: so
// who has done a run of them leaves for good if he is not the only one.
type crew struct {
	fd     int // blocking; closed when the last of the crew has ended
	server *server
	cold   *fuse.ProtocolServer // for what is not read, write or fsync
	log    *slog.Logger
	wanted int // how many are to read at a time
	most   int // members
	bytes  int // of the largest request, without its header

	readers sync.Pool // of *reader, none of which is in the crew
	replies sync.Pool // of *[]byte, for what go-fuse answers

	ended chan struct{} // closed when the connection has ended, and the crew

	mu      sync.Mutex // guards what follows; a leaf
	members int
	reading int // those of them that have not left
}

func newCrew(fd int, s *server, cold *fuse.ProtocolServer, log *slog.Logger, most, bytes int) *crew {
	c := &crew{
		fd: fd, server: s, cold: cold, log: log, bytes: max(bytes, fuseReadMin),
		wanted: min(max(runtime.GOMAXPROCS(0), 2), wantedMax), most: most, ended: make(chan struct{}),
	}
	c.readers.New = func() any { return newReader(c) }
	c.replies.New = func() any { b := make([]byte, coldReplyBytes+bytes); return &b }
	return c
}

// start begins to serve.
func (c *crew) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.addLocked()
}

func (c *crew) addLocked() {
	c.members++
	c.reading++
	go c.readers.Get().(*reader).loop() //nolint:errcheck,forcetypeassert // nothing else is put in
}

// leave is called by a reader before it waits for anything but a request. If
// it was the last one that read, another one does from now on.
func (c *crew) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading--; c.reading == 0 && c.members < c.most {
		c.addLocked()
	}
}

// rejoin is called by a reader that had left. It reports whether it is still wanted.
func (c *crew) rejoin() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading >= c.wanted {
		c.members--
		return false
	}
	c.reading++
	return true
}

// retire is called by a reader that would rather not be beside others. It reports
// whether it is the only one, and has to go on.
func (c *crew) retire() (goOn bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading == 1 {
		return true
	}
	c.reading--
	c.members--
	return false
}

// end is called by a reader that has seen the end of the connection.
func (c *crew) end() {
	c.server.requests.abort()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading--
	if c.members--; c.members == 0 {
		_ = unix.Close(c.fd)
		close(c.ended)
	}
}

// A reader is one of a crew, with the memory for a request.
type reader struct {
	crew *crew
	// memory has the data of a read or write at dataAt, which is aligned to a page
	// for direct I/O; before it the header of the request or, when there is no need
	// of that any more, of the reply.
	memory []byte
	reply  [writtenBytes]byte
	away   bool  // it has left the crew
	last   *file // of its last write
	run    int   // how many writes to last it has done at once, one after another
}

// dataAt is a page, so that there is room for the header.
const dataAt = 4096

func newReader(c *crew) *reader {
	memory := make([]byte, 2*dataAt+c.bytes)
	skip := -int(uintptr(unsafe.Pointer(&memory[0]))) & (dataAt - 1)
	return &reader{crew: c, memory: memory[skip:][:dataAt+c.bytes]}
}

// standby lets somebody else read, because the request may wait.
func (r *reader) standby() {
	r.run = 0
	if !r.away {
		r.away = true
		r.crew.leave()
	}
}

// follows notes a write to f, and reports whether the one before was to f as well.
func (r *reader) follows(f *file) bool {
	same := r.last == f
	r.last = f
	r.run++
	return same
}

// loop serves until the connection ends, or the reader is not needed.
func (r *reader) loop() {
	for goOn := true; goOn; {
		in, err := r.next()
		if err != nil {
			r.crew.end()
			return
		}
		r.serve(in)
		switch {
		case r.away:
			r.away = false
			goOn = r.crew.rejoin()
		case r.run >= runMax:
			r.run = 0
			goOn = r.crew.retire()
		}
	}
	r.crew.readers.Put(r)
}

// next waits for a request.
func (r *reader) next() ([]byte, error) {
	in := r.memory[dataAt-transferBytes:]
	for {
		n, err := unix.Read(r.crew.fd, in)
		switch {
		case err == nil:
			return in[:n], nil
		case errors.Is(err, unix.ENODEV): // unmounted, or aborted
			return nil, err
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAGAIN): // ENOENT: it was withdrawn
			r.crew.log.Error("reading requests", "error", err)
			return nil, err
		}
	}
}

// greet answers the first request, with what both sides are able to do.
func (r *reader) greet() error {
	in, err := r.next()
	if err != nil {
		return err
	}
	h, ok := parseHeader(in)
	if !ok || h.op != opInit {
		return fmt.Errorf("expected a first request of operation %d, found %d of %d bytes", opInit, h.op, len(in))
	}
	out := make([]byte, coldReplyBytes)
	n, st := r.crew.cold.HandleRequest([][]byte{in}, [][]byte{out})
	if st.Ok() && n >= replyBytes {
		st = statusOf(out)
	}
	if !st.Ok() {
		return fmt.Errorf("the first request: %s", st)
	}
	_, err = unix.Write(r.crew.fd, out[:n])
	return os.NewSyscallError("write", err)
}
