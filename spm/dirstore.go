package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
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

func (s *dirStore) scanImage(image uuid.UUID) ([]stored, error) {
	files, err := os.ReadDir(s.domain.image(image))
	if err != nil {
		return nil, err
	}
	var all []stored
	for _, e := range files {
		if name, ok := strings.CutSuffix(e.Name(), extMeta); ok && lacks(files, name) {
			s.log.Warn("metadata without the file of its volume is ignored", "image", image, "volume", name)
		}
		id, err := uuid.Parse(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		v, err := s.readVolume(image, id)
		if errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("volume without metadata is ignored", "image", image, "volume", id)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", id, err)
		}
		all = append(all, v)
	}
	return all, nil
}

// lacks reports whether no regular file has that name.
func lacks(files []os.DirEntry, name string) bool {
	return !slices.ContainsFunc(files, func(e os.DirEntry) bool { return e.Name() == name && e.Type().IsRegular() })
}

func (s *dirStore) readVolume(image, id uuid.UUID) (stored, error) {
	path := filepath.Join(s.domain.image(image), id.String())
	b, err := os.ReadFile(path + extMeta)
	if errors.Is(err, fs.ErrNotExist) {
		return stored{}, err
	}
	info, serr := os.Stat(path)
	if serr != nil {
		return stored{}, serr
	}
	v := stored{image: image, id: id, size: info.Size()}
	if err == nil {
		v.meta, err = parseVolumeMeta(b)
	}
	if err != nil {
		v.damaged = fmt.Errorf("%s: %w", path+extMeta, err)
	}
	return v, nil
}

func (s *dirStore) path(v *volume) string {
	return filepath.Join(s.domain.image(v.image), v.id.String())
}

// create makes the files; see the package comment for the order.
func (s *dirStore) create(ctx context.Context, v *volume, fill func(context.Context, block.File) error) error {
	dir := s.domain.newImage(v.image)
	if err := os.Mkdir(dir, modeDir); err != nil {
		return err
	}
	path := filepath.Join(dir, v.id.String())
	if err := s.disk.makeFile(path, v.size); err != nil {
		return err
	}
	if fill != nil {
		if err := fillFile(ctx, path, fill); err != nil {
			return err
		}
		if err := s.disk.extendFile(path, v.size); err != nil { // a sync
			return err
		}
	}
	if err := s.disk.makeFile(path+extLease, 0); err != nil {
		return err
	}
	content, err := v.meta.encode()
	if err != nil {
		return err
	}
	if err := s.disk.replaceFile(path+extMeta, content); err != nil { // syncs dir, too
		return err
	}
	if err := os.Rename(dir, s.domain.image(v.image)); err != nil {
		return err
	}
	return s.disk.syncPath(s.domain.images())
}

// fillFile lets the content be written.
func fillFile(ctx context.Context, path string, fill func(context.Context, block.File) error) error {
	f, err := hostfile.Open(path, hostfile.Options{Fixed: true})
	if err != nil {
		return err
	}
	return errors.Join(fill(ctx, f), f.Close())
}

func (s *dirStore) undo(_ context.Context, v *volume) error {
	return errors.Join(os.RemoveAll(s.domain.newImage(v.image)), os.RemoveAll(s.domain.image(v.image)))
}

func (s *dirStore) extend(_ context.Context, v *volume, target, _ int64) (int64, error) {
	return target, s.disk.extendFile(s.path(v), target)
}

func (s *dirStore) reduce(_ context.Context, v *volume, from, to int64) (int64, error) {
	return to, s.disk.reduceFile(s.path(v), from, to)
}

// remove takes the image away; the rename is the commit point.
func (s *dirStore) remove(_ context.Context, v *volume) (gone bool, err error) {
	away := s.domain.removedImage(v.image)
	if err := os.Rename(s.domain.image(v.image), away); err != nil {
		return false, err
	}
	if err = s.disk.syncPath(s.domain.images()); err == nil {
		err = os.RemoveAll(away)
	}
	if err != nil {
		s.log.Error("removed volume is still on disk", "volume", v.name, "path", away, "error", err)
	}
	return true, err
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
