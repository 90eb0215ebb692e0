package spm

import (
	"cmp"
	"slices"

	"github.com/google/uuid"
)

// mayChange refuses to change volumes that a damaged one of their image may be based on:
// nobody knows which of them that is, for only its metadata would say so. Those of without
// go as well, and do not count.
func (f *family) mayChange(image uuid.UUID, without ...uuid.UUID) error {
	for _, k := range f.images[image] {
		if k.damaged && !slices.Contains(without, k.id) {
			return errorf(CodeDamaged, "volume %s of image %s is damaged, and nobody knows what it is based on: %s", k.id, image, mendFirst)
		}
	}
	return nil
}

// mayGo refuses to take an image away on which a damaged volume of another image is based,
// or may be: that is on a template, if it is on another image.
func (f *family) mayGo(image uuid.UUID) error {
	template := slices.ContainsFunc(f.images[image], func(k kin) bool { return k.damaged || k.shared() })
	for _, k := range f.broken {
		below, known := f.all[k.meta.Parent]
		switch {
		case k.image == image || !k.lost && k.meta.Parent == uuid.Nil || known && below.image != image:
		case known:
			return errorf(CodeDamaged, "volume %s of image %s is damaged, and is based on image %s: %s", k.id, k.image, image, mendFirst)
		case template:
			return errorf(CodeDamaged, "volume %s of image %s is damaged, and nobody knows whether it is based on image %s, a template: %s",
				k.id, k.image, image, mendFirst)
		}
	}
	return nil
}

const mendFirst = "mend its metadata and start the manager again, or delete it"

// member returns a volume of an image.
func (f *family) member(image, id uuid.UUID) (kin, error) {
	k, there := f.all[id]
	switch {
	case !there || k.image != image:
		if len(f.images[image]) == 0 {
			return kin{}, errorf(CodeUnknownImage, "there is no image %s", image)
		}
		return kin{}, errorf(CodeNotFound, "image %s has no volume %s", image, id)
	case k.damaged:
		return kin{}, errorf(CodeDamaged, "volume %s is damaged: mend its metadata, or remove its image", id)
	}
	return k, nil
}

// mayWrite refuses to let anybody write to a volume that others are based on, or may be. What
// is illegal above it is based on it by name only: it is on its way out, or not made yet.
func (f *family) mayWrite(k kin) error {
	switch {
	case k.shared():
		return errorf(CodeWrongState, "volume %s is a template, which never changes: open it for reading only, or make a volume that is based on it", k.id)
	case f.covered(k):
		return errorf(CodeHasChildren, "volume %s has volumes that are based on it, so nobody may write to it: open it for reading only, or the leaf of image %s", k.id, k.image)
	}
	return f.mayChange(k.image)
}

// maySnapshot decides whether a volume of image may be based on parent, and
// returns it. In its own image that is the leaf, in another one a template.
func (f *family) maySnapshot(image, parentImage, parent uuid.UUID) (kin, error) {
	k, err := f.member(parentImage, parent)
	if err == nil && parentImage == image {
		err = f.mayChange(image)
	}
	if err != nil {
		return kin{}, err
	}
	leaf, _ := f.leaf(image)
	switch {
	case !k.legal():
		return kin{}, f.illegal(k)
	case parentImage != image && !k.shared():
		return kin{}, errorf(CodeWrongState, "volume %s of image %s is %s, and images may be based on a template (%s) only",
			parent, parentImage, k.meta.VolType, Shared)
	case parentImage != image && len(f.images[image]) > 0:
		return kin{}, errorf(CodeExists, "image %s has volumes already: its next one is based on its leaf", image)
	case parentImage == image && k.shared():
		return kin{}, errorf(CodeWrongState, "volume %s is a template: what is based on it belongs into an image of its own", parent)
	case parentImage == image && (leaf != parent || len(f.kids[parent]) > 0):
		return kin{}, errorf(CodeHasChildren, "volume %s is not the leaf of image %s (%s is): a snapshot is made of the leaf", parent, image, leaf)
	}
	_, err = f.chain(parent)
	return k, err
}

// mayDelete decides whether volumes of an image may go, and returns them in the
// order in which they do, the topmost first. What is based on one must go, too.
func (f *family) mayDelete(image uuid.UUID, ids []uuid.UUID, force bool) ([]uuid.UUID, error) {
	if len(ids) == 0 {
		return nil, errorf(CodeInvalid, "no volume to delete was named")
	}
	var out []kin
	for _, id := range ids {
		k, there := f.all[id]
		if !there || k.image != image || !k.damaged {
			var err error
			if k, err = f.member(image, id); err != nil {
				return nil, err
			}
		}
		switch {
		case k.shared():
			return nil, errorf(CodeWrongState, "volume %s is a template: delete its image", id)
		case !k.legal() && !force:
			return nil, f.forced(k)
		}
		for _, c := range f.kids[id] {
			if !slices.Contains(ids, c.id) {
				return nil, errorf(CodeHasChildren, "volume %s cannot be deleted: volume %s of image %s is based on it", id, c.id, c.image)
			}
		}
		out = append(out, k)
	}
	if err := f.mayChange(image, ids...); err != nil {
		return nil, err
	}
	if err := f.mayUncover(image, ids); err != nil {
		return nil, err
	}
	return f.topFirst(out), nil
}

// forced refuses to delete a volume that is not whole, but by force. Of a merge that was
// not completed it has a part of what the image shows, and nobody is told to delete that.
func (f *family) forced(k kin) error {
	if down, up, torn := f.unmerged(k); torn {
		return errorf(CodeIllegal, "volume %s is illegal: the merge of %s into %s was not completed: repeat that; volume %s has a part of what %s shows, which would be lost with it",
			k.id, up.id, down.id, k.id, up.id)
	}
	return errorf(CodeIllegal, "volume %s of image %s is illegal or damaged: it is deleted by force only, with what can still be read of it", k.id, k.image)
}

// mayUncover refuses to let volumes go that are all that is whole of what is below them:
// a merge that was not completed has torn that.
func (f *family) mayUncover(image uuid.UUID, ids []uuid.UUID) error {
	var left []kin
	for _, k := range f.all {
		if !slices.Contains(ids, k.id) {
			left = append(left, k)
		}
	}
	without := newFamily(left)
	for _, k := range without.images[image] {
		if down, up, ok := f.unmerged(k); ok && !without.covered(k) {
			return errorf(CodeIllegal, "volume %s cannot be deleted: volume %s, below it, is illegal, for the merge of %s into %s was not completed: repeat that",
				up.id, k.id, up.id, down.id)
		}
	}
	return nil
}

// topFirst orders volumes so that what is based on one goes before it.
func (f *family) topFirst(all []kin) []uuid.UUID {
	depth := func(k kin) int {
		up, err := f.chain(k.id)
		if err != nil {
			return 0
		}
		return len(up)
	}
	slices.SortFunc(all, func(a, b kin) int { return cmp.Or(cmp.Compare(depth(b), depth(a)), byID(a, b)) })
	ids := make([]uuid.UUID, 0, len(all))
	for _, k := range all {
		if !slices.Contains(ids, k.id) {
			ids = append(ids, k.id)
		}
	}
	return ids
}

// mayDeleteImage decides whether an image may go as a whole, and returns its
// volumes, the topmost first.
func (f *family) mayDeleteImage(image uuid.UUID, force bool) ([]uuid.UUID, error) {
	all := f.images[image]
	if len(all) == 0 {
		return nil, errorf(CodeUnknownImage, "there is no image %s", image)
	}
	if !force {
		if err := f.mayGo(image); err != nil {
			return nil, err
		}
	}
	for _, k := range all {
		if !k.legal() && !force {
			return nil, f.forced(k)
		}
		for _, c := range f.kids[k.id] {
			if c.image != image {
				return nil, errorf(CodeHasChildren, "image %s cannot be deleted: volume %s of image %s is based on it", image, c.id, c.image)
			}
		}
	}
	return f.topFirst(all), nil
}
