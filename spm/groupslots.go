package spm

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// Where the metadata of volumes lies in the logical volume metadata, as in VDSM's V5: a
// slot of 8 KiB for each, from 1 MiB on, of which 512 bytes are used, so that a power cut
// leaves the old or the new. Slot 0 is reserved.
//
// A slot is of the volume whose tag names it. Tags can be changed by hand, so that two
// name one slot, or none does: what is in the slot then says whose it is, and who it is
// not of is damaged. A slot that any tag in the group names, whosever, is given to nobody,
// nor is one that holds metadata of an image of which a volume has lost its own: while it
// is there, a tag mends the volume.
const (
	slotBase  = 1 << 20
	slotSize  = 8 << 10
	slotCount = (specialSize - slotBase) / slotSize
)

func (s *groupStore) readSlot(slot int) (volumeMeta, error) {
	b := make([]byte, volumeMetaMaxSize)
	if _, err := s.meta.ReadAt(b, slotBase+int64(slot)*slotSize); err != nil {
		return volumeMeta{}, err
	}
	return parseVolumeMeta(b)
}

func (s *groupStore) writeSlot(slot int, m volumeMeta) error {
	content, err := m.encode()
	if err != nil {
		return err
	}
	b := make([]byte, volumeMetaMaxSize)
	copy(b, content)
	_, err = s.meta.WriteAtSync(b, slotBase+int64(slot)*slotSize)
	return err
}

// takeSlot takes a free one for a logical volume that is about to be made.
func (s *groupStore) takeSlot(name string) (int, error) {
	named := map[int]bool{}
	for _, l := range s.group.State().Volumes {
		for _, n := range slotsNamed(l.Tags) {
			named[n] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := 1; n < slotCount; n++ {
		if s.slots[n] == "" && !named[n] {
			s.slots[n] = name
			return n, nil
		}
	}
	return 0, fmt.Errorf("the pool has %d volumes, and its metadata has no room for more: remove some", slotCount-1)
}

// ownSlot is the slot of a logical volume, unless its tag is not what it was when the
// manager took the volume over.
func (s *groupStore) ownSlot(name string, tags volumeTags) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tags.slot > 0 && s.slots[tags.slot] == name {
		return tags.slot, nil
	}
	return 0, fmt.Errorf("the tag %s<slot> of logical volume %s was changed by somebody else: correct it with lvchange, or start the manager again",
		tagSlot, name)
}

// keepSlot lets a logical volume that is shown to nobody keep what its tag names.
func (s *groupStore) keepSlot(l GroupVolume) {
	if tags, _ := parseVolumeTags(l.Tags); tags.slot > 0 {
		s.slots[tags.slot] = l.Name
	}
}

// keepLost keeps the slots that hold metadata of images with damaged volumes, until the
// next start, and tells the volumes where their metadata may be.
func (s *groupStore) keepLost(all []stored) {
	lost := map[uuid.UUID][]string{}
	for _, v := range all {
		if v.damaged != nil {
			lost[v.image] = nil
		}
	}
	if len(lost) == 0 {
		return
	}
	for n := 1; n < slotCount; n++ {
		if s.slots[n] != "" {
			continue
		}
		if m, err := s.readSlot(n); err == nil {
			if tags, is := lost[m.Image]; is {
				s.slots[n] = tagImage + m.Image.String()
				lost[m.Image] = append(tags, tagSlot+strconv.Itoa(n))
			}
		}
	}
	for i, v := range all {
		if tags := lost[v.image]; v.damaged != nil && len(tags) > 0 {
			all[i].damaged = fmt.Errorf("%w; metadata of its image that are nobody's: %s", v.damaged, strings.Join(tags, ", "))
		}
	}
}

// freeSlot gives back what a logical volume that is gone had taken.
func (s *groupStore) freeSlot(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.slots, func(_ int, owner string) bool { return owner == name })
}

// A slotContent is what is in a slot, or why that cannot be read, and whose it is.
type slotContent struct {
	meta  volumeMeta
	err   error
	named map[string]volumeTags // of the logical volumes whose tags name it
	owner string                // of them; "": nobody knows
}

// readSlots reads the slots that the tags of volumes name.
func (s *groupStore) readSlots(all []GroupVolume) map[int]slotContent {
	slots := map[int]slotContent{}
	for _, l := range all {
		tags, _ := parseVolumeTags(l.Tags)
		c, there := slots[tags.slot]
		if !there {
			c.named = map[string]volumeTags{}
			c.err = tags.lost
		}
		if !there && c.err == nil {
			if c.meta, c.err = s.readSlot(tags.slot); c.err != nil {
				c.err = fmt.Errorf("slot %d of logical volume %s: %w", tags.slot, lvMetadata, c.err)
			}
		}
		c.named[l.Name] = tags
		slots[tags.slot] = c
	}
	for n, c := range slots {
		if c.err == nil {
			c.owner = ownerOf(c.meta, c.named)
			slots[n] = c
		}
	}
	return slots
}

// ownerOf is which of the logical volumes that name a slot it is of: that of the image
// which it says, and of several the one that is based on what it says. "": nobody knows.
func ownerOf(m volumeMeta, named map[string]volumeTags) string {
	var of, based []string
	for name, tags := range named {
		if tags.image != m.Image {
			continue
		}
		of = append(of, name)
		if tags.parent == m.Parent.String() {
			based = append(based, name)
		}
	}
	switch {
	case len(of) == 1:
		return of[0]
	case len(based) == 1:
		return based[0]
	}
	return ""
}

// refuses says why a volume whose tag names the slot has no metadata there.
func (c slotContent) refuses(name string) error {
	tags := c.named[name]
	switch {
	case tags.lost != nil:
		return tags.lost
	case c.owner == name:
		return nil
	case len(c.named) > 1:
		others := slices.Sorted(maps.Keys(c.named))
		others = slices.DeleteFunc(others, func(o string) bool { return o == name })
		return fmt.Errorf("its tag %s%d is another volume's, too (%s): correct one of them with lvchange",
			tagSlot, tags.slot, strings.Join(others, ", "))
	case c.err != nil:
		return c.err
	}
	return fmt.Errorf("its tag %s%d names a slot that is of image %s, and it is of image %s: correct the tag with lvchange",
		tagSlot, tags.slot, c.meta.Image, tags.image)
}
