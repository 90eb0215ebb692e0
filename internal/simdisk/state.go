package simdisk

import (
	"fmt"
	"io"
	"os"
)

// A State is the content of a disk that nothing is pending on. It does not
// change, is safe for concurrent use and cheap to copy. The zero State is a disk
// of no bytes.
type State struct {
	image image
	size  int64
}

// Size is the disk's size in bytes.
func (s State) Size() int64 { return s.size }

// Hash is a hash of the content and the size. It is the same for the same content
// in one process only.
func (s State) Hash() uint64 { return s.image.sum() ^ uint64(s.size)*hashFactor }

// Export writes s to a sparse file of the host.
func (s State) Export(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = s.exportTo(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

// exportTo writes the runs of sectors that do not read zero.
func (s State) exportTo(f *os.File) error {
	if err := f.Truncate(s.size); err != nil {
		return err
	}
	var run []byte
	end := int64(0) // of the run, bytes
	flush := func() error {
		at := end - int64(len(run))
		if over := end - s.size; over > 0 {
			run = run[:max(int64(len(run))-over, 0)]
		}
		_, err := f.WriteAt(run, at)
		run = run[:0]
		return err
	}
	err := s.image.each(func(i int64, p *sector) error {
		if i*SectorSize != end || len(run) >= 1<<20 {
			if err := flush(); err != nil {
				return err
			}
		}
		run = append(run, p.data[:]...)
		end = (i + 1) * SectorSize
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// ImportState returns the content of a file.
func ImportState(path string) (State, error) {
	f, err := os.Open(path)
	if err != nil {
		return State{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return State{}, err
	}
	s := State{newImage(), st.Size()}
	var p [SectorSize]byte
	for i := int64(0); i*SectorSize < s.size; i++ {
		clear(p[:])
		if _, err := f.ReadAt(p[:], i*SectorSize); err != nil && err != io.EOF {
			return State{}, fmt.Errorf("import: %w", err)
		}
		if q := newSector(&p); q != nil {
			s.image.set(i, q)
		}
	}
	s.image.sum()
	return s, nil
}
