package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// create makes the files; see the package comment for the order. The first volume
// of an image comes with the image's directory, every other into it.
func (s *dirStore) create(ctx context.Context, v *volume, fill func(context.Context, block.File) error) error {
	if _, err := s.disk.Lstat(s.domain.image(v.image)); err == nil {
		return s.add(ctx, v, fill)
	}
	dir := s.domain.newImage(v.image)
	if err := s.disk.Mkdir(dir, modeDir); err != nil {
		return err
	}
	path := filepath.Join(dir, v.id.String())
	if err := s.makeVolume(ctx, path, v, fill); err != nil {
		return err
	}
	content, err := v.meta().encode()
	if err != nil {
		return err
	}
	if err := s.disk.replaceFile(path+extMeta, content); err != nil { // syncs dir, too
		return err
	}
	if err := s.disk.Rename(dir, s.domain.image(v.image)); err != nil {
		return err
	}
	return s.disk.syncPath(s.domain.images())
}

// add makes one more volume of an image.
func (s *dirStore) add(ctx context.Context, v *volume, fill func(context.Context, block.File) error) error {
	content, err := v.meta().encode()
	if err != nil {
		return err
	}
	path, dir := s.path(v), s.domain.image(v.image)
	if err := s.disk.makeContent(path+extMeta+extNew, content); err != nil {
		return err
	}
	if err := s.disk.syncPath(dir); err != nil {
		return err
	}
	if err := s.makeVolume(ctx, path, v, fill); err != nil {
		return err
	}
	if err := s.disk.Rename(path+extMeta+extNew, path+extMeta); err != nil {
		return err
	}
	return s.disk.syncPath(dir)
}

// makeVolume makes the file of a volume and its lease, durably but for their names.
func (s *dirStore) makeVolume(ctx context.Context, path string, v *volume, fill func(context.Context, block.File) error) error {
	if err := s.disk.makeFile(path, v.size); err != nil {
		return err
	}
	if err := s.disk.allocate(path, v, v.size); err != nil {
		return err
	}
	if fill != nil {
		if err := s.disk.fillFile(ctx, path, fill); err != nil {
			return err
		}
		if err := s.disk.extendFile(path, v.size); err != nil { // a sync
			return err
		}
	}
	return s.disk.makeFile(path+extLease, 0)
}

// fillFile lets the content be written.
func (d disk) fillFile(ctx context.Context, path string, fill func(context.Context, block.File) error) error {
	f, err := d.OpenImage(path, hostfile.Options{Fixed: true})
	if err != nil {
		return err
	}
	return errors.Join(fill(ctx, f), f.Close())
}

// allocate gives a preallocated volume the space of its first size bytes.
func (d disk) allocate(path string, v *volume, size int64) error {
	if v.meta().Type != Preallocated || size == 0 {
		return nil
	}
	f, err := d.openVolume(path)
	if err != nil {
		return err
	}
	if err = unix.Fallocate(int(f.Fd()), 0, 0, size); errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("%s: its file system cannot allocate space ahead: make the volume %s: %w", path, Sparse, err)
	}
	return errors.Join(err, f.Close())
}

// undo takes away what create has left: of an image that has other volumes, only
// the files of this one.
func (s *dirStore) undo(ctx context.Context, v *volume) error {
	others, err := s.hasOthers(v)
	if err != nil {
		return err
	}
	if others {
		path := s.path(v)
		mark := extMeta + extGone
		err := s.disk.Rename(path+extMeta, path+mark)
		if errors.Is(err, fs.ErrNotExist) {
			mark, err = extMeta+extNew, nil
		}
		if err == nil {
			err = s.disk.syncPath(filepath.Dir(path))
		}
		if err != nil {
			return err
		}
		return s.removeFiles(path, mark)
	}
	if err := s.disk.RemoveAll(s.domain.newImage(v.image)); err != nil {
		return err
	}
	if _, err := s.disk.Lstat(s.domain.image(v.image)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err = s.removeImage(ctx, []*volume{v}) // it has its name, and goes as one that was there
	return err
}

// hasOthers reports whether the image of v has more volumes than that one.
func (s *dirStore) hasOthers(v *volume) (bool, error) {
	files, err := s.disk.ReadDir(s.domain.image(v.image))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.ContainsFunc(volumesIn(files), func(id uuid.UUID) bool { return id != v.id }), err
}

// write replaces the metadata of a volume.
func (s *dirStore) write(_ context.Context, v *volume, m volumeMeta) error {
	content, err := m.encode()
	if err != nil {
		return err
	}
	return s.disk.replaceFile(s.path(v)+extMeta, content)
}

func (s *dirStore) extend(_ context.Context, v *volume, target, _ int64) (int64, error) {
	if err := s.disk.extendFile(s.path(v), target); err != nil {
		return target, err
	}
	return target, s.disk.allocate(s.path(v), v, target)
}

func (s *dirStore) reduce(_ context.Context, v *volume, from, to int64) (int64, error) {
	return to, s.disk.reduceFile(s.path(v), from, to)
}

// remove takes a volume away; a rename is the commit point, of the volume's
// metadata or, if it is the last, of its image.
func (s *dirStore) remove(ctx context.Context, v *volume) (gone bool, err error) {
	others, err := s.hasOthers(v)
	if err != nil {
		return false, err
	}
	if !others {
		all, err := s.removeImage(ctx, []*volume{v})
		return len(all) > 0, err
	}
	path := s.path(v)
	err = s.disk.Rename(path+extMeta, path+extMeta+extGone)
	if errors.Is(err, fs.ErrNotExist) { // damaged: what has no metadata gets the mark all the same
		err = s.disk.makeContent(path+extMeta+extGone, nil)
	}
	if err != nil {
		return false, err
	}
	if err = s.disk.syncPath(filepath.Dir(path)); err == nil {
		err = s.removeFiles(path, extMeta+extGone)
	}
	if err != nil {
		s.log.Error("removed volume is still on disk", "volume", v.name(), "path", path, "error", err)
	}
	return true, err
}

// removeImage takes an image away with all its volumes.
func (s *dirStore) removeImage(_ context.Context, all []*volume) (gone []*volume, err error) {
	image := all[0].image
	away := s.domain.removedImage(image)
	if err := s.disk.Rename(s.domain.image(image), away); err != nil {
		return nil, err
	}
	if err = s.disk.syncPath(s.domain.images()); err == nil {
		err = s.disk.RemoveAll(away)
	}
	if err != nil {
		s.log.Error("removed image is still on disk", "image", image, "path", away, "error", err)
	}
	return all, err
}

// removeFiles removes the files of the volume at path, at last the one by which the
// next start knows that they should go.
func (s *dirStore) removeFiles(path, mark string) error {
	for _, ext := range []string{"", extLease, mark} {
		if ext == mark {
			if err := s.disk.syncPath(filepath.Dir(path)); err != nil {
				return err
			}
		}
		if err := s.disk.Remove(path + ext); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// zero does nothing: a file that was made longer reads zero there.
func (s *dirStore) zero(context.Context, *volume, int64, int64) error { return nil }

// wipe does nothing: what a file system frees it shows to nobody.
func (s *dirStore) wipe(context.Context, *volume) error { return nil }

// scanImage finishes what a crash left of an image's volumes, and reads the others.
func (s *dirStore) scanImage(image uuid.UUID) ([]stored, error) {
	dir := s.domain.image(image)
	if err := s.tidyImage(dir); err != nil {
		return nil, err
	}
	files, err := s.disk.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []stored
	for _, id := range volumesIn(files) {
		v, err := s.readVolume(image, id)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", id, err)
		}
		all = append(all, v)
	}
	return all, nil
}

// volumesIn are the volumes of an image: what has a file, or metadata. What has one of the
// two only, and no mark of what is being made or removed, was not left so by a crash.
func volumesIn(files []fs.DirEntry) (ids []uuid.UUID) {
	for _, e := range files {
		name, isMeta := strings.CutSuffix(e.Name(), extMeta)
		id, err := uuid.Parse(name)
		switch {
		case err != nil || slices.Contains(ids, id):
		case !isMeta && (!e.Type().IsRegular() || lacks(files, name+extMeta) && marked(files, name)):
		default:
			ids = append(ids, id)
		}
	}
	return ids
}

func marked(files []fs.DirEntry, name string) bool {
	return !lacks(files, name+extMeta+extNew) || !lacks(files, name+extMeta+extGone)
}

// tidyImage removes the volumes that were not made to the end, or not removed to
// the end, and metadata that was to replace another. Then the names are durable
// that this manager answers for.
func (s *dirStore) tidyImage(dir string) error {
	files, err := s.disk.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range files {
		name, added := strings.CutSuffix(e.Name(), extMeta+extNew)
		mark := extMeta + extNew
		if !added {
			var removed bool
			if name, removed = strings.CutSuffix(e.Name(), extMeta+extGone); !removed {
				continue
			}
			mark = extMeta + extGone
		}
		if _, err := uuid.Parse(name); err != nil {
			continue
		}
		path := filepath.Join(dir, name)
		if added && !lacks(files, name+extMeta) {
			err = s.disk.Remove(path + mark)
		} else {
			s.log.Warn("removed what a crash left", "volume", path)
			err = s.removeFiles(path, mark)
		}
		if err != nil {
			return err
		}
	}
	return s.disk.syncPath(dir)
}

// lacks reports whether no regular file has that name.
func lacks(files []fs.DirEntry, name string) bool {
	return !slices.ContainsFunc(files, func(e fs.DirEntry) bool { return e.Name() == name && e.Type().IsRegular() })
}

// readVolume reads the metadata of a volume. Without these, or without its file, it is
// damaged.
func (s *dirStore) readVolume(image, id uuid.UUID) (stored, error) {
	path := filepath.Join(s.domain.image(image), id.String())
	v := stored{image: image, id: id}
	info, err := s.disk.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.damaged = fmt.Errorf("%s is not there, and %s is", path, filepath.Base(path)+extMeta)
	case err != nil:
		return stored{}, err
	case !info.Mode().IsRegular():
		v.damaged = fmt.Errorf("%s: expected a regular file, found %s", path, whatIs(info))
	default:
		v.size = info.Size()
	}
	b, err := s.disk.ReadFile(path + extMeta)
	if err == nil {
		v.meta, err = parseVolumeMeta(b)
	}
	if v.lost = err != nil; v.lost && v.damaged == nil {
		v.damaged = fmt.Errorf("%s: %w", path+extMeta, err)
	}
	return v, nil
}
