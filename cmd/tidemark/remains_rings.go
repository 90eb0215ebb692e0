package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/google/uuid"

	"tidemark/spm"
)

// The redo ring of a volume is removed after the volume: it is needed for as long as there
// is one. A manager that dies in between would leave it for good, for the name of its
// directory does not say whose it is, and the next file may have the inode that it is
// derived from. So there is a note beside the rings before a volume goes,
//
//	DIR/removing/<domain>.<volume>    a goingVolume, as JSON
//
// and the next manager of the domain removes what notes of volumes say that are not there:
// these files, and no others that have come into the same directory since. Both are in
// memory and gone after a boot.

// A goingVolume is a volume that is about to go, and what was left of it.
type goingVolume struct {
	Volume string      `json:"volume_uuid"`
	Place  spm.Place   `json:"place"`
	IDs    []string    `json:"ids"` // of its storage
	Files  []goingFile `json:"files"`
}

// A goingFile is a file in the directory of a ring. There may be another one of that name
// by now.
type goingFile struct {
	Path  string `json:"path"`
	Inode uint64 `json:"inode"`
}

// OfVolume is described at spm.Remains.
func (s *imageServers) OfVolume(domain uuid.UUID, at spm.Place) (remove func()) {
	g := goingVolume{Volume: at.VolumeUUID, Place: at, IDs: storageIDs(at)}
	for _, id := range g.IDs {
		if dir := redoDirOf(redoDir(), id); dir != "" {
			g.Files = append(g.Files, filesIn(dir)...)
		}
	}
	if len(g.Files) == 0 {
		return func() {}
	}
	note := filepath.Join(goingDir(), domain.String()+"."+g.Volume)
	if err := g.write(note); err != nil && s.log != nil {
		s.log.Warn("if this manager dies now, the redo ring of a volume that goes stays", "volume", g.Volume, "error", err)
	}
	return func() { s.forget(note, g) }
}

// Sweep is described at spm.Remains.
func (s *imageServers) Sweep(domain uuid.UUID, there func(volume string) bool) {
	notes, err := filepath.Glob(filepath.Join(goingDir(), domain.String()+".*"))
	if err != nil {
		return // the directory has a strange name
	}
	for _, note := range notes {
		g, err := readGoing(note)
		switch {
		case err != nil:
			s.removed(note, err)
		case there(g.Volume):
			s.removed(note, os.Remove(note)) // it has stayed
		case g.Place.Mapping == nil && slices.ContainsFunc(storageIDs(g.Place), func(id string) bool { return slices.Contains(g.IDs, id) }):
			// Its file is there, and the domain does not know it: somebody may mend that.
		default:
			s.forget(note, g)
		}
	}
}

// goingDir is where the notes are.
func goingDir() string { return filepath.Join(redoDir(), "removing") }

// filesIn are the files in the directory of a ring.
func filesIn(dir string) (all []goingFile) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // there is none
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if inode, err := inodeOf(path); err == nil {
			all = append(all, goingFile{path, inode})
		}
	}
	return all
}

func inodeOf(path string) (uint64, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("%s: its inode is not known: %w", path, fs.ErrInvalid)
	}
	return sys.Ino, nil
}

// write makes the note, whole or not at all.
func (g goingVolume) write(note string) error {
	text, err := json.Marshal(g)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(note), 0o700); err != nil {
		return err
	}
	draft := filepath.Join(filepath.Dir(note), "."+filepath.Base(note))
	if err := os.WriteFile(draft, text, 0o600); err != nil {
		return err
	}
	return os.Rename(draft, note)
}

func readGoing(note string) (g goingVolume, err error) {
	text, err := os.ReadFile(note)
	if err != nil {
		return g, err
	}
	if err := json.Unmarshal(text, &g); err != nil {
		return g, fmt.Errorf("expected a note of a volume that goes: %w", err)
	}
	return g, nil
}

// forget removes what was left of a volume, and the note.
func (s *imageServers) forget(note string, g goingVolume) {
	for _, f := range g.Files {
		if inode, err := inodeOf(f.Path); err != nil || inode != f.Inode {
			continue // it has gone, and what is there is another's
		}
		s.removed(f.Path, os.Remove(f.Path))
		_ = os.Remove(filepath.Dir(f.Path)) // if it is empty
	}
	if err := os.Remove(note); err != nil && !os.IsNotExist(err) {
		s.removed(note, err)
	}
}
