package qcow2

import (
	"errors"
	"fmt"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// checkFeatures refuses what is missing here, by its name.
func checkFeatures(h *format.Header, o Options) error {
	refuse := func(feature, advice string) error {
		return &format.UnsupportedError{Feature: feature, Advice: advice}
	}
	if err := refuseIncompatible(h); err != nil {
		return err
	}
	switch {
	case h.CryptMethod != 0:
		return refuse(fmt.Sprintf("encryption (method %d)", h.CryptMethod), "decrypt it with qemu-img convert")
	case h.BackingFile != "" && o.Backing == nil:
		return &BackingError{Name: h.BackingFile, Format: h.BackingFormat()}
	case h.BackingFile == "" && o.Backing != nil:
		return errors.New("image names no backing file, and one was given")
	case o.ReadOnly:
		return nil
	}
	return Writable(h)
}

// Writable says what in its header forbids to write to an image; nil: nothing does. The
// error is an [UnsupportedError], or wraps block.ErrUnsupported.
func Writable(h *format.Header) error {
	switch {
	case h.Incompatible&format.IncompatCorrupt != 0:
		return markedError("image is marked corrupt: mend it with qemu-img check -r all, or open it read-only")
	case h.Incompatible&format.IncompatDirty != 0:
		return markedError("image is marked dirty (its reference counts may be wrong): mend it with qemu-img check -r all, or open it read-only")
	case h.Extension(format.ExtBitmaps) != nil:
		return &format.UnsupportedError{Feature: "persistent bitmaps, for writing", Advice: "open it read-only, or remove them with qemu-img bitmap --remove"}
	}
	return nil
}

// A markedError says that an image says of itself that it must not be written to.
type markedError string

func (e markedError) Error() string { return string(e) }

func (e markedError) Is(target error) bool { return target == block.ErrUnsupported }

// A BackingError says that an image was to be opened without the backing file
// that it names. The name is never followed here (rule 23).
type BackingError struct {
	Name, Format string // as the image has them; Format may be empty
}

func (e *BackingError) Error() string {
	return fmt.Sprintf("image has the backing file %q (format %q), which is not opened unless it is named or allowed", e.Name, e.Format)
}

// refuseIncompatible refuses incompatible features by their names, but for those
// that matter to some uses of an image only.
func refuseIncompatible(h *format.Header) error {
	const known = format.IncompatDirty | format.IncompatCorrupt | format.IncompatCompressionType | format.IncompatExtendedL2
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
