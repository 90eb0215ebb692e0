// Package simdisk is a block.File in memory with the fault model of package
// block: what a power cut leaves of it can be chosen sector by sector.
//
// # Model
//
// A [Model] is two images and a list, a [Disk] is a Model behind a File:
//
//	current   what reads return
//	durable   what is there after a power cut for certain
//	pending   the operations that no successful Sync has covered, in order, and
//	          those that are in flight
//
// A crash leaves a [State]: the durable image plus any chosen subset of the
// 512-byte sectors of the pending operations. A sector is old or new, never torn;
// the new sector of a write that covers a part of it holds what a page cache
// would write, the whole sector as it read after the write. Where several kept
// operations hit one sector, the last one wins; which one is the last is open for
// two that were in flight together.
//
//	operation     pending until            after a crash, meanwhile
//	WriteAt       a Sync covers it         per sector: old | written
//	WriteZeroes   a Sync covers it         per sector: old | zero
//	Discard       a Sync covers it         per sector: old | zero or foreign (Options.DiscardForeign)
//	WriteAtSync   it returns               as WriteAt; earlier pending writes stay pending
//	Grow          it returns               old size | new size, with zeroes or foreign bytes
//	Shrink        it returns               old | new
//
// A Sync covers what had returned when it was submitted. Grow makes nothing but
// the size durable, although a file system's fsync would: nobody may rely on more
// than the seam promises. Foreign bytes ([ForeignTag]) stand for another tenant's
// data on recycled space; they must never be read by a guest.
//
// # A failed Sync
//
// [Disk.FailSync] makes a sync fail as Linux does: the pending data is doomed, the
// next sync succeeds and does not save it, and reads go on returning the new bytes
// until [Disk.Evict]. This breaks the seam's promise that an error is final, on
// purpose: who tries again must be seen to lose data.
//
// # Cost
//
// An image is a tree of immutable sectors whose parts are shared by copies and
// hashed once. Copying an image costs a pointer, a crash what is kept, the hash of
// a state what was changed, and a disk of many GiB what was written to it.
package simdisk
