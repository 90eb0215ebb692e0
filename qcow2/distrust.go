package qcow2

import (
	"tidemark/internal/redo"
)

// A DistrustError says that the image stopped, in this boot, in a process that had it
// open before, most likely because a sync failed: what reads return may not be on the
// disk.
type DistrustError struct{}

func (*DistrustError) Error() string {
	return "this image stopped accepting writes since the host was booted, as a sync or a write of its metadata failed or it contradicts itself, " +
		"so the host's cache may hold what the disk does not: drop the cache (or reboot), check the image, then open it"
}

// distrust remembers for the next process of this boot that the image stopped: in the
// ring, at once, and by the file's name for an image that has none (rule 13).
func (im *Image) distrust() {
	if r := im.ring.Load(); r != nil {
		r.Distrust()
	}
	if id := im.file.Info().ID; im.opts.RedoDir != "" && id != "" {
		if err := redo.Mark(im.opts.RedoDir, id); err != nil {
			im.log.Error("cannot remember that the image is not to be trusted: drop the host's cache of it, and check it, before it is opened again", "error", err)
		}
	}
}

// mayTrust returns a DistrustError if the file is marked, unless the mark is to be
// removed.
func (im *Image) mayTrust() error {
	id := im.file.Info().ID
	if im.opts.RedoDir == "" || id == "" {
		return nil
	}
	if im.opts.DropRedo {
		return redo.Unmark(im.opts.RedoDir, id)
	}
	switch marked, err := redo.Marked(im.opts.RedoDir, id); {
	case err != nil:
		return err
	case marked:
		return &DistrustError{}
	}
	return nil
}
