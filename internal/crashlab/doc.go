// Package crashlab judges an engine by what power cuts leave of its images.
//
// It knows no engine: it is given one as a few functions ([Engine]), runs scripts
// of requests on it over a simulated disk, records what happens at the File, and
// then cuts the power between any two events of that recording, in every way that
// the storage's fault model allows. Each state that this leaves is reopened and
// held against six rules. The fault model is package simdisk's.
//
// # From a recording to states
//
// [Run] makes a [Recording]: the log of the File (each operation when it was
// submitted and when it returned, syncs, growth) and the history of the clients
// (each request when it was submitted and when it was acknowledged, as positions
// in that log). Walking along the log, a power cut behind event n finds some
// operations durable and some pending. A state is what is durable plus a choice
// for every pending operation ([Pick]): not there, there, or a part of it in
// sectors: its beginning, its end, every other sector. A discard that is there
// left zeroes or another tenant's bytes. Of two that were in flight together and
// touch the same sectors, either may be the last.
//
//	pending     choices
//	<= All      every subset
//	more        all, none, prefixes, all but one, one, pairs, and Random seeded ones
//
// Subsets are built when an operation is submitted, with that operation in them:
// those without it are the ones of an earlier moment. They are built anew when a
// sync has ended, because then the ground is another, and when a client is told
// that something is durable, because from then on less is allowed. States are
// told apart by the hash of the disk; one that was judged under the same
// allowance, or a narrower one, is not judged again.
//
// Where a script has writes that are begun, the File begins every write that it is
// asked to begin (simdisk.Later, above all that records, holds and fails operations),
// and the client goes on before the one who has told it.
//
// # The oracle
//
//	1  the image opens by itself; our check and another program's say leaks at
//	   worst and agree; it is clean when the leaks are mended
//	2  every sector of the disk is its last durable version or one that was
//	   submitted later
//	3  nobody reads another tenant's bytes
//	4  snapshots and backing files are what they were
//	5  every host cluster has one owner, and the image stays within its bound
//	6  recovering twice, or being cut while recovering, is as good as once
//
// A version of a sector is durable when a flush was acknowledged that was
// submitted after the version was acknowledged, or when its own request had FUA.
// For the death of the process, where the host's cache survives, every version
// that was acknowledged is.
//
// After that the image is written to, flushed, cut again and judged again: a
// mistake of the recovery shows when space is used anew.
package crashlab
