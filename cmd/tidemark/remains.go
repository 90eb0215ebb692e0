package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"tidemark/internal/hostfile"
	"tidemark/lvm"
	"tidemark/spm"
)

// What a server leaves that is killed: the directory of its image, and the redo rings of
// the volumes that it wrote to. Whoever opens a volume next needs its ring, so that stays
// until the volume goes (remains_rings.go); the directory has a log that somebody may want to read, and goes
// with the image, or when a manager starts and nobody answers in it.

var _ spm.Remains = (*imageServers)(nil)

// storageIDs are the names by which the redo ring of a volume may be found.
func storageIDs(at spm.Place) []string {
	if m := at.Mapping; m != nil {
		return lvm.IDs(m.LVUUID, lvm.DevicePath(m.Group, at.VolumeUUID))
	}
	st, err := hostfile.Tree(at.Beneath).Lstat(at.Path)
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	return []string{hostfile.ID(st)}
}

// OfImage is described at spm.Remains, as the other methods are.
func (s *imageServers) OfImage(image string) {
	if _, err := os.Lstat(s.of(image)); err != nil {
		return // as it is in general
	}
	s.starting.Lock()
	defer s.starting.Unlock()
	s.tidy(context.Background(), image)
}

// sweep removes the directories in which nobody answers. Another manager may be starting
// a server: what is younger than that may take is left alone.
func (s *imageServers) sweep(ctx context.Context) {
	s.starting.Lock()
	defer s.starting.Unlock()
	all, err := os.ReadDir(s.of(""))
	if err != nil {
		return // there is none yet
	}
	for _, e := range all {
		st, err := os.Stat(filepath.Join(s.of(e.Name()), "log"))
		if err == nil && time.Since(st.ModTime()) > serverStart {
			s.tidy(ctx, e.Name())
		}
	}
}

// tidy removes the directory of an image if nobody answers in it. The caller has starting.
func (s *imageServers) tidy(ctx context.Context, image string) {
	ctx, cancel := context.WithTimeout(ctx, tidyLimit)
	defer cancel()
	if _, err := s.Find(ctx, image); !errors.Is(err, fs.ErrNotExist) {
		return // somebody serves it, or hangs
	}
	dir := s.of(image)
	s.removed(dir, os.RemoveAll(dir))
}

// tidyLimit is how long somebody may take to answer who is there.
const tidyLimit = 2 * time.Second

// removed tells of what could not be removed: it takes space, and does no other harm.
func (s *imageServers) removed(path string, err error) {
	if err != nil && s.log != nil {
		s.log.Warn("what a server has left stays", "path", path, "error", err)
	}
}
