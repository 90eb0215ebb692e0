package qcow2

import (
	"fmt"

	"tidemark/internal/block"
	"tidemark/internal/mutant"
	"tidemark/internal/steps"
	"tidemark/qcow2/format"
)

// ReadHeader reads and decodes the header of the image in f and checks that
// its tables lie in the file.
func ReadHeader(f block.File) (*format.Header, error) {
	size := f.Size()
	first := make([]byte, min(size, format.SectorSize))
	if _, err := readFull(f, first, 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	if n := min(size, format.FirstCluster(first)); n > int64(len(first)) {
		first = make([]byte, n)
		if _, err := readFull(f, first, 0); err != nil {
			return nil, fmt.Errorf("read header: %w", err)
		}
	}
	h, err := format.DecodeHeader(first)
	if err != nil {
		return nil, err
	}
	return h, h.CheckLayout(size)
}

// switchHeader changes the header with one write of its first sector, durably.
// Its caller holds allocating, or is the only one to know im.
func (im *Image) switchHeader(change func(*format.Header)) error {
	sector := make([]byte, format.SectorSize)
	if _, err := readFull(im.file, sector, 0); err != nil {
		return im.poison(fmt.Errorf("read header: %w", err))
	}
	im.mu.Lock()
	h := *im.header
	im.mu.Unlock()
	change(&h)
	h.Put(sector)
	if _, err := im.file.WriteAt(sector, 0); err != nil {
		return im.poison(fmt.Errorf("write header: %w", err))
	}
	if err := im.syncUnless(mutant.On("header-switched-unsynced")); err != nil {
		return err
	}
	im.mu.Lock()
	im.header = &h
	im.mu.Unlock()
	im.diskSize.Store(h.Size)
	steps.At("G2")
	return nil
}

// moveBackingName makes room for extensions behind those there are, where the
// backing file's name stands: the name to the end of the first cluster, Sync, its
// offset, Sync, zeroes in its old place, Sync: what stands behind the end mark must
// not look like an extension. It returns the header then, nil if there is no room.
func (im *Image) moveBackingName() (*format.Header, error) {
	im.mu.Lock()
	h := *im.header
	im.mu.Unlock()
	off, ok := h.RoomForBackingName()
	if !ok {
		return nil, nil
	}
	if _, err := im.file.WriteAt([]byte(h.BackingFile), off); err != nil {
		return nil, fmt.Errorf("write backing file name: %w", err)
	}
	if err := im.syncUnless(mutant.On("name-moved-unsynced")); err != nil {
		return nil, err
	}
	sector := make([]byte, format.SectorSize)
	if _, err := readFull(im.file, sector, 0); err != nil {
		return nil, fmt.Errorf("read header: %w", err)
	}
	format.PutBackingOffset(sector, off)
	if _, err := im.file.WriteAt(sector, 0); err != nil {
		return nil, im.poison(fmt.Errorf("write header: %w", err))
	}
	if err := im.syncUnless(false); err != nil {
		return nil, err
	}
	if _, err := im.file.WriteAt(make([]byte, len(h.BackingFile)), h.BackingOffset); err != nil {
		return nil, fmt.Errorf("clear backing file name: %w", err)
	}
	if err := im.syncUnless(mutant.On("old-name-uncleared")); err != nil {
		return nil, err
	}
	h.BackingOffset = off
	im.mu.Lock()
	defer im.mu.Unlock()
	im.header = &h
	return &h, nil
}

// size of the virtual disk in bytes.
func (im *Image) size() int64 { return im.diskSize.Load() }

// writer is WriteAt of the file, or writeDurably.
func (im *Image) writer(durable bool) func(p []byte, off int64) (int, error) {
	if durable {
		return im.writeDurably
	}
	return im.file.WriteAt
}

// putExtension writes a header extension of ours, durably if asked to: over the one
// there is, or behind the others. It reports whether there was room. What makes a
// new one valid is written last; that both parts may land in any order does no
// harm, because what stands behind the end mark is zero or an older one. Its caller
// holds allocating, or has closed the image.
func (im *Image) putExtension(t format.ExtensionType, data []byte, durable bool) (bool, error) {
	write := im.writer(durable)
	im.mu.Lock()
	h := *im.header
	im.mu.Unlock()
	if e, has := h.FindExtension(t); has {
		if len(e.Data) != len(data) {
			return false, nil // of another version: not ours
		}
		_, err := write(data, e.Off)
		return err == nil, err
	}
	off, b, ok := h.PlaceForExtension(t, data)
	if !ok {
		moved, err := im.moveBackingName()
		if err != nil || moved == nil {
			return false, err
		}
		if off, b, ok = moved.PlaceForExtension(t, data); !ok {
			return false, nil
		}
	}
	for _, part := range []struct{ from, to int }{{8, len(b)}, {0, 8}} {
		if _, err := write(b[part.from:part.to], off+int64(part.from)); err != nil {
			return false, fmt.Errorf("write header extension: %w", err)
		}
	}
	again, err := ReadHeader(im.file)
	if err != nil {
		return false, fmt.Errorf("read header: %w", err)
	}
	im.mu.Lock()
	im.header = again
	im.mu.Unlock()
	return true, nil
}
