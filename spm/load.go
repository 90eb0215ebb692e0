package spm

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// load reads the domain, raises the epoch and finds the volumes.
func (m *Manager) load() error {
	if _, err := m.disk.removePrefixed(m.dir, prefixNew); err != nil {
		return err
	}
	domain, err := findDomain(m.dir)
	if err != nil {
		return err
	}
	if domain == "" {
		if domain, err = m.make(); err != nil {
			return err
		}
	}
	m.domain, m.began = domain, m.o.Now()
	if err := m.start(); err != nil {
		return err
	}
	if err := m.scan(); err != nil {
		return err
	}
	m.o.Log.Info("pool opened", "dir", m.dir, "pool", m.ident.pool, "epoch", m.ident.epoch,
		"volumes", len(m.volumes), "capacity", m.capacity, "granted", m.granted)
	if m.granted > m.capacity {
		m.o.Log.Warn("the volumes are larger than the capacity: nothing is granted until some are removed or the capacity is raised",
			"capacity", m.capacity, "granted", m.granted)
	}
	return nil
}

func (m *Manager) make() (domainDir, error) {
	if m.o.Capacity <= 0 {
		return "", errors.New("there is no pool in it, and a new one needs a capacity: give --capacity SIZE")
	}
	return m.disk.makeDomain(m.dir, newDomainMeta(uuid.New(), uuid.New(), m.dir, m.o.Capacity))
}

// start raises the epoch, and the capacity if asked to, durably.
func (m *Manager) start() error {
	meta, state, err := readDomain(m.domain)
	if err != nil {
		return err
	}
	if state.epoch++; m.o.Capacity > state.capacity {
		state.capacity = m.o.Capacity
	}
	switch {
	case m.o.Capacity > 0 && m.o.Capacity < state.capacity:
		return fmt.Errorf("its capacity is %d bytes and may only be raised, not set to %d: give that much or leave it out",
			state.capacity, m.o.Capacity)
	case state.capacity == 0:
		return errors.New("it has no capacity yet: give --capacity SIZE")
	}
	meta[keyPoolSPMLver] = strconv.FormatInt(state.epoch, 10)
	meta[keyPoolSPMID] = strconv.Itoa(localHostID)
	meta[keyCapacity] = strconv.FormatInt(state.capacity, 10)
	if err := m.disk.replaceFile(m.domain.metadata(), meta.encode()); err != nil {
		return err
	}
	m.ident, m.capacity = state, state.capacity
	return nil
}

// scan cleans up after a crash and reads the metadata of every volume. The names
// that it finds may not be durable yet; from now on this manager answers for them.
func (m *Manager) scan() error {
	gone, err := m.disk.removePrefixed(m.domain.images(), prefixNew, prefixRemoved)
	if err != nil {
		return err
	}
	for _, name := range gone {
		m.o.Log.Warn("removed what a crash left", "image", name)
	}
	images, err := os.ReadDir(m.domain.images())
	if err == nil {
		err = m.disk.syncPath(m.domain.images())
	}
	if err != nil {
		return err
	}
	for _, e := range images {
		if image, err := uuid.Parse(e.Name()); err == nil && e.IsDir() {
			if err := m.scanImage(image); err != nil {
				return fmt.Errorf("image %s: %w", image, err)
			}
		}
	}
	return nil
}

func (m *Manager) scanImage(image uuid.UUID) error {
	files, err := os.ReadDir(m.domain.image(image))
	if err != nil {
		return err
	}
	for _, e := range files {
		if name, ok := strings.CutSuffix(e.Name(), extMeta); ok && lacks(files, name) {
			m.o.Log.Warn("metadata without the file of its volume is ignored", "image", image, "volume", name)
		}
		id, err := uuid.Parse(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		v, err := m.readVolume(image, id)
		if errors.Is(err, fs.ErrNotExist) {
			m.o.Log.Warn("volume without metadata is ignored", "image", image, "volume", id)
			continue
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", id, err)
		}
		if err := m.addLocked(v); err != nil {
			return err
		}
		m.granted += v.size
	}
	return nil
}

// lacks reports whether no regular file has that name.
func lacks(files []os.DirEntry, name string) bool {
	return !slices.ContainsFunc(files, func(e os.DirEntry) bool { return e.Name() == name && e.Type().IsRegular() })
}

func (m *Manager) readVolume(image, id uuid.UUID) (*volume, error) {
	path := filepath.Join(m.domain.image(image), id.String())
	b, err := os.ReadFile(path + extMeta)
	if err != nil {
		return nil, err
	}
	meta, err := parseVolumeMeta(b)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	v := m.newVolume(image, id, meta)
	if v.name = cmp.Or(meta.alias(), image.String()); meta.VolType != "LEAF" {
		v.name = id.String() // the alias is the leaf's
	}
	v.size, v.ready, v.unsynced = info.Size(), true, true
	v.bound = max(v.bound, v.size)
	return v, nil
}

func (m *Manager) newVolume(image, id uuid.UUID, meta volumeMeta) *volume {
	return &volume{
		id: id, image: image, name: meta.alias(), meta: meta,
		path:  filepath.Join(m.domain.image(image), id.String()),
		sem:   make(chan struct{}, 1),
		bound: m.bound(CreateImage{Size: meta.Capacity, Format: meta.wireFormat()}),
	}
}

// bound is computed here and nowhere else, whatever a client says. Without
// Images it is VDSM's: a tenth more than the virtual size.
func (m *Manager) bound(o CreateImage) int64 {
	switch {
	case o.Format == FormatRaw:
		return o.Size
	case m.o.Images != nil:
		return roundUp(m.o.Images.Bound(o), sizeUnit)
	}
	return roundUp(o.Size+o.Size/10, sizeUnit)
}

// addLocked gives a volume its places in the maps.
func (m *Manager) addLocked(v *volume) error {
	if other := m.names[v.name]; other != nil {
		return fmt.Errorf("volumes %s and %s have the same name %q, which is unique in a pool: change DiskAlias in one's %s",
			other.id, v.id, v.name, extMeta)
	}
	m.volumes[v.id], m.names[v.name] = v, v
	return nil
}
