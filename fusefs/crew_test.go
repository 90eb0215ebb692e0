//go:build linux

package fusefs

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/testenv"
)

// A fakeKernel stands for /dev/fuse: a socket that keeps the bounds of messages. Its
// reader is of no crew yet, and serves when it is told to.
type fakeKernel struct {
	fd      int
	reader  *reader
	request [transferBytes + 1<<20]byte
	reply   [1 << 20]byte
}

func newFakeKernel(t testing.TB, d block.Device) *fakeKernel {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	k := &fakeKernel{fd: pair[0]}
	require.NoError(t, unix.SetNonblock(k.fd, true))
	for _, fd := range pair {
		require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20))
		t.Cleanup(func() { _ = unix.Close(fd) })
	}
	s := newServer([]File{{Device: d}}, false, Options{}.withDefaults(), fuse.Owner{}, newRequests(func(uint32) bool { return false }))
	c := newCrew(pair[1], s, fuse.NewProtocolServer(s, &fuse.MountOptions{MaxWrite: 1 << 20}), slog.New(slog.DiscardHandler), 1, 1<<20)
	c.members, c.reading = 1, 1 // and most is 1: nobody reads by himself
	k.reader = newReader(c)
	return k
}

// serve has the reader serve one request, and returns the reply.
func (k *fakeKernel) serve(t testing.TB, request []byte) []byte {
	n := copy(k.reader.memory[dataAt-transferBytes:], request)
	k.reader.serve(k.reader.memory[dataAt-transferBytes:][:n])
	if k.reader.away {
		k.reader.away = false
		if !k.reader.crew.rejoin() {
			t.Fatal("the only reader is not wanted")
		}
	}
	n, err := unix.Read(k.fd, k.reply[:])
	if err != nil {
		return nil
	}
	return k.reply[:n]
}

// encodeTransfer fills b with a request to the root, which is the file.
func encodeTransfer(b []byte, op uint32, off int64, n int) []byte {
	size := transferBytes
	if op == opWrite {
		size += n
	}
	b = b[:size]
	clear(b[:transferBytes])
	binary.NativeEndian.PutUint32(b, uint32(size))
	binary.NativeEndian.PutUint32(b[4:], op)
	binary.NativeEndian.PutUint64(b[8:], 42)
	binary.NativeEndian.PutUint64(b[16:], fuse.FUSE_ROOT_ID)
	binary.NativeEndian.PutUint64(b[48:], uint64(off))
	binary.NativeEndian.PutUint32(b[56:], uint32(n))
	return b
}

// What the kernel is answered, byte for byte.
func TestReplies(t *testing.T) {
	d := blocktest.NewMemDevice(64 << 10)
	k := newFakeKernel(t, d)
	status := func(st fuse.Status) []byte {
		b := make([]byte, replyBytes)
		putReply(b, 42, st)
		return b
	}
	write := encodeTransfer(make([]byte, 1<<20), opWrite, 4096, 512)
	copy(write[transferBytes:], bytes.Repeat([]byte{7}, 512))
	want := make([]byte, writtenBytes)
	putWritten(want, 42, 512)
	for range 2 { // the first write to a file, and one that follows
		require.Equal(t, want, k.serve(t, write))
	}

	got := k.serve(t, encodeTransfer(k.request[:], opRead, 4096, 1024))
	require.Len(t, got, replyBytes+1024)
	require.Equal(t, append(bytes.Repeat([]byte{7}, 512), make([]byte, 512)...), got[replyBytes:])
	require.EqualValues(t, len(got), binary.NativeEndian.Uint32(got))
	require.Equal(t, fuse.OK, statusOf(got))
	require.Len(t, k.serve(t, encodeTransfer(k.request[:], opRead, 63<<10, 4096)), replyBytes+1024, "as much as there is")
	require.Len(t, k.serve(t, encodeTransfer(k.request[:], opRead, 1<<40, 4096)), replyBytes)
	require.Equal(t, status(fuse.OK), k.serve(t, encodeTransfer(k.request[:], opFsync, 0, 0)))
	require.Equal(t, status(statusTooBig), k.serve(t, encodeTransfer(k.request[:], opWrite, 64<<10, 512)))
}

// Whatever comes instead of a request, it is answered with an error if it has a
// name, and the reader goes on.
func TestMalformedRequests(t *testing.T) {
	k := newFakeKernel(t, blocktest.NewMemDevice(64<<10))
	status := func(st fuse.Status) []byte {
		b := make([]byte, replyBytes)
		putReply(b, 42, st)
		return b
	}
	resize := func(b []byte, n int) []byte {
		b = b[:n]
		binary.NativeEndian.PutUint32(b, uint32(n))
		return b
	}
	whole := func(op uint32) []byte { return encodeTransfer(make([]byte, transferBytes+4096), op, 0, 4096) }
	for name, c := range map[string]struct{ request, reply []byte }{
		"nothing":           {nil, nil},
		"half a header":     {make([]byte, headerBytes/2), nil},
		"another length":    {whole(opRead)[:headerBytes], nil},
		"a short read":      {resize(whole(opRead), headerBytes+8), status(fuse.EINVAL)},
		"a short write":     {resize(whole(opWrite), transferBytes-1), status(fuse.EINVAL)},
		"less data":         {resize(whole(opWrite), transferBytes+4095), status(fuse.EINVAL)},
		"too large a read":  {encodeTransfer(make([]byte, transferBytes), opRead, 0, 1<<20+1), status(fuse.EINVAL)},
		"a short interrupt": {resize(whole(opInterrupt), headerBytes), status(fuse.EAGAIN)},
		"an unknown one":    {whole(4000), status(fuse.ENOSYS)},
		"of no node":        {func() []byte { b := whole(opRead); b[16] = 9; return b }(), status(fuse.EISDIR)},
	} {
		got := k.serve(t, c.request)
		require.Equal(t, c.reply, append([]byte(nil), got...), name)
	}
	require.Equal(t, status(fuse.OK), k.serve(t, encodeTransfer(k.request[:], opFsync, 0, 0)))
}

// A signal to the caller reaches the request that it belongs to; one of which
// nothing is known is asked for again.
func TestInterruptRequest(t *testing.T) {
	k := newFakeKernel(t, blocktest.NewMemDevice(64<<10))
	interrupt := encodeTransfer(make([]byte, transferBytes), opInterrupt, 0, 0)
	binary.NativeEndian.PutUint64(interrupt[headerBytes:], 7)
	require.Equal(t, fuse.EAGAIN, statusOf(k.serve(t, interrupt)))
	r := k.reader.crew.server.requests.begin(7, 1)
	require.Nil(t, k.serve(t, interrupt), "it wants no answer")
	<-r.interrupted
}

// Small writes to one file are left to one reader, however many there were; reads
// bring the others back.
func TestCrewSize(t *testing.T) {
	d := newFakeDevice(1 << 20)
	fs, path := mountFile(t, File{Device: d}, Options{})
	fd := open(t, path, unix.O_RDWR)
	reading := func() int {
		fs.crew.mu.Lock()
		defer fs.crew.mu.Unlock()
		return fs.crew.reading
	}
	buf := make([]byte, 4096)
	for range 2 {
		for range 100 {
			_, err := unix.Pread(fd, buf, 0)
			require.NoError(t, err)
		}
		testenv.Eventually(t, closeLimit, "several read", func() bool { return reading() >= 2 })
		deadline := time.Now().Add(closeLimit)
		for reading() > 1 {
			_, err := unix.Pwrite(fd, buf, 0)
			require.NoError(t, err)
			require.Less(t, time.Now(), deadline, "%d read", reading())
		}
	}
}
