// Package qcow2 is the engine: it reads and writes a QCOW2 image over a
// [block.File] and offers it as a [block.Device].
//
// It knows nothing of NBD, FUSE, LVM or pools. Space is asked for with
// File.Grow, ahead of use; whoever makes the file larger is behind that call.
//
// # Fault model
//
// That of package block: after a power cut any subset of the 512-byte sectors
// written since the last successful Sync has landed, in any order. A failed
// Sync means that the data may be gone. A process that is killed loses its
// memory and nothing that it wrote.
//
// # What must hold on disk at every moment
//
//	I1  an entry names a cluster whose reference count was durably 1 before
//	I2  the file's durable size covers every reference
//	I3  a cluster that an entry begins to name reads zero durably, or its whole
//	    content was durable before the entry was written
//	I4  a reference count falls, and a cluster is reused, only after the entry
//	    that named it is durably gone
//	I5  a flush is acknowledged after a Sync that began when all writes it
//	    covers had returned
//
// So a crash leaves leaks (counted, not referenced) and nothing worse.
//
// # Write order
//
// The code says steps.At where a step has been done, and the crash lab
// (crashtest) cuts the power before and behind every one that is listed here.
//
// Reserve, ahead of use, by one goroutine at a time (reserve.go):
//
//	R1  choose clusters: counted 0 below the image's end, or a run at the end
//	R2  File.Grow, durable when it returns; no lock is held
//	R3  where a refcount block is missing: the block, Sync, its entry in the
//	    refcount table, Sync
//	R4  zero what is not known to read zero
//	R5  write the list of what is reserved, and the counts 1; Sync
//	R6  the clusters are ready: counted, reading zero, both durably
//
// A crash in R2 to R5 leaves at most leaks; an error in R3 to R5 that is not
// "no space" poisons.
//
// A write into a cluster that has none, or that is marked zero (write.go):
//
//	W1  take a ready cluster, and one for the L2 table if that is missing too
//	W2  publish the entries in memory, which marks them dirty; a host cluster
//	    that a zero mark kept is unlinked
//	W3  write the guest's bytes; the rest of the cluster reads zero already
//	W4  write the dirty tables, without a Sync; then the request is complete
//
// A request that finds an entry as it wants it, which another one has changed in
// memory (W2, D1) and not written yet (W4, D2), writes it too, or waits for that.
//
// A crash after any of them shows the old content (zeroes) or the new.
//
// Discard, and zeroing that may unmap (unlink.go), region held exclusively:
//
//	D1  clear the entries in memory; remember what they named as unlinked
//	D2  write the dirty tables, as W4
//
// W4 and D2 are why a completed write survives the death of the process: all of
// it is in the host's cache then. Writing tables early is allowed because an
// entry may land at any time after it was published: I3 holds since R6. (So
// there is no entry here that must wait for data, and no barrier. Copying, which
// comes with backing files and snapshots, will need one.)
//
// Commit, shared by all flushes that wait (commit.go); it allocates nothing and
// takes no region lock:
//
//	C1  note how many writes have completed, and what is unlinked
//	C2  write the dirty tables and the dirty reference counts; Sync.
//	    Commit point: what had completed at C1 is durable
//	C3  discard the bytes of the unlinked clusters whose count falls to 0
//	C4  lower the counts in memory; the clusters are free to be chosen in R1.
//	    They reach the disk with the next C2 or R5
//
// L2 tables of this process come from R6 and read zero, so the table, its
// entries and the L1 entry that names it may land in any order.
//
// Big changes (table growth, resize.go and refcount.go): build the new table
// beside the old one, Sync, switch with one write of the header's first sector,
// Sync; the old table's clusters are unlinked.
//
// What a writer that died had reserved is given back after the next open, in the
// background: settle.go.
//
// Closing: commit, count the ready clusters 0 again, Sync, shrink the file to
// the image's end, Sync.
//
// # Poison
//
// Any failed Sync and any failed write of metadata is final: the image stops
// accepting writes and flushes and says why; reads go on.
//
// # Locks, in this order
//
//	allocating  (channel)  held by whoever moves the image's end or the tables:
//	                       reserve, resize, close. Waiting for it obeys the context
//	committing  (channel)  one commit at a time
//	region      (RWMutex)  shared: data I/O, from the lookup until the bytes are
//	                       where they belong. Exclusive: D1
//	tableIO     (Mutex)    one copy-and-write of L2 and L1 at a time; switching
//	                       the L1 table
//	refcountIO  (Mutex)    one copy-and-write of reference counts at a time
//	syncing     (Mutex)    one Sync of the file at a time
//	mu          (Mutex)    tables, caches, allocator: memory, and reads of metadata
//
// Nobody waits for space, a Sync or a peer while holding region, refcountIO or mu;
// only a resize syncs while it holds tableIO.
package qcow2
