package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/spm/task"
)

// A dirStore is a domain in a directory; see the package comment for its layout.
type dirStore struct {
	dir      string
	lease    Lease
	disk     disk
	domain   domainDir // "" until there is one
	holder   Holder
	hostFree func(dir string) (int64, error)
	log      *slog.Logger
	looked   carried // guarded by Manager.mu
}

// openDir opens a directory for changes, with its lease, and removes what a crash
// has left of a domain that was being made or removed. Nothing is done but beneath root.
func openDir(root, dir string, lease Lease, o Options) (*dirStore, error) {
	tree := hostfile.Tree(root)
	s := &dirStore{dir: dir, lease: lease, disk: disk{tree, o.sync, &spare{tree: tree, sync: o.sync}},
		holder: o.Holder, hostFree: o.HostFree, log: o.Log}
	gone, err := s.disk.removePrefixed(dir, prefixNew, prefixRemoved)
	for _, name := range gone {
		o.Log.Warn("removed what a crash left", "domain", filepath.Join(dir, name))
	}
	return s, err
}

func (s *dirStore) readDomain(context.Context) (domainMeta, error) {
	d, err := findDomain(s.dir)
	if err != nil || d == "" {
		return nil, err
	}
	s.domain = d
	s.disk.spare.at(d.spare())
	return readDomain(d)
}

func (s *dirStore) makeDomain(_ context.Context, m domainMeta) error {
	m[keyType], m[keyRemotePath] = typeDir, s.dir
	d, err := s.disk.makeDomain(s.dir, m)
	if err != nil {
		return err
	}
	s.domain = d
	s.disk.spare.at(d.spare())
	return nil
}

func (s *dirStore) writeDomain(_ context.Context, m domainMeta) error {
	return s.disk.replaceFile(s.domain.metadata(), m.encode())
}

// removeDomain takes the domain away; the rename is the commit point.
func (s *dirStore) removeDomain(context.Context) error {
	away := filepath.Join(s.dir, prefixRemoved+filepath.Base(string(s.domain)))
	if err := s.disk.Rename(string(s.domain), away); err != nil {
		return err
	}
	s.domain = ""
	if err := s.disk.syncPath(s.dir); err != nil {
		return err
	}
	return s.disk.RemoveAll(away)
}

func (s *dirStore) tasks(context.Context) (task.Store, func() error, error) {
	kept, err := task.OpenDirStore(s.domain.tasks(), task.DirStoreOptions{Tree: s.disk.Tree, Log: s.log, Sync: s.disk.sync, Write: s.disk.write})
	return kept, func() error { return nil }, err
}

func (s *dirStore) volumes(context.Context) ([]*volume, error) {
	images, err := s.disk.ReadDir(s.domain.images())
	if err != nil {
		return nil, err
	}
	var all []*volume
	for _, e := range images {
		image, err := uuid.Parse(e.Name())
		if err != nil || !e.IsDir() {
			continue
		}
		files, err := s.disk.ReadDir(s.domain.image(image))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if id, err := uuid.Parse(f.Name()); err == nil && f.Type().IsRegular() {
				all = append(all, &volume{image: image, id: id})
			}
		}
	}
	return all, nil
}

// scan cleans up after a crash and reads the metadata of every volume. The names
// that it finds may not be durable yet; from now on this manager answers for them.
func (s *dirStore) scan(context.Context) ([]stored, error) {
	gone, err := s.disk.removePrefixed(s.domain.images(), prefixNew, prefixRemoved)
	if err != nil {
		return nil, err
	}
	for _, name := range gone {
		s.log.Warn("removed what a crash left", "image", name)
	}
	s.disk.spare.refill()
	images, err := s.disk.ReadDir(s.domain.images())
	if err == nil {
		err = s.disk.syncPath(s.domain.images())
	}
	if err != nil {
		return nil, err
	}
	var all []stored
	for _, e := range images {
		image, err := uuid.Parse(e.Name())
		if err == nil && e.Type() == fs.ModeSymlink {
			s.log.Warn("image that is a symbolic link is ignored", "image", image)
		}
		if err == nil && e.IsDir() {
			of, err := s.scanImage(image)
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", image, err)
			}
			all = append(all, of...)
		}
	}
	return all, nil
}

func (s *dirStore) path(v *volume) string {
	return filepath.Join(s.domain.image(v.image), v.id.String())
}

func (s *dirStore) hold(v *volume) (func() error, error) {
	if err := s.regular(s.path(v)); err != nil {
		return nil, err
	}
	return s.holder.Hold(s.path(v))
}

func (s *dirStore) look(_ context.Context, v *volume) (block.File, error) {
	return s.disk.OpenImage(s.path(v), hostfile.Options{ReadOnly: true, Lock: hostfile.LockNone})
}

func (s *dirStore) confined(v *volume) error {
	err := s.regular(s.path(v))
	if err == nil {
		err = s.regular(s.path(v) + extMeta)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) { // which whoever opens it says
		return nil
	}
	return &Error{Code: CodeDamaged, Message: fmt.Sprintf("volume %s: %v: put its files where they belong", v.id, err), err: err}
}

// regular refuses what is no file, and what lies where a symbolic link leads.
func (s *dirStore) regular(path string) error {
	info, err := s.disk.Lstat(path)
	if err != nil || info.Mode().IsRegular() {
		return err
	}
	return fmt.Errorf("%s: expected a regular file, found %s", path, whatIs(info))
}

func whatIs(info fs.FileInfo) string {
	if info.Mode().Type() == fs.ModeSymlink {
		return "a symbolic link"
	}
	return info.Mode().Type().String()
}

func (s *dirStore) there() error {
	_, err := s.disk.Lstat(s.domain.metadata())
	return err
}

func (s *dirStore) close() error { return s.lease.Release() }

func (s *dirStore) lost() <-chan struct{} { return s.lease.Lost() }

func (s *dirStore) refresh(context.Context) error { return nil }

func (s *dirStore) shared() bool { return false }

// free: what is gone has another name, and its files may be there still.
func (s *dirStore) free() bool { return false }

func (s *dirStore) name() string { return s.dir }

func (s *dirStore) where() string { return s.dir }

func (s *dirStore) kind() string { return typeDir }

func (s *dirStore) grain() int64 { return 1 }

// capacity is what is configured, or what the file system has.
func (s *dirStore) capacity(configured int64) int64 {
	if configured > 0 {
		return configured
	}
	total, err := statfsTotal(s.dir)
	if err != nil {
		s.log.Error("cannot read the size of the file system", "dir", s.dir, "error", err)
		return 0
	}
	return total
}

// carry is what the host's file system has left, less what was promised to
// volumes and they have not used yet.
func (s *dirStore) carry(all map[uuid.UUID]*volume) (int64, error) {
	free, err := s.hostFree(s.dir)
	if err != nil {
		return 0, err
	}
	now := time.Now()
	if left, ok := s.looked.now(now, free, all); ok {
		return left, nil
	}
	s.looked = look(now, free, all, func(v *volume) int64 { return allocated(s.path(v)) })
	return max(free-s.looked.owed, 0), nil
}

func (s *dirStore) describe(v *volume, d *Volume) {
	d.Path, d.Beneath = s.path(v), string(s.disk.Tree)
	d.Allocated = allocated(d.Path)
}

func (s *dirStore) describePool(p *PoolReply) { p.Dir = s.dir }

func (s *dirStore) length(v *volume, most int64) int64 { return lengthOf(s.path(v), most) }
