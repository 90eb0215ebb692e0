package spm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// A disk changes files so that a power cut leaves what the package comment says, and
// never any but those beneath what the administrator has named. Its sync is fsync.
type disk struct {
	hostfile.Tree
	sync  func(*os.File) error
	spare *spare // nil: there is none
}

// write lets something be written that may be repeated, also on a full file system.
func (d disk) write(do func() error) error {
	if d.spare == nil {
		return do()
	}
	return d.spare.write(do)
}

// makeFile makes a file of size bytes that does not exist, durably but for its
// name.
func (d disk) makeFile(path string, size int64) error {
	f, err := d.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, modeFile)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	return errors.Join(err, d.sync(f), f.Close())
}

// replaceFile writes a file so that a crash leaves the old or the new content.
func (d disk) replaceFile(path string, content []byte) error {
	return d.write(func() error {
		tmp := path + extNew
		if err := d.makeContent(tmp, content); err != nil {
			return err
		}
		if err := d.Rename(tmp, path); err != nil {
			return err
		}
		return d.syncPath(filepath.Dir(path))
	})
}

// makeContent makes a file with that content, durably but for its name. When that
// fails it is not there.
func (d disk) makeContent(path string, content []byte) error {
	f, err := d.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NONBLOCK, modeFile)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, d.sync(f), f.Close()); err != nil {
		return errors.Join(err, d.Remove(path))
	}
	return nil
}

// syncPath makes a file, or the names in a directory, durable.
func (d disk) syncPath(path string) error {
	f, err := d.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.sync(f), f.Close())
}

// removePrefixed removes what a crash left half made or half removed in dir, and
// returns the names.
func (d disk) removePrefixed(dir string, prefixes ...string) ([]string, error) {
	entries, err := d.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var gone []string
	for _, e := range entries {
		for _, p := range prefixes {
			id, ours := strings.CutPrefix(e.Name(), p)
			if _, err := uuid.Parse(id); !ours || err != nil {
				continue
			}
			if err := d.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return gone, err
			}
			gone = append(gone, e.Name())
		}
	}
	if len(gone) > 0 {
		return gone, d.syncPath(dir)
	}
	return nil, nil
}

// openVolume opens the file of a volume for a change of its length.
func (d disk) openVolume(path string) (*os.File, error) {
	return d.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
}

// extendFile makes the file at path size bytes long, never shorter, durably.
func (d disk) extendFile(path string, size int64) error {
	f, err := d.openVolume(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() < size {
		err = f.Truncate(size)
	}
	if err == nil {
		err = d.sync(f)
	}
	return errors.Join(err, f.Close())
}

// reduceFile makes the file at path, of exactly from bytes, to bytes long, durably.
func (d disk) reduceFile(path string, from, to int64) error {
	f, err := d.openVolume(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.Size() != from:
		err = fmt.Errorf("%s has %d bytes, expected %d: %w", path, info.Size(), from, block.ErrStale)
	default:
		if err = f.Truncate(to); err == nil {
			err = d.sync(f)
		}
	}
	return errors.Join(err, f.Close())
}
