package spm

import (
	"errors"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"tidemark/internal/hostfile"
)

// A spare is a file with space of its own, which is given up piece by piece when a record
// finds none: metadata, or that of a task. Removing needs such records, and without them
// nobody could make room on a full file system. What records leave of it, and what
// removing frees, is taken back.
type spare struct {
	tree hostfile.Tree
	sync func(*os.File) error

	mu    sync.Mutex
	path  string // "": there is none yet
	short bool   // it may be smaller than it should be
}

// at says where the spare is. It is made when something has been written, or by refill.
func (s *spare) at(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path != path {
		s.path, s.short = path, true
	}
}

// spareSize is what a spare has, in bytes, sparePiece what it gives up at a time, and
// spareLeast the smallest piece that is taken back.
const (
	spareSize  = 1 << 20
	sparePiece = 64 << 10
	spareLeast = 4 << 10
)

// write lets something be written, with the space of the spare if there is no other. What
// is written may be repeated.
func (s *spare) write(do func() error) error {
	err := do()
	for lacksSpace(err) && s.give() {
		err = do()
	}
	if err == nil {
		s.refill()
	}
	return err
}

// lacksSpace reports whether the file system had no space for us.
func lacksSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// give gives a piece up, and reports whether there was one. The sync lets the file system
// use it again at once.
func (s *spare) give() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path == "" {
		return false
	}
	f, err := s.tree.OpenFile(s.path, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // nothing was written
	size := sizeOf(f)
	if size == 0 {
		return false
	}
	s.short = true
	if f.Truncate(max(size-sparePiece, 0)) != nil {
		return false
	}
	_ = s.sync(f) // if it fails, so does what is written next
	return true
}

// refill makes the spare, and takes back what there is space for.
func (s *spare) refill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.path != "" && s.short {
		s.fill()
	}
}

// fill is called with mu held. It is no error if there is no space: there may be later.
func (s *spare) fill() {
	f, err := s.tree.OpenFile(s.path, os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK, modeFile)
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // what matters is what it has
	size := sizeOf(f)
	for piece := int64(spareSize); piece >= spareLeast; piece /= 2 {
		for size+piece <= spareSize && unix.Fallocate(int(f.Fd()), 0, size, piece) == nil {
			size += piece
		}
	}
	s.short = size < spareSize
}

func sizeOf(f *os.File) int64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	return info.Size()
}
