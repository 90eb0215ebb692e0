package lvm

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is about many transfers at a time. A thread that waits in pwrite for a
// device keeps its processor for a while, and is woken for one transfer; so a disk with
// many requests in flight had two at the device. What comes while others are in flight
// goes to the kernel's queue for direct I/O instead (io_submit(2)), together with what
// comes at the same time, and one thread of the process waits for all of them. A
// transfer that is alone is faster without.
//
// A write may also be begun, and be nobody's who waits (later.go): then the thread that
// waits for all of them tells that it has ended, and what is told must not wait for it.
//
// Where the kernel has no such queue, or it is full, everything is as without it.

// queueDepth is how many transfers may be in a queue. More of them wait in pwrite.
const queueDepth = 256

// A queue is one for the whole process: an idle volume has no thread.
type queue struct {
	context  uintptr
	all      []transfer
	inFlight atomic.Int64 // transfers of the process, in the queue or not

	mu      sync.Mutex
	free    []*transfer
	waiting []*transfer // for the one who submits
	leading bool        // there is one
	lead    func()      // submit, for a goroutine

	// Of the one who submits.
	taken  []*transfer
	blocks [64]*ioBlock
}

// A transfer is a place in the queue.
type transfer struct {
	block ioBlock
	p     []byte        // what block.buffer points to; it stays where it is, on the heap
	n     int64         // bytes that were transferred, or a negative errno
	alone bool          // it was not submitted: do it without the queue
	run   func(uintptr) // with a descriptor: waits until the transfer is done
	done  chan struct{}
	begin func(uintptr) // with a descriptor: does not wait, for later is told
	later *laterWrite   // nil: who runs it waits for done
}

// An ioBlock is the kernel's struct iocb, without what is always zero.
type ioBlock struct {
	data   uint64
	_      uint32 // key
	_      int32  // flags
	opcode uint16
	_      int16 // priority
	fd     uint32
	buffer uint64
	size   uint64
	offset int64
	_      uint64
	_      uint32
	_      uint32
}

// An ioEvent is the kernel's struct io_event.
type ioEvent struct {
	data   uint64 // of the ioBlock
	_      uint64
	result int64
	_      int64
}

const (
	opRead  = 0 // IOCB_CMD_PREAD
	opWrite = 1 // IOCB_CMD_PWRITE
)

// theQueue is made when it is needed first; nil: the kernel has none.
var theQueue = sync.OnceValue(func() *queue {
	q := &queue{}
	q.lead = q.submit
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, queueDepth, uintptr(unsafe.Pointer(&q.context)), 0); errno != 0 {
		return nil
	}
	q.all = make([]transfer, queueDepth)
	for i := range q.all {
		t := &q.all[i]
		t.block.data = uint64(i)
		t.done = make(chan struct{}, 1)
		t.run = func(fd uintptr) { q.run(t, fd) }
		t.begin = func(fd uintptr) {
			if q.enter(t, fd) {
				go q.lead()
			}
		}
		q.free = append(q.free, t)
	}
	go q.reap()
	return q
})

// take returns a place for a transfer of p; nil: there is none.
func (q *queue) take(opcode uint16, p []byte, off int64) *transfer {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.free) == 0 {
		return nil
	}
	t := q.free[len(q.free)-1]
	q.free = q.free[:len(q.free)-1]
	t.p, t.n, t.alone = p, 0, false
	t.block.opcode = opcode
	t.block.buffer, t.block.size, t.block.offset = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))), uint64(len(p)), off
	return t
}

// run lets a transfer be done. Whoever comes first submits what the others bring as
// well.
func (q *queue) run(t *transfer, fd uintptr) {
	if q.enter(t, fd) {
		runtime.Gosched() // whoever is about to ask comes along
		q.submit()
	}
	<-t.done
	q.inFlight.Add(-1)
}

// begin lets p be written, and tells w when that has ended. It reports whether it has
// begun. Those that are begun one after the other are submitted together, by somebody
// who has his turn when the caller waits.
func (q *queue) begin(d *device, p []byte, off int64, w *laterWrite) bool {
	t := q.take(opWrite, p, off)
	if t == nil {
		return false
	}
	t.later = w
	if d.raw.Control(t.begin) == nil {
		return true
	}
	t.later = nil
	_, _ = q.giveBack(t)
	return false
}

// enter adds a transfer to those that are to be submitted, and reports whether the
// caller has to see to that.
func (q *queue) enter(t *transfer, fd uintptr) (lead bool) {
	q.inFlight.Add(1)
	t.block.fd = uint32(fd)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.waiting = append(q.waiting, t)
	lead = !q.leading
	q.leading = true
	return lead
}

// giveBack ends the use of a place, and returns what became of the transfer: how many
// bytes were transferred, all of them if the queue was used.
func (q *queue) giveBack(t *transfer) (n int, err error) {
	if t.n < 0 {
		err = unix.Errno(-t.n)
	} else if !t.alone {
		n = int(t.n)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	t.p = nil
	q.free = append(q.free, t)
	return n, err
}

// submit gives the kernel what is waiting, until nothing is. A transfer that it does
// not take is done without the queue, and so is one that nothing else is in flight
// beside, if somebody waits for it.
func (q *queue) submit() {
	for {
		q.mu.Lock()
		if len(q.waiting) == 0 {
			q.leading = false
			q.mu.Unlock()
			return
		}
		q.taken, q.waiting = q.waiting, q.taken[:0]
		rest := q.taken
		alone := len(rest) == 1 && q.inFlight.Load() == 1 && rest[0].later == nil
		q.mu.Unlock()
		if !alone {
			rest = q.give(rest)
		}
		for _, t := range rest {
			t.alone = true
			q.over(t)
		}
	}
}

// give submits a list and returns what the kernel did not take.
func (q *queue) give(list []*transfer) []*transfer {
	for len(list) > 0 {
		n := min(len(list), len(q.blocks))
		for i, t := range list[:n] {
			q.blocks[i] = &t.block
		}
		taken, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, q.context, uintptr(n), uintptr(unsafe.Pointer(&q.blocks)))
		switch {
		case errno == unix.EINTR:
		case errno != 0 || taken == 0:
			return list
		default:
			list = list[taken:]
		}
	}
	return nil
}

// reap waits for transfers to end, for as long as the process lives.
func (q *queue) reap() {
	var events [64]ioEvent
	for {
		n, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.context, 1, uintptr(len(events)), uintptr(unsafe.Pointer(&events)), 0, 0)
		if errno != 0 && errno != unix.EINTR {
			panic(fmt.Sprintf("lvm: waiting for direct I/O: %v", errno)) // the queue is ours alone, and is never destroyed
		}
		if errno != 0 {
			continue
		}
		q.end(events[:n])
		// A thread that waits in the kernel keeps its processor for a while, and with it
		// those who were just woken.
		runtime.Gosched()
	}
}

// end notes what became of transfers. The lock is for the memory model, which does not
// know that the kernel comes between submitting and this.
func (q *queue) end(events []ioEvent) {
	q.mu.Lock()
	for _, e := range events {
		q.all[e.data].n = e.result
	}
	q.mu.Unlock()
	for _, e := range events {
		q.over(&q.all[e.data])
	}
}

// over tells who waits for a transfer, or was promised to be told.
func (q *queue) over(t *transfer) {
	w := t.later
	if w == nil {
		t.done <- struct{}{}
		return
	}
	ok := !t.alone && t.n == int64(len(t.p)) // otherwise the caller finds out
	t.later = nil
	q.inFlight.Add(-1)
	_, _ = q.giveBack(t)
	w.ended(ok)
}
