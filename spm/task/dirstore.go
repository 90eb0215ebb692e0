package task

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/google/uuid"

	"tidemark/internal/hostfile"
)

// A DirStore keeps every record in a file of a directory, which is named as the
// task's id:
//
//	<dir>/<id>        JSON
//	<dir>/.<id>.new   a record that is being written
//
// What a crash leaves:
//
//	save:   1 write .<id>.new, fsync   -> removed by Load
//	        2 rename to <id>           -> commit point, the old record or the new
//	        3 fsync the directory
//	delete: 1 unlink <id>              -> commit point
//	        2 fsync the directory
//
// Load syncs the directory before it looks, because the names that it finds may be
// in the host's cache only. A sync that has failed is not counted on: the next Save
// writes a new file, and its sync of the directory covers the new name.
type DirStore struct {
	mu  sync.RWMutex // Load has the directory for itself; held across I/O
	dir string
	o   DirStoreOptions
}

// DirStoreOptions are a DirStore's. The zero value works.
type DirStoreOptions struct {
	// Tree is what the directory lies in: nothing is done beyond it, nor where a symbolic link
	// leads. "": the whole file system.
	Tree hostfile.Tree
	Log  *slog.Logger
	Sync func(*os.File) error // nil: fsync
	// Write lets a record be written, and may do so again if there was no space. nil: once.
	Write func(do func() error) error
}

var _ Store = (*DirStore)(nil)

const (
	extNew   = ".new"
	modeFile = 0o660
	modeDir  = 0o770
)

// OpenDirStore returns the store in a directory, which it makes if it is not there.
func OpenDirStore(dir string, o DirStoreOptions) (*DirStore, error) {
	if o.Tree == "" {
		o.Tree = "/"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Sync == nil {
		o.Sync = (*os.File).Sync
	}
	if o.Write == nil {
		o.Write = func(do func() error) error { return do() }
	}
	s := &DirStore{dir: dir, o: o}
	if err := s.makeDir(dir); err != nil {
		return nil, fmt.Errorf("directory of tasks: %w", err)
	}
	return s, nil
}

// makeDir makes a directory, and those above it, durably.
func (s *DirStore) makeDir(dir string) error {
	err := s.o.Tree.Mkdir(dir, modeDir)
	parent := filepath.Dir(dir)
	switch {
	case errors.Is(err, fs.ErrExist):
		info, err := s.o.Tree.Lstat(dir)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a directory", dir)
		}
		return err
	case errors.Is(err, fs.ErrNotExist) && parent != dir:
		if err := s.makeDir(parent); err != nil {
			return err
		}
		err = s.o.Tree.Mkdir(dir, modeDir)
	}
	if err != nil {
		return err
	}
	return s.syncDir(parent)
}

// Load is described at Store.
func (s *DirStore) Load(ctx context.Context) ([]Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries, err := s.o.Tree.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if _, ours := newName(e.Name()); ours && e.Type().IsRegular() {
			if err := s.o.Tree.Remove(filepath.Join(s.dir, e.Name())); err != nil {
				return nil, err
			}
		}
	}
	if err := s.syncDir(s.dir); err != nil {
		return nil, err
	}
	var records []Record
	for _, e := range entries {
		if _, ours := newName(e.Name()); ours {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r, err := s.load(e)
		if err != nil {
			s.o.Log.Warn("not a task, left alone", "path", filepath.Join(s.dir, e.Name()), "err", err)
			continue
		}
		records = append(records, r)
	}
	return records, nil
}

// newName reports whether a file is a record that was being written.
func newName(name string) (uuid.UUID, bool) {
	name, dot := strings.CutPrefix(name, ".")
	name, isNew := strings.CutSuffix(name, extNew)
	id, err := uuid.Parse(name)
	return id, dot && isNew && err == nil
}

// load reads one record. What is there and cannot be read is as good as damaged.
func (s *DirStore) load(e fs.DirEntry) (Record, error) {
	id, err := uuid.Parse(e.Name())
	switch {
	case err != nil || id.String() != e.Name():
		return Record{}, errors.New("its name is no UUID")
	case !e.Type().IsRegular():
		return Record{}, fmt.Errorf("it is no regular file: %s", e.Type())
	}
	info, err := e.Info()
	if err != nil {
		return Record{}, err
	}
	if info.Size() > recordMax {
		return Record{}, fmt.Errorf("%d bytes, a record has at most %d", info.Size(), recordMax)
	}
	p, err := s.o.Tree.ReadFile(filepath.Join(s.dir, e.Name()))
	if err != nil {
		return Record{}, err
	}
	r, err := decode(p)
	if err == nil && r.ID != id {
		err = fmt.Errorf("it is the record of task %s", r.ID)
	}
	return r, err
}

// Save is described at Store.
func (s *DirStore) Save(_ context.Context, r Record) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, err := encode(r)
	if err != nil {
		return err
	}
	return s.o.Write(func() error { return s.write(r.ID, p) })
}

// write replaces the record of a task.
func (s *DirStore) write(id uuid.UUID, p []byte) error {
	path := filepath.Join(s.dir, id.String())
	tmp := filepath.Join(s.dir, "."+id.String()+extNew)
	f, err := s.o.Tree.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, modeFile)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil {
		err = s.o.Sync(f)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.o.Tree.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, s.o.Tree.Remove(tmp))
	}
	return s.syncDir(s.dir)
}

// Delete is described at Store.
func (s *DirStore) Delete(_ context.Context, id uuid.UUID) error {
	err := s.o.Tree.Remove(filepath.Join(s.dir, id.String()))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return s.syncDir(s.dir) // also for one that is gone, and perhaps not durably
}

func (s *DirStore) syncDir(dir string) error {
	f, err := s.o.Tree.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(s.o.Sync(f), f.Close())
}
