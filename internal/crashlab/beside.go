package crashlab

import (
	"bytes"
	"errors"
	"hash/maphash"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// A folder is the content of a directory that an engine keeps things in beside
// its image: files by their name. It survives the death of the process.
type folder map[string][]byte

// saveFolder reads what is in a directory. A file that is changed meanwhile is
// read again: what is saved was there at one moment.
func saveFolder(dir string) (folder, error) {
	if dir == "" {
		return nil, nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	f := folder{}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		once, err := os.ReadFile(path)
		for err == nil {
			var twice []byte
			if twice, err = os.ReadFile(path); bytes.Equal(once, twice) {
				break
			}
			once = twice
		}
		switch {
		case errors.Is(err, os.ErrNotExist): // it has just been removed
		case err != nil:
			return nil, err
		default:
			f[e.Name()] = once
		}
	}
	return f, nil
}

// restore makes dir hold f and nothing else, in new files: who still has the old
// ones open sees no change.
func (f folder) restore(dir string) error {
	if dir == "" {
		return nil
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for name, p := range f {
		if err := os.WriteFile(filepath.Join(dir, name), p, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// sum is a hash of the files, the same in one process only.
func (f folder) sum() uint64 {
	var h maphash.Hash
	h.SetSeed(allowanceSeed)
	for _, name := range slices.Sorted(maps.Keys(f)) {
		_, _ = h.WriteString(name) // it never fails
		_, _ = h.Write(f[name])
	}
	return h.Sum64()
}
