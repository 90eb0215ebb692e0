package spm

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// The tags of a group that is a pool, and of its volumes; VDSM's but for the
// first.
const (
	tagDomain         = "TIDEMARK_domain"
	tagOVirt          = "RHAT_storage_domain" // a group that belongs to oVirt
	tagMeta           = "MDT_"                // of the group: a key of the domain's metadata
	tagImage          = "IU_"
	tagParent         = "PU_"
	tagSlot           = "MD_"
	tagInitializing   = "OVIRT_VOL_INITIALIZING" // until it is complete
	tagVolumeRemoving = "TIDEMARK_removing"      // of one volume: its image is on its way out
	tagSpecial        = "TIDEMARK_special"       // metadata and master
	tagFormatting     = "TIDEMARK_formatting"    // of a group: its domain is being removed
)

// tagForbidden is what a tag of LVM may not contain, and the ampersand, which
// stands before and after the number of such a character.
var (
	tagForbidden = regexp.MustCompile(`[^A-Za-z0-9_+.\-/=!:#]`)
	tagEscape    = regexp.MustCompile(`&(\d+)&`)
)

func encodeTag(s string) string {
	return tagForbidden.ReplaceAllStringFunc(s, func(c string) string {
		r, _ := utf8.DecodeRuneInString(c)
		return fmt.Sprintf("&%d&", r)
	})
}

func decodeTag(s string) string {
	return tagEscape.ReplaceAllStringFunc(s, func(c string) string {
		n, err := strconv.ParseInt(strings.Trim(c, "&"), 10, 32)
		if err != nil || !utf8.ValidRune(rune(n)) {
			return c
		}
		return string(rune(n))
	})
}

// tags are the metadata of a domain as tags of its group, sealed.
func (m domainMeta) tags() []string {
	sealed := maps.Clone(m)
	sealed[keyChecksum] = m.checksum()
	var out []string
	for _, k := range slices.Sorted(maps.Keys(sealed)) {
		out = append(out, encodeTag(tagMeta+k+"="+sealed[k]))
	}
	return out
}

// domainOfTags reads it back; nil if the group is no pool.
func domainOfTags(tags []string) (domainMeta, error) {
	var lines strings.Builder
	for _, t := range tags {
		if line, ok := strings.CutPrefix(decodeTag(t), tagMeta); ok {
			lines.WriteString(line + "\n")
		}
	}
	ours, ovirt := slices.Contains(tags, tagDomain), slices.Contains(tags, tagOVirt)
	switch {
	case ovirt:
		return nil, errorf(CodeForeign, "it is a storage domain of oVirt (tag %s): use another group", tagOVirt)
	case !ours:
		return nil, nil
	}
	return parseDomainMeta([]byte(lines.String()))
}

// idOfTags is which domain they say it is, sealed or not; uuid.Nil if none.
func idOfTags(tags []string) uuid.UUID {
	for _, t := range tags {
		if text, ok := strings.CutPrefix(decodeTag(t), tagMeta+keySDUUID+"="); ok {
			id, err := uuid.Parse(text)
			if err == nil {
				return id
			}
		}
	}
	return uuid.Nil
}

// volumeTags are those of a volume of ours.
type volumeTags struct {
	image        uuid.UUID
	parent       string // as the tag says it; "": it has none
	slot         int    // 0: what says that cannot be used
	lost         error  // why not; nil: it can
	initializing bool
	removing     bool
}

func newVolumeTags(image, parent uuid.UUID, slot int) []string {
	return []string{tagImage + image.String(), tagParent + parent.String(), tagSlot + strconv.Itoa(slot)}
}

// parseVolumeTags reports whether a logical volume is a volume of the pool, which the
// tag of its image says: whatever else is in the group is left alone.
func parseVolumeTags(tags []string) (v volumeTags, ours bool) {
	for _, t := range tags {
		if s, ok := strings.CutPrefix(t, tagImage); ok {
			id, err := uuid.Parse(s)
			v.image, ours = id, err == nil
		}
		if s, ok := strings.CutPrefix(t, tagParent); ok {
			v.parent = s
		}
		v.initializing = v.initializing || t == tagInitializing
		v.removing = v.removing || t == tagVolumeRemoving
	}
	v.slot, v.lost = slotOf(tags)
	return v, ours
}

// slotOf is the slot that the tags of a volume name.
func slotOf(tags []string) (int, error) {
	var all []string
	for _, t := range tags {
		if strings.HasPrefix(t, tagSlot) {
			all = append(all, t)
		}
	}
	if len(all) != 1 {
		return 0, fmt.Errorf("expected one tag %s<slot>, found %s", tagSlot, orNone(strings.Join(all, ", "), "none"))
	}
	n, err := strconv.Atoi(strings.TrimPrefix(all[0], tagSlot))
	if err != nil || n <= 0 || n >= slotCount {
		return 0, fmt.Errorf("its tag %s names no slot: expected %s1 to %s%d", all[0], tagSlot, tagSlot, slotCount-1)
	}
	return n, nil
}

func isVolumeTag(t string) bool {
	return strings.HasPrefix(t, tagImage) || strings.HasPrefix(t, tagParent) || strings.HasPrefix(t, tagSlot)
}

// slotsNamed are the slots that tags name, of whatever logical volume.
func slotsNamed(tags []string) (slots []int) {
	for _, t := range tags {
		if s, ok := strings.CutPrefix(t, tagSlot); ok {
			if n, err := strconv.Atoi(s); err == nil {
				slots = append(slots, n)
			}
		}
	}
	return slots
}
