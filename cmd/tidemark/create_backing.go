package main

import (
	"errors"
	"fmt"
	"os"

	"tidemark/internal/hostfile"
	"tidemark/qcow2"
)

// setBacking puts what -b and -F say in the place of what -o said.
func (s *createSpec) setBacking(file, format string, fileSet, formatSet bool) {
	if fileSet {
		s.BackingFile, s.backingSet = file, true
	}
	if formatSet {
		s.BackingFormat = format
	}
}

// checkBacking says what is wrong with a backing file, without looking at it.
func (s *createSpec) checkBacking() error {
	switch {
	case !s.backingSet && s.BackingFormat != "":
		return fmt.Errorf("backing format %s: expected a backing file with it: -b FILE", s.BackingFormat)
	case !s.backingSet:
		return nil
	case s.format == formatRaw:
		return errors.New("a raw image has no backing file: expected -f qcow2")
	case s.BackingFile == "":
		return errors.New("expected the name of a backing file, found nothing")
	case s.BackingFormat == "":
		return fmt.Errorf("backing file %s: expected its format, which is never guessed: -F raw or -F qcow2", s.BackingFile)
	case s.BackingFormat != formatRaw && s.BackingFormat != formatQCOW2:
		return fmt.Errorf("backing format %s: expected raw or qcow2", s.BackingFormat)
	case hasProtocol(s.BackingFile):
		return fmt.Errorf("backing file %s: expected a file, found what QEMU takes for a protocol: write ./%s if it is a file", s.BackingFile, s.BackingFile)
	}
	return nil
}

// openBacking looks at the backing file, which the user has named: it must be
// there, and the disk is as large as it is unless a size was given. What it is
// based on itself is not looked at. A program may be writing to it.
func (s *createSpec) openBacking(path string) error {
	name := fullBacking(path, s.BackingFile)
	f, err := hostfile.Open(name, hostfile.Options{ReadOnly: true, Lock: hostfile.LockShared})
	if err != nil {
		return fmt.Errorf("backing file: %w; -u does without it", err)
	}
	defer f.Close() //nolint:errcheck // read only
	if itself, err := os.Stat(path); err == nil {
		if same, err := f.Is(itself); err != nil || same {
			return errors.Join(err, fmt.Errorf("backing file %s: expected another file than the image itself", name))
		}
	}
	n := wholeSectors(f.Size())
	if s.BackingFormat == formatQCOW2 {
		h, err := qcow2.ReadHeader(f)
		if err != nil {
			return fmt.Errorf("backing file %s: %w", name, adviseImage(err))
		}
		n = wholeSectors(h.Size)
	}
	if !s.sizeSet {
		s.Size, s.sizeSet = n, true
	}
	return nil
}
