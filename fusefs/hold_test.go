//go:build linux

package fusefs

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// A fullDevice holds writes, as a thin volume does whose pool is full.
type fullDevice struct {
	*fakeDevice
	held  atomic.Int32
	freed chan struct{} // closed when there is space
}

func newFullDevice() *fullDevice {
	d := &fullDevice{fakeDevice: newFakeDevice(1 << 20), freed: make(chan struct{})}
	d.onCall(func(ctx context.Context, c call) error {
		if c.op != "write" {
			return nil
		}
		return d.space(ctx)
	})
	return d
}

func (d *fullDevice) space(ctx context.Context) error {
	select {
	case <-d.freed:
		return nil
	default:
	}
	hold := block.HoldOf(ctx)
	if err := hold.Begin(); err != nil {
		return err
	}
	defer hold.End()
	d.held.Add(1)
	defer d.held.Add(-1)
	select {
	case <-d.freed:
		return nil
	case <-ctx.Done():
		return block.SpaceError(ctx)
	}
}

func (d *fullDevice) awaitHeld(t testing.TB, n int32) {
	t.Helper()
	testenv.Eventually(t, closeLimit, "writes wait for space", func() bool { return d.held.Load() == n })
}

// ddWrite starts a process that writes one block.
func ddWrite(t testing.TB, path string) *testenv.Process {
	t.Helper()
	return testenv.Start(t, testenv.Command(t, "dd", "if=/dev/zero", "of="+path, "bs=4k", "count=1", "conv=notrunc"))
}

// Synchronous writes wait for space without an end. They keep the kernel's lock
// of their file, so that fsync and further writes to it wait too; reads and other
// files go on.
func TestHeldWrites(t *testing.T) {
	d := newFullDevice()
	_, dir := mountDir(t, []File{{Name: "full.raw", Device: d}, {Name: "other.raw", Device: newFakeDevice(1 << 20)}}, Options{})
	path := filepath.Join(dir, "full.raw")
	var writers []*testenv.Process
	for range 4 {
		writers = append(writers, ddWrite(t, path))
	}
	d.awaitHeld(t, 4)
	buf := make([]byte, 4096)
	_, err := unix.Pread(open(t, path, unix.O_RDWR), buf, 0)
	require.NoError(t, err)
	stat(t, path)
	other := open(t, filepath.Join(dir, "other.raw"), unix.O_RDWR)
	_, err = unix.Pwrite(other, buf, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Fsync(other))

	close(d.freed)
	for _, w := range writers {
		require.NoError(t, w.Wait(t, closeLimit), w.Output())
	}
}

// Asynchronous writes, such as a loop device's, keep no lock: everything else
// goes on, also what makes space. As many may wait as the file has places, and
// the other files keep theirs.
func TestHeldAsynchronousWrites(t *testing.T) {
	d := newFullDevice()
	_, dir := mountDir(t, []File{{Name: "full.raw", Device: d}, {Name: "other.raw", Device: newFakeDevice(1 << 20)}}, Options{})
	fd := open(t, filepath.Join(dir, "full.raw"), unix.O_RDWR|unix.O_DIRECT)
	other := open(t, filepath.Join(dir, "other.raw"), unix.O_RDWR|unix.O_DIRECT)
	ring := newAIO(t)
	for i := range backgroundPerFile {
		ring.write(fd, int64(i)*4096)
	}
	d.awaitHeld(t, backgroundPerFile)
	_, err := unix.Pread(fd, make([]byte, 4096), 0)
	require.NoError(t, err)
	require.NoError(t, unix.Fsync(fd))
	require.NoError(t, unix.Fallocate(fd, punch, 0, 4096))
	ring.write(other, 0)
	require.EqualValues(t, 4096, ring.wait(1)[0])
	close(d.freed)
	for _, n := range ring.wait(backgroundPerFile) {
		require.EqualValues(t, 4096, n)
	}
}

// What waits is bounded, so that no number of writers takes all memory: those that
// are too many wait in the kernel, and all are written when there is space.
func TestHeldWritesAreBounded(t *testing.T) {
	d := newFullDevice()
	_, path := mountFile(t, File{Device: d}, Options{})
	fd := open(t, path, unix.O_RDWR)
	const places, writers = backgroundPerFile + synchronous, 200
	results := make(chan error, writers)
	for i := range writers {
		go func() {
			_, err := unix.Pwrite(fd, make([]byte, 4096), int64(i)*4096)
			results <- err
		}()
	}
	testenv.Eventually(t, closeLimit, "all places are taken but a few", func() bool { return d.held.Load() > places*9/10 })
	time.Sleep(50 * time.Millisecond) // nothing can tell that no more will come
	require.LessOrEqual(t, d.held.Load(), int32(places))
	close(d.freed)
	for range writers {
		require.NoError(t, <-results)
	}
}

// A signal that kills the writer ends its write.
func TestKilledWhileHeld(t *testing.T) {
	d := newFullDevice()
	_, path := mountFile(t, File{Device: d}, Options{})
	survivor := ddWrite(t, path)
	d.awaitHeld(t, 1)
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGTERM, syscall.SIGKILL} {
		if signal.Ignored(sig) { // under nohup; what it starts ignores it too
			continue
		}
		victim := ddWrite(t, path)
		d.awaitHeld(t, 2)
		require.NoError(t, victim.Signal(sig))
		require.Error(t, victim.Wait(t, closeLimit), sig.String())
		d.awaitHeld(t, 1)
	}
	close(d.freed)
	require.NoError(t, survivor.Wait(t, closeLimit), survivor.Output())
	require.Contains(t, survivor.Output(), "4096 bytes")
}

// One that the writer handles does not: a program that writes to a file expects
// no EINTR. The kernel tells of it all the same.
func TestInterruptedWhileHeld(t *testing.T) {
	d := newFullDevice()
	fs, path := mountFile(t, File{Device: d}, Options{})
	looked := make(chan struct{}, 100)
	fs.requests.mu.Lock()
	fs.requests.abandoned = func(thread uint32) bool {
		looked <- struct{}{}
		return fs.abandoned(thread)
	}
	fs.requests.mu.Unlock()
	fd := open(t, path, unix.O_RDWR)
	thread, written := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		_, err := unix.Pwrite(fd, make([]byte, 4096), 0)
		written <- err
	}()
	id := <-thread
	d.awaitHeld(t, 1)
	require.NoError(t, unix.Tgkill(unix.Getpid(), id, unix.SIGURG)) // Go's own signal, which it handles
	for range 3 {
		<-looked
	}
	select {
	case err := <-written:
		t.Fatalf("the write has ended: %v", err)
	default:
	}
	close(d.freed)
	require.NoError(t, <-written)
}

// Close ends what waits for space at once, and whoever has the file open goes on
// until he closes it.
func TestCloseEndsHeldWrites(t *testing.T) {
	d := newFullDevice()
	fs, path := mountFile(t, File{Device: d}, Options{})
	user := openToClose(t, path, unix.O_RDWR)
	written := make(chan error, 1)
	go func() {
		_, err := unix.Pwrite(user, make([]byte, 512), 0)
		written <- err
	}()
	d.awaitHeld(t, 1)

	closed := make(chan error, 1)
	go func() { closed <- fs.Close(context.Background()) }()
	require.Equal(t, unix.ESHUTDOWN, <-written)
	_, err := unix.Pread(user, make([]byte, 512), 0)
	require.NoError(t, err, "served until it is closed")
	_, err = unix.Pwrite(user, make([]byte, 512), 0)
	require.Equal(t, unix.ESHUTDOWN, err, "no write begins to wait")
	require.NoError(t, unix.Close(user))
	require.NoError(t, <-closed)
}

// A connection that an administrator aborts ends what waits, and the mount.
func TestAbortWhileHeld(t *testing.T) {
	needMount(t)
	d := newFullDevice()
	control := t.TempDir()
	if err := unix.Mount("none", control, "fusectl", 0, ""); err != nil {
		t.Skipf("missing: fusectl: %v", err)
	}
	t.Cleanup(func() { require.NoError(t, unix.Unmount(control, 0)) })
	fs, path := mountFile(t, File{Device: d}, Options{})
	_, minor, _ := strings.Cut(fs.conn.device, ":")
	writer := ddWrite(t, path)
	d.awaitHeld(t, 1)
	require.NoError(t, os.WriteFile(filepath.Join(control, minor, "abort"), []byte("1"), 0o600))
	require.Error(t, writer.Wait(t, closeLimit))
	select {
	case <-fs.Done():
	case <-time.After(closeLimit):
		t.Fatal("it goes on waiting for space")
	}
	require.Zero(t, d.held.Load())
}

// A request is used again only when nothing can cancel it any more.
func TestRequestReuse(t *testing.T) {
	looking, answer := make(chan struct{}), make(chan bool)
	q := newRequests(func(uint32) bool {
		looking <- struct{}{}
		return <-answer
	})
	r := q.begin(7, 1)
	require.NoError(t, r.Begin())
	require.False(t, q.interrupt(8), "another one")
	require.True(t, q.interrupt(7))
	require.True(t, q.interrupt(7), "twice")
	<-looking
	ended := make(chan struct{})
	go func() {
		r.End()
		close(ended)
	}()
	select {
	case <-ended:
		t.Fatal("the wait is over while somebody may still cancel it")
	case <-time.After(20 * time.Millisecond): // nothing can tell that something goes on waiting
	}
	answer <- true
	<-ended
	<-r.Done()
	q.end(r)
	require.False(t, q.interrupt(7), "it is over")
	next := q.begin(8, 1)
	require.NotSame(t, r, next, "one that was cancelled is not used again")
	require.NoError(t, next.ctx.Err())
	q.end(next)
	require.Same(t, next, q.begin(9, 2))
	q.end(next)
	signalled := q.begin(10, 1)
	require.True(t, q.interrupt(10))
	q.end(signalled)
	require.NotSame(t, signalled, q.begin(11, 1), "nor one whose caller got a signal")
}

// When the connection has ended nobody waits, not even for what begins later.
func TestRequestsAbort(t *testing.T) {
	q := newRequests(func(uint32) bool { return true })
	before := q.begin(1, 1)
	require.NoError(t, before.Begin())
	q.abort()
	<-before.Done()
	before.End()
	after := q.begin(2, 1)
	require.NoError(t, after.Begin())
	<-after.Done()
	after.End()
}

// Draining ends who waits and lets nobody begin to; stopping ends everything.
func TestRequestsStop(t *testing.T) {
	q := newRequests(func(uint32) bool { return true })
	r := q.begin(1, 1)
	require.NoError(t, r.Begin())
	require.NoError(t, r.Begin(), "nested")
	r.End()
	q.drain()
	<-r.Done()
	require.ErrorIs(t, r.ctx.Err(), context.Canceled)
	r.End()
	require.ErrorIs(t, r.Begin(), errClosing)
	other := q.begin(2, 2)
	require.NoError(t, other.ctx.Err(), "what does not wait goes on")
	q.end(other)
	go q.end(r)
	q.stop()
	require.Nil(t, q.begin(3, 3))
}
