package qcow2

import "tidemark/qcow2/format"

// An action is what a request does with a guest cluster.
type action uint8

const (
	actNothing  action = iota // it is as the request wants it
	actInPlace                // the host cluster is ours: use it
	actAllocate               // take a ready cluster; drop the host cluster there is
	actUnlink                 // clear the entry, drop the host cluster (D1)
	actRefuse                 // not supported yet
)

// owned says whether the entry is the only one to name its host cluster
// (COPIED); sharing comes with snapshots.
type owned = bool

// decideWrite is the table for writes: kind x owned -> action. The entries of
// kinds that have no host cluster carry no COPIED mark.
func decideWrite(k format.Kind, o owned) action {
	return [format.KindCount][2]action{
		//                    shared       owned
		format.Unallocated:   {actAllocate, actAllocate},
		format.ZeroPlain:     {actAllocate, actAllocate},
		format.ZeroAllocated: {actRefuse, actAllocate},
		format.Data:          {actRefuse, actInPlace},
		format.Compressed:    {actRefuse, actRefuse},
		format.Invalid:       {actRefuse, actRefuse},
	}[k][index(o)]
}

// decideZero is the table for zeroing in place.
func decideZero(k format.Kind, o owned) action {
	return [format.KindCount][2]action{
		//                    shared      owned
		format.Unallocated:   {actNothing, actNothing},
		format.ZeroPlain:     {actNothing, actNothing},
		format.ZeroAllocated: {actNothing, actNothing},
		format.Data:          {actRefuse, actInPlace},
		format.Compressed:    {actRefuse, actRefuse},
		format.Invalid:       {actRefuse, actRefuse},
	}[k][index(o)]
}

// decideUnlink is the table for discards and for zeroing that may unmap. There
// is no backing file, so a cluster without an entry reads zero.
func decideUnlink(k format.Kind, o owned) action {
	return [format.KindCount][2]action{
		//                    shared      owned
		format.Unallocated:   {actNothing, actNothing},
		format.ZeroPlain:     {actNothing, actNothing},
		format.ZeroAllocated: {actRefuse, actUnlink},
		format.Data:          {actRefuse, actUnlink},
		format.Compressed:    {actRefuse, actRefuse},
		format.Invalid:       {actRefuse, actRefuse},
	}[k][index(o)]
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// refusal names why a cluster is refused.
func refusal(k format.Kind, o owned) error {
	switch {
	case k == format.Compressed:
		return &format.UnsupportedError{Feature: "a compressed cluster", Advice: "convert the image with qemu-img convert"}
	case !o:
		return &format.UnsupportedError{Feature: "a cluster that is shared (reference count above 1)", Advice: "check the image with qemu-img check"}
	}
	return &format.CorruptError{What: "L2 entry", Off: -1, Want: "a kind that the specification defines", Got: k.String()}
}
