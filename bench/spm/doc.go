// Command spm measures the pool manager: what it takes to make, snapshot and delete a
// volume in a domain that has many, and to extend volumes of which many need space at
// once. It starts the real program and speaks to it through its socket, as a server of
// a volume and a client of the verbs do.
//
//	go run ./bench/spm -tidemark bin/tidemark -out .cache/bench-spm -doc docs/performance-spm.md
//
// All that the document shows is of one commit. With -only some parts of the record are
// measured anew, or those that are missing after a run was stopped; that is refused if
// the rest is of another commit, or of a tree with changes that were not committed.
//
// # Cells
//
// The verbs: createVolume (an image of one blank sparse COW volume), snapshot (createVolume
// on its leaf), delete snapshot (deleteVolume of that leaf), delete volume (deleteVolume of
// what is left), one after the other, in a domain with 10, 100 or 1,000 volumes besides. One
// is timed from the request until the event that its task has ended: so the time has
// the task's records in it. The task is cleared after that, untimed.
//
// Extensions: 1, 10 or 100 volumes ask for one more step in the same moment, each in a
// request of its own (Volume.extend). Each request is timed, and how long it takes until
// the last one is answered: all. One volume alone asks forty times as often as many do at
// once.
//
// Whatever has a goal for its 99th percentile is timed more than a hundred times: of fewer
// that would be the longest.
//
// # LVM's own time
//
// In a pass of its own, whose other times are not used, the manager finds instead of
// lvm this program, which runs lvm and notes how long that took. It is said as commands,
// and milliseconds, for each operation or, of extensions, for each request.
//
// # VDSM's path
//
// A model, which acts: a request is in the mailbox at a random moment, the SPM looks each
// 0.5 s and takes all that there are, one lvextend at a time (one lock for each domain, the
// options of VDSM), and the host looks each 0.5 s for the replies. The lvm, its
// configuration, the devices and the group's layout are those of ours. It leaves out what would be slower still: dd for
// every look, sudo, the refresh of the host's device, and the 2 s of a scan without events.
// It makes nothing durable, as VDSM does not.
package main
