// Package simdisk is a block.File in memory with the fault model of package
// block: what a power cut leaves of it can be chosen sector by sector.
//
// # Model
//
// A Disk is two images and a list:
//
//	current   what reads return
//	durable   what is there after a power cut for certain
//	pending   the operations since the last successful Sync, in order
//
// [Disk.Crash] makes a new disk: the durable image plus any chosen subset of the
// 512-byte sectors of the pending operations. A sector is old or new, never
// torn; the new sector of a write that covers a part of it holds what a page
// cache would write, the whole sector as it read after the write. Where several
// kept operations hit one sector, the last one wins.
//
//	operation     pending            after a crash
//	WriteAt       per sector         old | written
//	WriteZeroes   per sector         old | zero
//	Discard       per sector         old | zero or foreign (Options.DiscardForeign)
//	WriteAtSync   no: always kept    written; earlier pending writes stay pending
//	Grow          no                 the new size; the space reads zero or foreign
//	Shrink        no                 the new size
//
// Grow makes nothing but the size durable, and zeroes where fresh space reads zero,
// although a file system's fsync would: nobody may rely on more than the seam
// promises. Foreign bytes ([ForeignTag])
// stand for another tenant's data on recycled space; they must never be read by
// a guest.
//
// # A failed Sync
//
// [Disk.FailSync] makes a sync fail as Linux does: the pending data is gone, the
// next sync succeeds, and reads go on returning the new bytes until
// [Disk.Evict]. This breaks the seam's promise that an error is final, on
// purpose: who tries again must be seen to lose data.
//
// # Cost
//
// Images are sparse maps of pages that are never changed once they are in a map
// (a write makes a new page), so that copies of images share them. A disk of
// many GiB costs what was written to it.
package simdisk
