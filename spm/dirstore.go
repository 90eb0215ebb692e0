package spm

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/google/uuid"
)

// A dirStore is a pool in a directory; see the package comment for its layout.
type dirStore struct {
	dir      string
	lock     *poolLock
	disk     disk
	domain   domainDir // "" until there is one
	holder   Holder
	hostFree func(dir string) (int64, error)
	log      *slog.Logger
}

// openDir takes the lock of a directory, which is made when it is not there.
func openDir(dir string, o Options) (*dirStore, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, modeDir); err != nil {
		return nil, fmt.Errorf("pool directory: %w", err)
	}
	lock, err := lockPool(dir)
	if err != nil {
		return nil, err
	}
	return &dirStore{dir: dir, lock: lock, disk: disk{o.sync}, holder: o.Holder, hostFree: o.HostFree, log: o.Log}, nil
}

func (s *dirStore) readDomain(context.Context) (domainMeta, error) {
	if _, err := s.disk.removePrefixed(s.dir, prefixNew); err != nil {
		return nil, err
	}
	d, err := findDomain(s.dir)
	if err != nil || d == "" {
		return nil, err
	}
	s.domain = d
	return readDomain(d)
}

func (s *dirStore) makeDomain(_ context.Context, m domainMeta) error {
	m[keyType], m[keyRemotePath] = typeDir, s.dir
	d, err := s.disk.makeDomain(s.dir, m)
	if err != nil {
		return err
	}
	s.domain = d
	return nil
}

func (s *dirStore) writeDomain(_ context.Context, m domainMeta) error {
	return s.disk.replaceFile(s.domain.metadata(), m.encode())
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
	images, err := os.ReadDir(s.domain.images())
	if err == nil {
		err = s.disk.syncPath(s.domain.images())
	}
	if err != nil {
		return nil, err
	}
	var all []stored
	for _, e := range images {
		if image, err := uuid.Parse(e.Name()); err == nil && e.IsDir() {
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

func (s *dirStore) hold(v *volume) (func() error, error) { return s.holder.Hold(s.path(v)) }

func (s *dirStore) close() error { return s.lock.release() }

func (s *dirStore) refresh(context.Context) error { return nil }

func (s *dirStore) shared() bool { return false }

func (s *dirStore) name() string { return s.dir }

func (s *dirStore) kind() string { return typeDir }

func (s *dirStore) grain() int64 { return 1 }

func (s *dirStore) capacity(configured int64) int64 { return configured }

// carry is what the host's file system has left, less what was promised to
// volumes and they have not used yet.
func (s *dirStore) carry(all map[uuid.UUID]*volume) (int64, error) {
	free, err := s.hostFree(s.dir)
	if err != nil {
		return 0, err
	}
	for _, v := range all {
		if owed := v.size - allocated(s.path(v)); owed > 0 {
			free -= owed
		}
	}
	return max(free, 0), nil
}

func (s *dirStore) describe(v *volume, d *Volume) {
	d.Path = s.path(v)
	d.Allocated = allocated(d.Path)
}

func (s *dirStore) describePool(p *PoolReply) { p.Dir = s.dir }

func (s *dirStore) length(v *volume, most int64) int64 { return lengthOf(s.path(v), most) }
