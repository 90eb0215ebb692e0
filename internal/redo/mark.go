//go:build linux

package redo

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// A Mark says in dir that the storage called name is not to be trusted. The process
// may die as soon as it returns.
func Mark(dir, name string) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("mark of distrust: %w", err)
	}
	if err := os.WriteFile(markPath(dir, name), boot, 0o600); err != nil {
		return fmt.Errorf("mark of distrust: %w", err)
	}
	return nil
}

// Marked reports whether there is a mark of this boot. One that cannot be read is
// one.
func Marked(dir, name string) (bool, error) {
	found, err := os.ReadFile(markPath(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return true, fmt.Errorf("mark of distrust: %w", err)
	}
	boot, err := bootID()
	return err != nil || len(found) == 0 || bytes.Equal(found, boot), err
}

// Unmark removes the mark, if there is one.
func Unmark(dir, name string) error {
	if err := os.Remove(markPath(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("mark of distrust: %w", err)
	}
	return nil
}

func markPath(dir, name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(dir, fmt.Sprintf("distrust-%x", sum[:16]))
}
