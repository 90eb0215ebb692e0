package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/internal/testenv/guest/wire"
)

func (a *agent) fill(args []string) (string, error) {
	var tree wire.Tree
	if err := json.Unmarshal([]byte(args[1]), &tree); err != nil {
		return "", err
	}
	sizes := tree.Sizes()
	files, written := make(chan int), make(chan error)
	for range tree.Writers {
		go func() {
			for i := range files {
				written <- writeFile(filepath.Join(args[0], tree.Name(i)), sizes[i], tree.Content(i), tree.Synced(i))
			}
		}()
	}
	go func() {
		defer close(files)
		for i := range sizes {
			files <- i
		}
	}()
	var all error
	for i := range sizes {
		all = errors.Join(all, <-written)
		if err := a.tell(i + 1); err != nil {
			return "", err
		}
	}
	return "", all
}

// writeFile makes a file of size bytes, in pieces as a program would.
func writeFile(path string, size int64, content io.Reader, sync bool) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	piece := make([]byte, 128<<10)
	for at := int64(0); at < size && err == nil; at += int64(len(piece)) {
		p := piece[:min(int64(len(piece)), size-at)]
		_, _ = content.Read(p) // of a generator
		_, err = f.Write(p)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// remove commits what it has freed: until then the file system does not trim it.
func remove(args []string) (string, error) {
	if err := os.RemoveAll(args[0]); err != nil {
		return "", err
	}
	unix.Sync()
	return "", nil
}
