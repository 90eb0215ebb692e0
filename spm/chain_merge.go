package spm

import (
	"slices"

	"github.com/google/uuid"
)

// A merge writes to its ancestor what the volumes above that have, up to its successor.
// While it has begun and is not complete, the ancestor shows neither what it did nor what
// it will, and so does everything between them, which is based on it: all of that is
// illegal, and only the successor, and what is above it, is whole. It stays so if the
// merge was stopped, has failed or has died: then it is repeated.

// unmerged says of an illegal volume which merge was not completed: that of up, which is
// the nearest legal volume above it, into down, which is the lowest of all illegal ones
// that lie directly below each other there.
func (f *family) unmerged(k kin) (down, up kin, ok bool) {
	if k.legal() || k.damaged {
		return down, up, false
	}
	up, ok = f.cover(k)
	down = k
	for range f.all {
		below, there := f.all[down.meta.Parent]
		if !there || below.image != k.image || below.damaged || below.legal() {
			break
		}
		down = below
	}
	return down, up, ok
}

// illegal refuses a volume that is not whole, and says what is to be repeated.
func (f *family) illegal(k kin) error {
	if down, up, ok := f.unmerged(k); ok {
		return errorf(CodeIllegal, "volume %s is illegal: the merge of %s into %s was not completed: repeat that", k.id, up.id, down.id)
	}
	return errorf(CodeIllegal, "volume %s is illegal: an operation on it was not completed: repeat that", k.id)
}

// mayMerge decides whether successor and what is between may be merged into
// ancestor, and returns the volumes from ancestor to successor. Nothing else may
// be based on those below successor. If ancestor is illegal a merge that failed left it so,
// perhaps with what is above it, and is tried again: into that ancestor, or into one of
// those above it, unless that is to become larger. What is below it then may have become
// so already, and content of that would show behind the end of its own disk.
func (f *family) mayMerge(image, ancestor, successor uuid.UUID) ([]kin, error) {
	for _, id := range []uuid.UUID{ancestor, successor} {
		if _, err := f.member(image, id); err != nil {
			return nil, err
		}
	}
	chain, err := f.chain(successor)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(chain, func(k kin) bool { return k.id == ancestor })
	if at < 0 || ancestor == successor {
		return nil, errorf(CodeInvalid, "volume %s is not based on %s: name an ancestor and a successor of one chain", successor, ancestor)
	}
	if err := f.mayChange(image); err != nil {
		return nil, err
	}
	run := chain[at:]
	if down, _, ok := f.unmerged(run[0]); ok && down.id != ancestor && run[0].meta.Capacity < run[len(run)-1].meta.Capacity {
		return nil, f.illegal(run[0])
	}
	for i, k := range run {
		switch {
		case k.shared():
			return nil, errorf(CodeWrongState, "volume %s is a template, which never changes", k.id)
		case !k.legal() && (i == len(run)-1 || i > 0 && run[0].legal()):
			return nil, f.illegal(k)
		case i < len(run)-1 && len(f.kids[k.id]) > 1:
			return nil, errorf(CodeHasChildren, "volume %s has %d volumes that are based on it: it can be merged with one only",
				k.id, len(f.kids[k.id]))
		}
	}
	return run, nil
}
