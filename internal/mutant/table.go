package mutant

// Table lists every mutant there is, by package and in the order of the steps
// that it breaks. Rules are those of the engine's package comment: I1 to I5 must
// hold on disk at every moment.
func Table() []Mutant {
	return []Mutant{
		{"file-tail-taken-for-zero", "what lies between the image's end and the file's end when it is opened counts as zero", "I3, zero is known and never inferred"},
		{"zeroes-unsynced", "R5 makes the counts durable, and not the zeroes of R4", "I3"},
		{"zeroed-after-sync", "R4 comes behind the Sync of R5", "I3"},
		{"counts-left-to-commit", "R5 leaves the counts to the next commit", "I1"},
		{"reservation-unsynced", "R5 does not sync before clusters are ready", "I1, I3"},
		{"refcount-block-unsynced", "R3 does not sync between a refcount block and the entry that names it", "R3"},
		{"refcount-entry-unsynced", "R3 does not sync before a new refcount block is used", "R3"},
		{"refcount-table-switched-unsynced", "a larger refcount table is switched to before it is durable", "big changes switch in one sector"},
		{"l1-switched-unsynced", "a larger L1 table is switched to before it is durable", "big changes switch in one sector"},
		{"width-switched-unsynced", "reference counts of another width are switched to before they are durable", "big changes switch in one sector"},
		{"header-switched-unsynced", "what follows a switch of the header does not wait for it", "big changes switch in one sector"},
		{"name-moved-unsynced", "the header names the new place of the backing file's name before the name is there", "a header is valid at every moment"},
		{"old-name-uncleared", "an extension is written over the backing file's old name before that is gone", "a header is valid at every moment"},
		{"old-table-freed-before-switch", "the old L1 table is freed before the header names the new one", "I4"},
		{"size-before-table", "the disk is larger in the header before there is an L1 table for that", "big changes switch in one sector"},

		{"copy-without-barrier", "X3 does not raise the barrier", "I3"},
		{"barrier-skipped", "C2 does not sync where the barrier is raised", "I3"},
		{"copied-table-as-new", "a copied L2 table is written together with the L1 entry that names it", "a copied table is not a new one"},
		{"copied-table-unsynced", "C2 does not sync between a copied L2 table and the L1 entry that names it", "a copied table is not a new one"},
		{"unlinked-reused-at-once", "what an entry named is reused without a commit, when space is short", "I4"},

		{"completed-counted-early", "a request counts as completed when it begins", "I5, durability is a comparison of what had completed"},
		{"begun-write-counted-late", "a write that the file has begun counts as completed when its client has been told already", "I5, durability is a comparison of what had completed"},
		{"completed-read-late", "C4 counts what completed during the commit as durable", "I5"},
		{"unlinked-taken-late", "C4 frees what was unlinked during the commit", "I4"},
		{"decrement-before-unlink", "counts fall before the entry is gone on disk", "I4"},
		{"discard-before-unlink", "bytes are discarded before the entry is gone on disk", "I4"},
		{"reused-under-readers", "clusters are freed under requests that know them", "I4, readers hold their region"},
		{"commit-unsynced", "C4 does not sync", "I5"},
		{"commit-joined-late", "a flush joins a commit that has begun", "I5"},
		{"tables-left-to-commit", "without a ring, W4 and D2 do not write the tables", "completed writes survive the process"},
		{"replayed-uncommitted", "a ring is emptied when it is replayed in memory", "completed writes survive the process"},
		{"replayed-without-barrier", "what a ring says is written before what the dead process had copied is durable", "I3"},
		{"ring-trimmed-early", "the ring forgets what is not written yet", "completed writes survive the process"},
		{"table-write-error-ignored", "a failed write of tables does not poison", "poison"},
		{"failed-sync-ignored", "a failed sync counts as done", "poison"},
		{"failed-sync-tried-again", "a failed sync is tried again, and believed", "poison"},
		{"failed-fua-forgotten", "a FUA write that fails does not poison", "poison: a durable write counts as a Sync"},
		{"poison-not-latched", "an error that is final is forgotten", "poison"},

		{"fua-ignored", "FUA does nothing", "I5"},
		{"fua-in-place-unsynced", "FUA in place writes without a sync", "I5"},
		{"fua-without-metadata", "FUA in place under entries that are not durable", "durability is a comparison of epochs"},
		{"fua-epoch-off-by-one", "an entry counts as durable one commit too early", "durability is a comparison of epochs"},

		{"freed-before-last-commit", "Close frees what is unlinked before it commits", "I4"},
		{"shrunk-before-counts", "Close shrinks the file before the counts say so", "I2"},
		{"shrunk-unsynced", "Close shrinks the file before the counts are durable", "I2"},
		{"settled-unsynced", "S3 does not sync", "I4"},
		{"settle-acquits-nobody", "S2 does not look for references", "I4"},
		{"settle-forgets-snapshots", "S2 does not look at snapshots", "I4"},
	}
}
