// Package fusefs shows any [block.Device] as a file, through Linux' FUSE.
//
// [Mount] is given a place and disks: a directory in which each disk is a file, or
// a regular file that becomes one disk. The package knows the kernel's protocol,
// what is read, written and synced by itself (wire.go), everything else by way of
// go-fuse; and it knows block.Device. It does not know what an image, a volume or
// a pool is. Linux only.
//
// # One request, from the kernel to the Device
//
//	             read, write, fsync
//	/dev/fuse ── reader ────────────── server ── Device ── errno ── /dev/fuse
//	             (crew)  └─ go-fuse ─┘ (begin,             (once)
//	                     all others     finish)
//
// The goroutine that reads a request also executes it: a hand-over to another one
// would cost more than a request does. A request that may wait is executed when
// there is another reader, so the crew of readers grows; how far is bounded, and
// with it the memory for requests (limits.go). A small write to the file that the
// reader has written to before is tried with block.NoWait first. What is done so
// needs no other reader, and a run of it makes the crew small again: two readers
// that write to one file of the host only spin for its lock, and every request has
// one of them woken (measured, 4 KiB at depth 32: one reader is a tenth faster than
// two, and takes a quarter less of the processors). A read, write or fsync allocates
// nothing.
//
// What bounds small writes at depth is that reader: with a client that takes half a
// processor it has all of another one, some 10 µs for a write of 4 KiB over 1 GiB.
// Most of its time is the write to the host's page cache, a sixth is the reply, a tenth
// the request. Three things were tried and brought a twentieth at most: to collect
// replies while there is more to read (from a second, non-blocking descriptor), to have
// them sent by another goroutine (which costs more than it saves), and a second reader.
// To spin before it waits was not tried.
//
// # What the kernel is told
//
//   - Files are open for direct I/O: every read and write reaches the Device, so
//     that nothing is cached twice, other front ends of the same Device see the
//     same bytes, and fsync is the Device's Flush. Parallel writes, and
//     asynchronous ones, are allowed: together they are worth a factor of two to
//     four.
//   - Shared memory mappings work, and agree with read and write through the same
//     mount. What is mapped is cached: another front end of the Device, and
//     SEEK_DATA, see a change when it was written out (msync).
//   - With direct I/O the kernel does not follow a write to a file that is open with
//     O_DSYNC by an fsync. It tells us the flag, and the write is FUA.
//   - Close is no barrier. sync(2) and syncfs(2) are not passed on by the kernel:
//     only fsync, fdatasync, O_DSYNC and a loop device's flush make durable.
//   - ENOSYS switches an operation off for as long as the mount lives, so it is
//     only answered for what no file here will ever have (extended attributes,
//     ioctl, copy_file_range, which the kernel then does by itself).
//   - Names never change. Sizes grow by truncate(2) if the File has a Resize, and
//     by whoever else is able to; they never shrink. A write behind the end is
//     EFBIG.
//
// # Space
//
// A write that needs space which the pool does not have waits without an end
// (rule 21): a loop device or a file system above may have told its own user
// already that the data is written, and would lose it with ENOSPC. It ends when
// there is space, when its caller is killed, when the connection is aborted, or
// when the mount is closed. That the kernel lets a synchronous caller wait under
// the lock of its file means that fsync, fallocate and further writes to that file
// wait as well; reads do not, nor do asynchronous callers (io_uring, libaio, loop
// devices with direct I/O), of whom backgroundPerFile may wait for each file. An
// asynchronous write that was handed over cannot be interrupted, so its process
// cannot be killed until there is space or the mount is gone.
//
// # Invariants
//
//   - After [FS.Close] has returned nothing of the mount touches a Device, whatever
//     still has the files open.
//   - Only errno.go turns an error into an errno.
//   - A panic in a Device is EIO, and EIO for every later request to that file: what
//     it left behind is unknown. Other files go on.
//   - No reply contains a byte that the Device did not write into it.
//   - Only a mount of ours is removed, and only one whose server is gone or that is
//     this FS.
//
// # Mounting
//
// As root by mount(2), otherwise through fusermount3, which is a set-user-ID
// program: a process under no_new_privs could neither mount nor unmount, so nothing
// here sets it (rule 22). A server that was killed leaves a dead mount (ENOTCONN),
// which the next Mount on the same place removes; otherwise fusermount3 -uz does.
// Who has something open on the dead one gets errors for it and is not disturbed
// further.
//
// The process that serves a mount must not use it: a page fault on it, or adding it
// to Go's poller, stops a thread that the answer may need.
//
// A process that serves a disk to its own host is to be marked by [SetIOFlusher],
// or the kernel may wait for it in order to give it memory.
//
// # Locks
//
// FS.closing, then requests.mu. file.mu, request.mu, requests.mu and crew.mu are
// leaves: no lock is taken under them and no Device is called. Device methods are
// called with no lock held.
package fusefs
