package qcow2

import "tidemark/qcow2/format"

// An action is what a request does with a guest cluster, or with a part of it.
type action uint8

const (
	actNothing  action = iota // it is as the request wants it
	actInPlace                // the host cluster is ours: use it
	actAllocate               // publish a ready cluster, then write (W1 to W3)
	actCopy                   // write, with what must be kept, then publish (X1 to X4)
	actUnlink                 // change the entry, drop the host cluster (D1)
	actWrite                  // cannot be marked zero: write zeroes instead
	actLeave                  // a discard has no way to drop it: keep it
	actRefuse                 // the entry must not be used
)

// A situation is what the decisions depend on.
type situation struct {
	kind format.Kind
	// owned: the entry is the only one to name its host cluster (COPIED).
	owned bool
	// plain: the whole guest cluster reads zero or nothing and has no content of
	// its own, so a cluster of zeroes may take its place. False where a backing
	// file's content, or that of a host cluster with sub-clusters, shows through.
	plain bool
}

// decideWrite is the table for writes.
func decideWrite(s situation) action {
	return [format.KindCount][2][2]action{
		// shared{content, plain}, owned{content, plain}
		format.Unallocated:      {{actCopy, actAllocate}, {actCopy, actAllocate}},
		format.ZeroPlain:        {{actCopy, actAllocate}, {actCopy, actAllocate}},
		format.ZeroAllocated:    {{actCopy, actAllocate}, {actCopy, actAllocate}},
		format.UnallocatedAlloc: {{actCopy, actCopy}, {actCopy, actCopy}},
		format.Data:             {{actCopy, actCopy}, {actInPlace, actInPlace}},
		format.Compressed:       {{actCopy, actCopy}, {actCopy, actCopy}},
		format.Invalid:          {{actRefuse, actRefuse}, {actRefuse, actRefuse}},
	}[s.kind][index(s.owned)][index(s.plain)]
}

// decideZero is the table for zeroing a part of a cluster, or a whole one whose
// host cluster is to be kept. Content that shows through is overwritten.
func decideZero(s situation, backed bool) action {
	return [format.KindCount][2][2]action{
		// shared{not backed, backed}, owned{not backed, backed}
		format.Unallocated:      {{actNothing, actWrite}, {actNothing, actWrite}},
		format.ZeroPlain:        {{actNothing, actNothing}, {actNothing, actNothing}},
		format.ZeroAllocated:    {{actNothing, actNothing}, {actNothing, actNothing}},
		format.UnallocatedAlloc: {{actNothing, actWrite}, {actNothing, actWrite}},
		format.Data:             {{actWrite, actWrite}, {actInPlace, actInPlace}},
		format.Compressed:       {{actWrite, actWrite}, {actWrite, actWrite}},
		format.Invalid:          {{actRefuse, actRefuse}, {actRefuse, actRefuse}},
	}[s.kind][index(s.owned)][index(backed)]
}

// An erasure is a request that whole clusters read zero.
type erasure struct {
	// exact: they must. A discard is a hint: what it cannot drop stays.
	exact bool
	// keep: host clusters that are ours are zeroed and kept.
	keep bool
}

// decideErase is what is done with a whole guest cluster. kind is that of its
// sub-clusters if all have one, or of the one that shows most. backed: behind an
// entry of 0 there is content. marks: the format has zero marks.
func decideErase(kind format.Kind, owned, backed, marks bool, e erasure) action {
	switch {
	case kind == format.Invalid:
		return actRefuse
	case kind == format.ZeroPlain, kind == format.Unallocated && !backed:
		return actNothing
	case kind == format.Data && owned && e.keep:
		return actInPlace
	case kind == format.ZeroAllocated && e.keep:
		return actNothing
	case kind == format.Unallocated && !e.exact:
		return actLeave // there is nothing of ours to drop
	case !backed || marks:
		return actUnlink
	case e.exact:
		return actWrite
	}
	return actLeave
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}
