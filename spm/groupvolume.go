package spm

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// create makes the volume; see the package comment for the order.
func (s *groupStore) create(ctx context.Context, v *volume, fill func(context.Context, block.File) error) error {
	name, meta := v.id.String(), v.meta()
	slot, err := s.takeSlot(name)
	if err != nil {
		return err
	}
	tags := append(newVolumeTags(v.image, meta.Parent, slot), tagInitializing)
	if _, err := s.group.Create(ctx, name, tags, v.size, v.bound > v.size); err != nil {
		if _, there := s.find(name); !there { // else undo does it
			s.freeSlot(name)
		}
		return err
	}
	if fill == nil { // a raw volume is all data, and must not show what lay there before
		fill = func(_ context.Context, f block.File) error { return f.WriteZeroes(0, f.Size()) }
	}
	if err := s.fill(ctx, name, fill); err != nil {
		return err
	}
	if err := s.writeSlot(slot, meta); err != nil {
		return err
	}
	return s.group.RetagVolume(ctx, name, []string{tagInitializing}, nil)
}

// fill writes the content of a volume, durably.
func (s *groupStore) fill(ctx context.Context, name string, fill func(context.Context, block.File) error) error {
	f, err := s.group.Open(ctx, name)
	if err != nil {
		return err
	}
	if err = fill(ctx, f); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s *groupStore) undo(ctx context.Context, v *volume) error {
	_, err := s.remove(ctx, v)
	return err
}

// write replaces the metadata of a volume, and then its tag PU_, which is a copy of
// what the slot says.
func (s *groupStore) write(ctx context.Context, v *volume, m volumeMeta) error {
	l, there := s.find(v.id.String())
	tags, ours := parseVolumeTags(l.Tags)
	if !there || !ours {
		return fmt.Errorf("logical volume %s has been removed, or lost its tags, by somebody else", v.id)
	}
	slot, err := s.ownSlot(l.Name, tags)
	if err != nil {
		return err
	}
	if err := s.writeSlot(slot, m); err != nil {
		return err
	}
	return s.tagParent(ctx, l, m.Parent)
}

// tagParent makes the tag PU_ say what the metadata says.
func (s *groupStore) tagParent(ctx context.Context, l GroupVolume, parent uuid.UUID) error {
	tags, _ := parseVolumeTags(l.Tags)
	if tags.parent == parent.String() {
		return nil
	}
	var old []string
	if tags.parent != "" {
		old = []string{tagParent + tags.parent}
	}
	return s.group.RetagVolume(ctx, l.Name, old, []string{tagParent + parent.String()})
}

func (s *groupStore) extend(ctx context.Context, v *volume, target, most int64) (int64, error) {
	m, err := s.group.Extend(ctx, v.id.String(), target, most)
	return m.Size(), err
}

func (s *groupStore) reduce(ctx context.Context, v *volume, from, to int64) (int64, error) {
	m, err := s.group.Reduce(ctx, v.id.String(), from, to)
	return m.Size(), err
}

// remove removes the logical volume, which is the commit point. Its slot is free
// then, unless the tag of another one names it.
func (s *groupStore) remove(ctx context.Context, v *volume) (gone bool, err error) {
	err = s.group.Remove(ctx, v.id.String())
	if err != nil {
		if _, still := s.find(v.id.String()); still {
			return false, err
		}
	}
	s.freeSlot(v.id.String())
	return true, err
}

// removeImage marks the last volume, which is the commit point if there are
// several, and removes them one after the other.
func (s *groupStore) removeImage(ctx context.Context, all []*volume) (gone []*volume, err error) {
	last := all[len(all)-1]
	if len(all) > 1 {
		l, _ := s.find(last.id.String())
		if tags, _ := parseVolumeTags(l.Tags); !tags.removing {
			if err := s.group.RetagVolume(ctx, last.id.String(), nil, []string{tagVolumeRemoving}); err != nil {
				return nil, err
			}
		}
	}
	for _, v := range all {
		away, err := s.remove(ctx, v)
		if away {
			gone = append(gone, v)
		}
		if err != nil {
			return gone, err
		}
	}
	return gone, nil
}

// wipe zeroes a volume, durably: the next one may get its extents.
func (s *groupStore) wipe(ctx context.Context, v *volume) error { return s.zero(ctx, v, 0, v.size) }

// zero writes zeroes, in pieces between which it may end.
func (s *groupStore) zero(ctx context.Context, v *volume, from, to int64) error {
	return s.fill(ctx, v.id.String(), func(ctx context.Context, f block.File) error {
		const piece = 64 << 20
		for to = min(to, f.Size()); from < to; from += piece {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := f.WriteZeroes(from, min(piece, to-from)); err != nil {
				return err
			}
		}
		return nil
	})
}

// scan removes what was not completed, or not removed to the end, and reads the
// metadata of every volume.
func (s *groupStore) scan(ctx context.Context) ([]stored, error) {
	if err := s.openMeta(ctx); err != nil {
		return nil, err
	}
	removing, err := s.finishRemoving(ctx)
	if err != nil {
		return nil, err
	}
	var whole []GroupVolume
	for _, l := range s.group.State().Volumes {
		tags, ours := l.volume()
		if !ours && slices.ContainsFunc(l.Tags, isVolumeTag) {
			s.log.Warn("logical volume has tags of a volume, but not its name or its image: it is left alone", "volume", l.Name, "tags", l.Tags)
		}
		if !ours || removing[tags.image] {
			continue
		}
		if !tags.initializing {
			whole = append(whole, l)
		} else if _, err := s.removeUnused(ctx, l); err != nil {
			return nil, fmt.Errorf("volume %s: %w", l.Name, err)
		}
	}
	var all []stored
	slots := s.readSlots(whole)
	for _, l := range whole {
		v, err := s.readVolume(ctx, l, slots)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", l.Name, err)
		}
		all = append(all, v)
	}
	s.keepLost(all)
	return all, nil
}

// readVolume is a volume with its metadata, and corrects its tag.
func (s *groupStore) readVolume(ctx context.Context, l GroupVolume, slots map[int]slotContent) (stored, error) {
	tags, _ := parseVolumeTags(l.Tags)
	v := stored{image: tags.image, id: uuid.MustParse(l.Name), size: l.Size}
	if l.Unusable != nil {
		s.log.Warn("volume cannot be used", "volume", v.id, "error", l.Unusable)
	}
	slot := slots[tags.slot]
	if v.damaged = slot.refuses(l.Name); v.damaged != nil {
		parent, err := uuid.Parse(tags.parent)
		v.meta.Parent, v.lost = parent, err != nil
		return v, nil
	}
	s.slots[tags.slot] = l.Name
	v.meta = slot.meta
	return v, s.tagParent(ctx, l, v.meta.Parent)
}

// finishRemoving removes the images whose removal had begun, the marked volume at
// last, and returns those of which somebody still has a volume open: they are kept
// until the next start, and shown to nobody.
func (s *groupStore) finishRemoving(ctx context.Context) (kept map[uuid.UUID]bool, err error) {
	kept = map[uuid.UUID]bool{}
	all := s.group.State().Volumes
	for _, marked := range all {
		of, ours := parseVolumeTags(marked.Tags)
		if !ours || !of.removing {
			continue
		}
		image := []GroupVolume{}
		for _, l := range all {
			if tags, ours := parseVolumeTags(l.Tags); ours && tags.image == of.image && l.Name != marked.Name {
				image = append(image, l)
			}
		}
		for _, l := range append(image, marked) {
			if kept[of.image] {
				s.keepSlot(l)
				continue
			}
			gone, err := s.removeUnused(ctx, l)
			if err != nil {
				return nil, fmt.Errorf("volume %s: %w", l.Name, err)
			}
			kept[of.image] = !gone
		}
	}
	return kept, nil
}

// removeUnused removes a volume whose creation or removal was not completed, unless
// somebody has it open: then its slot stays taken, and the next start looks again.
func (s *groupStore) removeUnused(ctx context.Context, l GroupVolume) (gone bool, err error) {
	release, err := s.group.Hold(l.Mapping)
	if errors.Is(err, block.ErrInUse) {
		s.log.Warn("what a crash left is in use, and is kept", "volume", l.Name, "error", err)
		s.keepSlot(l)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer release() //nolint:errcheck // the volume is gone, and its lock with it
	s.log.Warn("removed what a crash left", "volume", l.Name)
	return true, s.group.Remove(ctx, l.Name)
}
