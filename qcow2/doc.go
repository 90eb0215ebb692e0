// Package qcow2 is the engine: it reads and writes a QCOW2 image over a
// [block.File] and offers it as a [block.Device].
//
// It knows nothing of NBD, FUSE, LVM or pools. Space is asked for with
// File.Grow, ahead of use; whoever makes the file larger is behind that call. A
// backing file is a Device that is given to it.
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
//	I3  a cluster that an entry begins to name reads zero durably, or what was
//	    written into it was durable before the entry was written
//	I4  a reference count falls, and a cluster is reused, only after the entry
//	    that named it is durably gone and no request can know it any more
//	I5  a flush is acknowledged after a Sync that began when all writes it
//	    covers had returned
//
// So a crash leaves leaks (counted, not referenced) and nothing worse.
//
// # Write order
//
// Reserve, ahead of use, by one goroutine at a time (reserve.go, find_free.go,
// ready.go):
//
//	R1  choose clusters: counted 0 below the image's end, or a run at the end
//	R2  File.Grow, durable when it returns. Where that has to wait, nothing is
//	    held meanwhile, and R1 begins again
//	R3  where a refcount block is missing: the block, durably, then its entry in
//	    the refcount table, durably
//	R4  zero what is not known to read zero; for L2 tables also what is, so that
//	    the storage has space for them; for the same reason, before the first R1,
//	    what is empty of the L1 table
//	R5  write the list of what is reserved, and the counts 1; Sync
//	R6  the clusters are ready: counted, reading zero, both durably
//
// A crash in R2 to R5 leaves at most leaks; an error in R3 to R5 that is not
// "no space" poisons.
//
// A write into a cluster that has no content, its own or a backing file's
// (write.go):
//
//	W1  take ready clusters, and one for the L2 table if that is missing too
//	W2  publish the entries in memory, which marks them dirty; a host cluster
//	    that a zero mark kept is unlinked
//	W3  write the guest's bytes; the rest of the cluster reads zero already
//	W4  the request is complete
//
// W3 may be left to the file (write_later.go): who notices its end does W4. The request
// is in progress until then.
//
// A crash after any of them shows the old content (zeroes) or the new; so the
// entry may be written before the bytes, or after them, or together with them.
//
// A write into a cluster whose content is elsewhere (copy.go): X1 to X4, with the
// bytes first and a barrier between them and the entry. A table that a snapshot
// shares is copied before it is changed (table_own.go).
//
// Discard, and zeroing that may unmap (erase.go):
//
//	D1  clear the entries in memory, or mark them zero where a backing file
//	    would show; remember what they named as unlinked
//	D2  the request is complete
//
// What completes must survive the death of the process: the host's cache has the
// bytes, and the redo ring has the entries (log.go). Where there is no ring, W4
// and D2 write the dirty tables first, as C2 and C3 do.
//
// Commit, shared by all flushes that wait (commit.go, push.go); it allocates
// nothing:
//
//	C1  note what is unlinked, and how many writes have completed
//	C2  note how far the ring is filled; copy the dirty tables; write those that
//	    are copies of a snapshot's, and Sync if there were any or the barrier was
//	    raised before
//	C3  write the other L2 tables and the L1 table; trim the ring
//	C4  write the dirty reference counts; Sync. Commit point: what had completed
//	    at C1 is durable
//
// L2 tables that this process made come from R6 and read zero, so such a table,
// its entries and the L1 entry that names it may land in any order.
//
// Free, in the background after a commit (reap.go):
//
//	F1  when the requests that began before it have ended: discard the bytes of
//	    the unlinked clusters that are counted once
//	F2  lower the counts in memory; the clusters may be chosen in R1. Counts
//	    reach the disk with the next C4 or R5, or at once where too many are dirty:
//	    the unlinking is durable, so any moment will do
//
// Big changes (table growth, resize.go and refcount.go):
//
//	G1  build the new table beside the old one, Sync
//	G2  switch with one write of the header's first sector, Sync; the old table's
//	    clusters are unlinked
//
// What a writer that died had reserved is given back after the next open, in the
// background: settle.go, S1 to S4.
//
// Closing (close.go): commit, free, count the ready clusters 0 again, Sync, shrink the
// file to the image's end, durably, and end the ring. Nothing touches the file after
// that, not even what a request that has ended would still do.
//
// # Poison
//
// Any failed Sync and any failed write of metadata is final (poison.go): the image
// stops accepting writes and flushes, also those in progress and those that wait for
// space, and says why; reads go on, and nothing is freed any more. So are counts that contradict an entry when they are lowered, and counts that
// cannot be read then. No Sync is believed beside one that fails, as they are one at a
// time, nor beside a durable write that fails: a Sync ends when those have that had begun.
// Space that the storage lacks is no error but a wait (rule 14): metadata has its
// space since R4, data waits for it.
//
// # Requests and clusters
//
// A request is in progress (grace.go) from before it looks up its clusters until
// their bytes are where they belong. No lock protects the clusters meanwhile:
// requests that overlap in time may do so in any order, as on a disk, and a
// cluster that an entry has lost is reused only when every request has ended that
// may know it. A request that waits for space is not in progress and holds
// nothing; it looks everything up again afterwards. That takes the place of a
// lock for each region: a discard never waits for a write, nor a read for either.
//
// # Locks, in this order
//
//	allocating  (channel)  held by whoever moves the image's end or the big
//	                       tables: reserve, resize, close. Waiting for it obeys
//	                       the context
//	committing  (channel)  one commit at a time
//	claim       (channel)  one copy of a guest cluster at a time (copy.go)
//	copying     (channel)  one copy of an L2 table at a time
//	tableIO     (Mutex)    one copy-and-write of L2 and L1 at a time; switching
//	                       the L1 table
//	refcountIO  (Mutex)    one copy-and-write of reference counts at a time
//	reaper      (Mutex)    one F1 and F2 at a time
//	tab.mu      (Mutex)    L1 table, cache of slices
//	slice.mu    (Mutex)    entries of one slice, for changing them
//	mu          (Mutex)    allocator, header, what is unlinked
//	refs.mu     (Mutex)    reference counts; blocks of them are read under it
//	dirty.mu    (Mutex)    list of dirty slices
//
// From tableIO on, the build tag lockcheck checks the order, and that none of them is
// held where space and other requests are waited for. Nobody waits for space while
// holding any of them, or for a peer, but for a reservation of an image that must not
// become larger: under allocating, it waits until the requests have ended that may know
// what was unlinked before (reap.go), which never wait for allocating. A Sync, or a durable write, is waited for
// under the first six at most.
//
// Outside of all, requests (RWMutex) is held shared by flushes and resizes, and by
// Close. Inside of all, and of each other, are syncing (one Sync at a time), taskMu, and
// those in claims and committer: under them none of the others is taken.
package qcow2
