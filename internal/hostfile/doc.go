// Package hostfile makes a regular file of the host a [block.File].
//
// It goes through the page cache and knows nothing of images, volumes or pools.
// Linux only: the parts that matter (open file description locks, fallocate,
// RWF_DSYNC) have no portable form.
//
// # Whose size it is
//
// By default the file belongs to the process that opened it: Grow is ftruncate
// and fsync, Shrink works. With [Options].Fixed the size belongs to somebody
// else, a pool that grants it: Grow only looks again at how long the file has
// become, Shrink is refused, and the writer can never take more than was
// granted.
//
// # Durability
//
// Sync is fdatasync. The kernel reports a failed writeback once per open file
// description, to whichever sync comes first, whoever's data was lost. So all
// syncs of a File, the one of a WriteAtSync included, run one after the other
// and the first error latches before the next may look: no sync that ran beside
// the failed one can report success. (A description per WriteAtSync would allow
// them to overlap; it is not worth it until a profile says so.)
//
// # Locks
//
// The file is locked as QEMU locks an image, so that QEMU's tools and Tidemark
// exclude each other: see lock.go. The lock lives as long as the File.
//
// Lock order: resize, then sync.
package hostfile
