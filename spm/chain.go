package spm

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/google/uuid"
)

// A kin is a volume as those need it who look at chains: what its metadata says.
// Of a damaged one nothing is known but where it lies, and perhaps what it is based on.
type kin struct {
	id, image uuid.UUID
	meta      volumeMeta
	damaged   bool
	lost      bool // of a damaged one: meta.Parent is not known
}

func (k kin) legal() bool  { return !k.damaged && k.meta.Legality == Legal }
func (k kin) shared() bool { return k.meta.VolType == Shared }

// A family is all volumes of a domain. What is derived from it is derived from the
// volumes' own metadata alone: PUUID says what a volume is based on, and nothing
// else is the truth about it. It never changes.
type family struct {
	all    map[uuid.UUID]kin
	images map[uuid.UUID][]kin // of an image, in the order of their UUIDs
	kids   map[uuid.UUID][]kin // based on a volume, of any image, in the same order
	broken []kin               // damaged, in the same order
}

func newFamily(all []kin) *family {
	f := &family{all: map[uuid.UUID]kin{}, images: map[uuid.UUID][]kin{}, kids: map[uuid.UUID][]kin{}}
	all = slices.Clone(all)
	slices.SortFunc(all, byID)
	for _, k := range all {
		f.all[k.id] = k
		f.images[k.image] = append(f.images[k.image], k)
		switch {
		case k.damaged:
			f.broken = append(f.broken, k)
		case k.meta.Parent != uuid.Nil:
			f.kids[k.meta.Parent] = append(f.kids[k.meta.Parent], k)
		}
	}
	return f
}

func byID(a, b kin) int { return bytes.Compare(a.id[:], b.id[:]) }

// covered reports whether a legal volume of the same image is above one: then that
// one is not what the image shows. Volumes that are illegal are on their way in or
// out, and cover nothing.
func (f *family) covered(k kin) bool {
	_, is := f.cover(k)
	return is
}

// cover is the nearest legal volume of the same image above one.
func (f *family) cover(k kin) (above kin, there bool) {
	seen := map[uuid.UUID]bool{k.id: true}
	for next := []kin{k}; len(next) > 0; next = next[1:] {
		for _, c := range f.kids[next[0].id] {
			if c.image != k.image || seen[c.id] {
				continue
			}
			if c.legal() {
				return c, true
			}
			seen[c.id] = true
			next = append(next, c)
		}
	}
	return kin{}, false
}

// leaf is the volume that an image shows. Where one of it is damaged, nobody knows: it may
// be that one.
func (f *family) leaf(image uuid.UUID) (uuid.UUID, bool) {
	if f.anyDamaged(image) {
		return uuid.Nil, false
	}
	return f.top(image)
}

// top is the volume of an image that is not covered. Where an operation that was
// interrupted left several, a legal one goes first, then one that says that it is the
// leaf, then the newest. Those that are damaged are left out.
func (f *family) top(image uuid.UUID) (uuid.UUID, bool) {
	var best kin
	rank := func(k kin) int {
		n := 0
		if k.legal() {
			n += 2
		}
		if k.meta.VolType != Internal {
			n++
		}
		return n
	}
	for _, k := range f.images[image] {
		if k.damaged || f.covered(k) {
			continue
		}
		if best.id == uuid.Nil || cmp.Or(cmp.Compare(rank(k), rank(best)), cmp.Compare(k.meta.Sequence, best.meta.Sequence)) > 0 {
			best = k
		}
	}
	return best.id, best.id != uuid.Nil
}

// chain returns a volume with everything below it, from the base up. It crosses
// from an image to its template.
func (f *family) chain(id uuid.UUID) ([]kin, error) {
	var up []kin
	for at := id; at != uuid.Nil; {
		k, there := f.all[at]
		switch {
		case !there && at == id:
			return nil, errorf(CodeNotFound, "there is no volume %s", id)
		case !there:
			return nil, errorf(CodeDamaged, "volume %s is based on %s, which does not exist: its data is lost without that one", up[len(up)-1].id, at)
		case k.damaged:
			return nil, errorf(CodeDamaged, "volume %s, in the chain of %s, is damaged: nobody knows what it is based on", at, id)
		case len(up) > len(f.all):
			return nil, errorf(CodeDamaged, "volume %s is based on itself, by way of %s", id, at)
		}
		up = append(up, k)
		at = k.meta.Parent
	}
	slices.Reverse(up)
	return up, nil
}

// name is what a volume is called: the topmost as its image, by the first alias from
// there downwards or by its UUID, and every other by its own UUID.
func (f *family) name(k kin) string {
	if top, ok := f.top(k.image); !ok || top != k.id {
		return k.id.String()
	}
	for at, n := k, 0; n <= len(f.all) && at.image == k.image; n++ {
		if alias := at.meta.alias(); alias != "" {
			return alias
		}
		below, there := f.all[at.meta.Parent]
		if !there {
			break
		}
		at = below
	}
	return k.image.String()
}

// reconcile returns what a volume's VOLTYPE should be: a crash may have come
// between two volumes of one operation.
//
//	LEAF with a legal volume above it in its image  -> INTERNAL: it has a snapshot
//	INTERNAL and legal with none                    -> LEAF: what was above it has gone
//	anything else, and where a volume of the image is damaged -> as it is
func (f *family) reconcile(k kin) string {
	if k.damaged {
		return k.meta.VolType
	}
	switch covered := f.covered(k); {
	case k.meta.VolType == Leaf && covered:
		return Internal
	case k.meta.VolType == Internal && k.legal() && !covered && !f.anyDamaged(k.image):
		return Leaf
	}
	return k.meta.VolType
}

func (f *family) anyDamaged(image uuid.UUID) bool {
	return slices.ContainsFunc(f.images[image], func(k kin) bool { return k.damaged })
}

// shown is the volume that is meant by an image: its leaf, or if nobody knows that the one
// because of which.
func (f *family) shown(image uuid.UUID) (id uuid.UUID, there bool) {
	if leaf, ok := f.leaf(image); ok {
		return leaf, true
	}
	for _, k := range f.images[image] {
		if k.damaged {
			return k.id, true
		}
	}
	return uuid.Nil, false
}
