package format

import (
	"bytes"
	"fmt"
)

// Feature bits of the header (version 3).
const (
	IncompatDirty           = 1 << 0 // reference counts may be wrong
	IncompatCorrupt         = 1 << 1 // must not be written to
	IncompatDataFile        = 1 << 2 // data is in an external file
	IncompatCompressionType = 1 << 3 // compressed clusters are not deflate
	IncompatExtendedL2      = 1 << 4 // L2 entries are 128 bits with subclusters

	CompatLazyRefcounts = 1 << 0

	AutoclearBitmaps = 1 << 0 // the bitmaps extension is consistent
	AutoclearRawData = 1 << 1 // the external data file is a raw image
)

// FeatureType is the first byte of a feature name table entry: the bitmap that
// the bit belongs to.
type FeatureType uint8

// The feature types.
const (
	Incompatible FeatureType = iota
	Compatible
	Autoclear
)

// A FeatureName is one entry of the feature name table.
type FeatureName struct {
	Type FeatureType
	Bit  uint8
	Name string // at most 46 bytes
}

// KnownFeatures are the feature bits that the specification defines, by the
// names that QEMU writes.
func KnownFeatures() []FeatureName {
	return []FeatureName{
		{Incompatible, 0, "dirty bit"},
		{Incompatible, 1, "corrupt bit"},
		{Incompatible, 2, "external data file"},
		{Incompatible, 3, "compression type"},
		{Incompatible, 4, "extended L2 entries"},
		{Compatible, 0, "lazy refcounts"},
		{Autoclear, 0, "bitmaps"},
		{Autoclear, 1, "raw external data"},
	}
}

// An entry of the feature name table:
//
//	0      type
//	1      bit
//	2-47   name, padded with zeros
const (
	featureEntryLen = 48
	featureNameLen  = 46
)

// EncodeFeatureNames is the data of a feature name table.
func EncodeFeatureNames(names []FeatureName) []byte {
	b := make([]byte, len(names)*featureEntryLen)
	for i, n := range names {
		e := b[i*featureEntryLen:]
		e[0], e[1] = byte(n.Type), n.Bit
		copy(e[2:2+featureNameLen], n.Name)
	}
	return b
}

// DecodeFeatureNames is the reverse; an incomplete last entry is left out.
func DecodeFeatureNames(b []byte) []FeatureName {
	names := make([]FeatureName, 0, len(b)/featureEntryLen)
	for ; len(b) >= featureEntryLen; b = b[featureEntryLen:] {
		name, _, _ := bytes.Cut(b[2:featureEntryLen], []byte{0})
		names = append(names, FeatureName{FeatureType(b[0]), b[1], string(name)})
	}
	return names
}

// FeatureName names a feature bit: as the specification does, else as the
// image's own table does, else by its number.
func (h *Header) FeatureName(t FeatureType, bit uint8) string {
	own := DecodeFeatureNames(h.Extension(ExtFeatureNames))
	for _, n := range append(KnownFeatures(), own...) {
		if n.Type == t && n.Bit == bit && n.Name != "" {
			return fmt.Sprintf("%q", n.Name)
		}
	}
	return fmt.Sprintf("unknown %s feature bit %d", [...]string{"incompatible", "compatible", "autoclear"}[t], bit)
}
