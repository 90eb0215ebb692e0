//go:build linux

package fusefs

import "time"

// Every number that bounds what a mount takes, each with its reason.
const (
	// maxWriteDefault is the largest request in bytes, for reads as well. With it
	// requests of 1 MiB are a fifth (writes) to two fifths (reads) faster than with
	// go-fuse's 128 KiB. More gained nothing that could be told from the noise, and
	// go-fuse keeps a buffer of this size for every write that waits for space,
	// however small that is.
	maxWriteDefault = 256 << 10

	// maxWriteMin is what the kernel accepts at least.
	maxWriteMin = 4 << 10

	// backgroundPerFile is how many asynchronous requests (io_uring, libaio, loop
	// devices) the kernel sends for each file before it queues them itself. The
	// queue is the mount's, so writes of one file that wait for space must not be
	// able to fill it: it is as long as all files need together. More than this
	// brings no speed, because a few threads serve them.
	backgroundPerFile = 64

	// backgroundMax is the end of the kernel's 16-bit field, less some room.
	backgroundMax = 32 << 10

	// synchronous is how many synchronous requests (one for each thread that
	// reads or writes) are served beside those. Each may be a write that waits for
	// space; with more of them waiting the mount stands still until there is.
	synchronous = 64

	// requestOverhead is what go-fuse counts for a request beside its payload:
	// the structure, the header and the alignment of the buffer.
	requestOverhead = 6 << 10

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
