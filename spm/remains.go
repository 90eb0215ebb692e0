package spm

import "github.com/google/uuid"

// Remains is what processes that served volumes, and died, have left on the host outside
// of the domains. It is needed for as long as there is the volume: who opens it next
// takes over from there. Then it only takes space.
type Remains interface {
	// OfVolume looks for what was left of a volume of a domain, while that is still there
	// and nobody has it open, and returns what removes it. It keeps in mind what it has
	// found until that is called.
	OfVolume(domain uuid.UUID, at Place) (remove func())
	// Sweep removes what OfVolume had found of volumes of a domain that have gone, where
	// the manager has died in between; there tells which volumes the domain has.
	Sweep(domain uuid.UUID, there func(volume string) bool)
	// OfImage removes what was left of the servers of an image that has no volume any
	// more, unless somebody serves an image of that UUID after all.
	OfImage(image string)
}

// noRemains is where nothing is left.
type noRemains struct{}

func (noRemains) OfVolume(uuid.UUID, Place) (remove func()) { return func() {} }
func (noRemains) Sweep(uuid.UUID, func(string) bool)        {}
func (noRemains) OfImage(string)                            {}

// placed says of a volume where it is, and nothing of its format.
func placed(s store, v *volume) Place {
	var d Volume
	s.describe(v, &d)
	p := Place{VolumeUUID: v.id.String(), Path: d.Path, Beneath: d.Beneath, Mapping: d.Mapping}
	if p.Mapping != nil {
		p.Path = ""
	}
	return p
}

// remainsOf looks for what was left of volumes that are about to go, and returns what
// removes that of those that have gone. The caller holds the volumes.
func remainsOf(r Remains, domain uuid.UUID, s store, all []*volume) (remove func(gone []*volume)) {
	of := make(map[uuid.UUID]func(), len(all))
	for _, v := range all {
		of[v.id] = r.OfVolume(domain, placed(s, v))
	}
	return func(gone []*volume) {
		for _, v := range gone {
			of[v.id]()
		}
	}
}
