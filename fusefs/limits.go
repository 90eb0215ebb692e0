//go:build linux

package fusefs

import "time"

// Every number that bounds what a mount takes, each with its reason.
const (
	// maxWriteDefault is the largest request in bytes, for reads as well. With it
	// requests of 1 MiB are a fifth (writes) to two fifths (reads) faster than with
	// go-fuse's 128 KiB. More gained nothing that could be told from the noise, and
	// a reader has a buffer of this size, also while a write that it executes waits
	// for space, however small that is.
	maxWriteDefault = 256 << 10

	// maxWriteMin is what the kernel accepts at least.
	maxWriteMin = 4 << 10

	// backgroundPerFile is how many asynchronous requests (io_uring, libaio, loop
	// devices) the kernel sends for each file before it queues them itself. The
	// queue is the mount's, so writes of one file that wait for space must not be
	// able to fill it: it is as long as all files need together. More than this
	// brings no speed, because a few readers serve them.
	backgroundPerFile = 64

	// backgroundMax is the end of the kernel's 16-bit field, less some room.
	backgroundMax = 32 << 10

	// synchronous is how many synchronous requests (one for each thread that
	// reads or writes) are served beside those. Each may be a write that waits for
	// space; with more of them waiting the mount stands still until there is.
	synchronous = 64

	// wantedMax bounds how many goroutines wait for requests at a time, which
	// otherwise are as many as there are processors, and two at least: each is a
	// thread in a system call.
	wantedMax = 16

	// runMax is after how many writes to one file, done at once and one after
	// another, a reader leaves. It only has to be more than what comes between two
	// flushes or reads of somebody who does both.
	runMax = 32

	// atOnceMax is the largest write in bytes that is done while perhaps nobody else
	// reads requests: with larger ones it is worth more that the next is copied
	// from the kernel meanwhile.
	atOnceMax = 32 << 10

	// fuseReadMin is the smallest buffer in bytes into which the kernel delivers
	// requests (FUSE_MIN_READ_BUFFER).
	fuseReadMin = 8 << 10

	// coldReplyBytes is more than the largest reply but its data: that to the first
	// request, or to stat.
	coldReplyBytes = 4 << 10

	// blockSize is what stat(2) and statfs(2) tell. The loop driver discards in
	// units of it, and refuses to if it is 0.
	blockSize = 4 << 10

	// extentBatch is how many extents the Device is asked for at a time when
	// somebody looks for data or a hole.
	extentBatch = 128

	// nameBytesMax is what Linux allows for a name in a directory (NAME_MAX).
	nameBytesMax = 255

	// attrTimeout is how long the kernel believes size and times. Longer would
	// gain nothing (with direct I/O they are asked for by stat only), and a disk
	// that grew by another way is seen within it.
	attrTimeout = time.Second

	// entryTimeout is how long the kernel believes that a name is there, or is
	// not: the names of a mount never change.
	entryTimeout = time.Hour

	// signalPoll is how often a request that waits for space, and whose caller
	// has got a signal, looks whether the signal kills it. The kernel tells of the
	// first signal only, and not which it was.
	signalPoll = 100 * time.Millisecond
)
