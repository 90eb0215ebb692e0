package nbd

import (
	"math/bits"
	"sync"
)

// buffers is a pool of payload buffers, by powers of two. The smallest is 4 KiB;
// Go aligns allocations of these sizes to at least 4 KiB, which is what direct
// I/O below wants. The content of a buffer is whatever was there before.
type buffers struct {
	classes [bufferClasses]sync.Pool
}

const (
	bufferBitsMin = 12
	bufferBitsMax = 25 // payloadBytesMax
	bufferClasses = bufferBitsMax - bufferBitsMin + 1
)

// buffer is a slice that knows where it belongs.
type buffer struct {
	data  []byte // as long as was asked for
	class int
}

// get returns a buffer of n bytes, n <= payloadBytesMax.
func (p *buffers) get(n int) *buffer {
	class := bufferClass(n)
	b, ok := p.classes[class].Get().(*buffer)
	if !ok {
		b = &buffer{data: make([]byte, 1<<(class+bufferBitsMin)), class: class}
	}
	b.data = b.data[:n]
	return b
}

// put gives a buffer back; nil is nothing.
func (p *buffers) put(b *buffer) {
	if b != nil {
		p.classes[b.class].Put(b)
	}
}

// bufferSize is the memory that a buffer of n bytes takes.
func bufferSize(n int) int {
	if n == 0 {
		return 0
	}
	return 1 << (bufferClass(n) + bufferBitsMin)
}

func bufferClass(n int) int {
	return max(bits.Len(uint(max(n, 1)-1)), bufferBitsMin) - bufferBitsMin
}
