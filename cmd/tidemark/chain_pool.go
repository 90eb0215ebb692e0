package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
	"tidemark/spm"
)

// openVolumesBelow opens what a volume of a pool is based on, the nearest first.
// What that is, where it is and in which format, says the pool: neither a name nor
// a format in an image's header is believed (rule 23). All of a chain lies in one domain,
// and is looked up there: a template may have been copied to others. All are opened for reading
// only, and their locks let others read them, too: two volumes over one template
// can be open at the same time.
func (d *disk) openVolumesBelow(ctx context.Context, top *spm.VolumeHandle) (c chain, err error) {
	defer func() {
		if err != nil {
			c, err = nil, errors.Join(err, c.Close())
		}
	}()
	seen := map[string]bool{top.Info().VolumeUUID: true}
	for upper := top.Info(); upper.ParentUUID != ""; {
		parent := upper.ParentUUID
		fail := func(err error) (chain, error) {
			return c, fmt.Errorf("volume %s, which %s is based on: %w", parent, upper.VolumeUUID, err)
		}
		switch {
		case upper.Format == spm.FormatRaw:
			return fail(fmt.Errorf("a raw volume is based on nothing: %w", block.ErrUnsupported))
		case seen[parent]:
			return fail(errors.New("it is in the chain already: expected a chain without a loop"))
		case len(c) == maxChain:
			return fail(fmt.Errorf("the chain is longer than %d volumes: expected an end", maxChain))
		}
		seen[parent] = true
		l, err := d.openBelow(ctx, parent)
		if err != nil {
			return fail(err)
		}
		c = append(c, l)
		upper = l.volume.Info()
	}
	return c, nil
}

// openBelow opens the file of one volume for reading.
func (d *disk) openBelow(ctx context.Context, volume string) (*layer, error) {
	h, err := d.lookUp(ctx, volume)
	if err != nil {
		return nil, err
	}
	l := d.volumeLayer(h)
	return l, l.openFile(ctx, true)
}

// volumeLayer is a volume that is not open yet.
func (d *disk) volumeLayer(h *spm.VolumeHandle) *layer {
	l := &layer{path: h.Path(), format: h.Info().Format, volume: h, size: h.Info().Size, exchanged: d.spec.Exchanged}
	l.again = func(ctx context.Context, readOnly bool) (block.File, *hostfile.File, error) {
		return d.spec.opener()(ctx, h, volumeAccess{readOnly: readOnly, noDM: d.spec.NoDM, log: d.spec.Log})
	}
	return l
}

// openFile opens the file of a volume, and reads its header.
func (l *layer) openFile(ctx context.Context, readOnly bool) (err error) {
	if l.file, l.host, err = l.again(ctx, readOnly); err != nil {
		l.file = nil
		return err
	}
	if l.format == spm.FormatQCOW2 {
		if l.header, err = qcow2.ReadHeader(l.file); err != nil {
			err = errors.Join(adviseImage(err), l.file.Close())
			l.file = nil
		}
	}
	return err
}

// A volumeAccess says how the file of a volume is opened.
type volumeAccess struct {
	readOnly   bool
	forceShare bool // put up with a writer
	noDM       bool
	log        *slog.Logger
}

// A volumeOpener opens the file or the logical volume of a volume. host is the file, nil
// for a logical volume.
type volumeOpener func(ctx context.Context, h *spm.VolumeHandle, a volumeAccess) (file block.File, host *hostfile.File, err error)

func (s diskSpec) opener() volumeOpener {
	if s.Opener != nil {
		return s.Opener
	}
	return openVolumeFile
}

// openVolumeFile opens what a volume is, as volumeOpener says.
func openVolumeFile(ctx context.Context, h *spm.VolumeHandle, a volumeAccess) (file block.File, host *hostfile.File, err error) {
	if h.Mapping() != nil {
		f, err := openVolumeLV(ctx, h, a.readOnly, a.noDM, a.log)
		if err != nil {
			return nil, nil, err
		}
		return f, nil, nil
	}
	o := hostfile.Options{ReadOnly: a.readOnly, Fixed: true}
	o.Reduce = func(ctx context.Context, from, to int64) (int64, error) { return reduceVolume(ctx, h, from, to) }
	if a.forceShare {
		o.Lock = hostfile.LockShared
	}
	f, err := h.Tree().OpenImage(h.Path(), o)
	if err != nil {
		return nil, nil, err
	}
	return f, f, nil
}

// settleLimit bounds how long a chain is not opened because what a writer of one of its
// volumes had reserved is given back. Before a volume gets a snapshot that is waited for
// without a limit (jobSettle), so this is about one that a merge has torn, which the next
// merge opens again, and a leaf that is opened for reading: what is left stays until then.
const settleLimit = 5 * time.Second

// replay lets what a process that died had completed in a volume become part of its
// file: who opens it for reading only would not see that. Only the volume's writer
// leaves such a thing behind; without it nothing is done, and others may read it too.
func (l *layer) replay(ctx context.Context, below block.Device, log *slog.Logger) error {
	dir := l.redoDir()
	if l.again == nil || !hasEntries(dir) {
		return nil
	}
	if left, err := qcow2.LeftBehind(l.file, dir); err == nil && !left {
		return nil
	}
	if err := l.file.Close(); err != nil {
		return err
	}
	err := l.openFile(ctx, false)
	if err == nil {
		var image *qcow2.Image
		image, err = openDistrusted(ctx, l.file, l.host, l.path, qcow2.Options{RedoDir: dir, Backing: below, Logger: log})
		if err == nil {
			settled, cancel := context.WithTimeout(ctx, settleLimit)
			_ = awaitSettled(settled, image) // what is not done by then is left
			cancel()
			err = image.Close()
		}
		err = errors.Join(err, l.file.Close())
		_ = os.Remove(dir) // it is empty then
	}
	if err != nil {
		err = fmt.Errorf("complete what a process that died has left: %w", err)
	}
	return errors.Join(err, l.openFile(ctx, true))
}

// hasEntries reports whether there is something in a directory.
func hasEntries(dir string) bool {
	if dir == "" {
		return false
	}
	all, err := os.ReadDir(dir)
	return err == nil && len(all) > 0
}
