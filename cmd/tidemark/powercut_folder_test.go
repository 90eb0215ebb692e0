package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// A folder is what is in a directory: of files no more than their beginning and their
// length, for what is behind that in volumes is on the disks.
type folder map[string]folderFile

type folderFile struct {
	info  fs.FileInfo
	begin []byte
}

const folderBegin = 1 << 20

// saveFolder reads a directory that nobody changes, or what it was at one moment.
func saveFolder(dir string) (folder, error) {
	for {
		once, err := readFolder(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		twice, terr := readFolder(dir)
		if err == nil && terr == nil && once.same(twice) {
			return once, nil
		}
	}
}

func readFolder(dir string) (folder, error) {
	f := folder{}
	return f, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := e.Info()
		if err != nil || e.IsDir() {
			f[name] = folderFile{info: info}
			return err
		}
		in, err := os.Open(path)
		if err != nil {
			return err
		}
		defer in.Close() //nolint:errcheck // only read
		begin, err := io.ReadAll(io.LimitReader(in, folderBegin))
		f[name] = folderFile{info, begin}
		return err
	})
}

func (f folder) same(g folder) bool {
	for name, a := range f {
		b, there := g[name]
		if !there || a.info.IsDir() != b.info.IsDir() || !a.info.IsDir() && (a.info.Size() != b.info.Size() || !bytes.Equal(a.begin, b.begin)) {
			return false
		}
	}
	return len(f) == len(g)
}

// restore makes a directory what it was.
func (f folder) restore(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	var later []string
	for name, file := range f {
		switch {
		case file.info.IsDir():
			if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
				return err
			}
		default:
			later = append(later, name)
		}
	}
	for _, name := range later {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, f[name].begin, 0o600); err != nil {
			return err
		}
		if err := os.Truncate(path, f[name].info.Size()); err != nil {
			return err
		}
	}
	return nil
}
