package qcow2

import (
	"fmt"

	"tidemark/qcow2/format"
)

// checkFeatures refuses what is missing here, by its name.
func checkFeatures(h *format.Header, write bool) error {
	refuse := func(feature, advice string) error {
		return &format.UnsupportedError{Feature: feature, Advice: advice}
	}
	if err := refuseIncompatible(h); err != nil {
		return err
	}
	switch {
	case h.CryptMethod != 0:
		return refuse(fmt.Sprintf("encryption (method %d)", h.CryptMethod), "decrypt it with qemu-img convert")
	case h.BackingFile != "":
		return refuse(fmt.Sprintf("a backing file (%q)", h.BackingFile), "flatten it with qemu-img convert")
	case !write:
		return nil
	case h.Incompatible&format.IncompatCorrupt != 0:
		return fmt.Errorf("image is marked corrupt: mend it with qemu-img check -r all, or open it read-only")
	case h.Incompatible&format.IncompatDirty != 0:
		return fmt.Errorf("image is marked dirty (its reference counts may be wrong): mend it with qemu-img check -r all, or open it read-only")
	case h.Snapshots != 0:
		return refuse(fmt.Sprintf("%d internal snapshots, for writing", h.Snapshots), "open it read-only, or delete them with qemu-img snapshot -d")
	case h.Extension(format.ExtBitmaps) != nil:
		return refuse("persistent bitmaps, for writing", "open it read-only, or remove them with qemu-img bitmap --remove")
	}
	return nil
}

// refuseIncompatible refuses incompatible features by their names, but for those
// that matter to some uses of an image only.
func refuseIncompatible(h *format.Header) error {
	const known = format.IncompatDirty | format.IncompatCorrupt | format.IncompatCompressionType
	for bit := range uint8(64) {
		if h.Incompatible&^known&(1<<bit) != 0 {
			return &format.UnsupportedError{Feature: h.FeatureName(format.Incompatible, bit), Advice: "open it with the program that made it"}
		}
	}
	return nil
}

// clearAutoclear clears the autoclear bits that this package does not maintain,
// before anything is written (specification, autoclear_features).
func (im *Image) clearAutoclear() error {
	if im.header.Autoclear == 0 {
		return nil
	}
	return im.switchHeader(func(h *format.Header) { h.Autoclear = 0 })
}
