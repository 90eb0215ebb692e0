package qcow2

import (
	"fmt"

	"tidemark/internal/block"
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
	// Names and extensions reach to the end of the first cluster.
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
	if err := im.sync("switch the header"); err != nil {
		return err
	}
	im.mu.Lock()
	im.header = &h
	im.mu.Unlock()
	return nil
}
