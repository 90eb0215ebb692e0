package spm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// The special volumes of a block domain, and where the metadata of volumes lies
// in the first of them, as in VDSM's V5: a slot of 8 KiB for each, from 1 MiB on,
// of which 512 bytes are used, so that a power cut leaves the old or the new.
// Slot 0 is reserved.
const (
	lvMetadata  = "metadata"
	lvMaster    = "master"
	specialSize = 16 << 20
	slotBase    = 1 << 20
	slotSize    = 8 << 10
	slotCount   = (specialSize - slotBase) / slotSize
)

// A groupStore is a pool on a volume group; see the package comment for its
// layout.
type groupStore struct {
	group VolumeGroup
	lock  *poolLock
	log   *slog.Logger
	meta  block.File // the volume metadata; nil until there is one
	sum   atomic.Pointer[groupSum]

	mu    sync.Mutex
	slots map[int]bool // taken
}

// A groupSum is what volumes may take together, of one state of the group.
type groupSum struct {
	of       *GroupState
	capacity int64
}

// OpenGroup opens the pool on a volume group, or makes one if there is none, and
// takes its lock.
func OpenGroup(g VolumeGroup, o Options) (*Manager, error) {
	o = o.withDefaults()
	lock, err := lockPool(g.RunDir())
	if err != nil {
		return nil, err
	}
	return open(&groupStore{group: g, lock: lock, log: o.Log, slots: map[int]bool{0: true}}, o)
}

func (s *groupStore) readDomain(ctx context.Context) (domainMeta, error) {
	if err := s.group.Read(ctx); err != nil {
		return nil, err
	}
	m, err := domainOfTags(s.group.State().Tags)
	if err != nil || m == nil {
		return nil, err
	}
	s.meta, err = s.group.Open(ctx, lvMetadata)
	return m, err
}

// makeDomain makes the special volumes; the tags are the commit point.
func (s *groupStore) makeDomain(ctx context.Context, m domainMeta) error {
	for _, name := range []string{lvMetadata, lvMaster} {
		v, there := s.find(name)
		if there && !slices.Contains(v.Tags, tagSpecial) {
			return fmt.Errorf("the group has a logical volume %s that is not ours (no tag %s): rename it, or use another group", name, tagSpecial)
		}
		if !there {
			if _, err := s.group.Create(ctx, name, []string{tagSpecial}, specialSize, false); err != nil {
				return err
			}
		}
	}
	f, err := s.group.Open(ctx, lvMetadata)
	if err != nil {
		return err
	}
	s.meta = f
	if err := errors.Join(f.WriteZeroes(0, specialSize), f.Sync()); err != nil {
		return err
	}
	m[keyType], m[keyVGUUID] = typeGroup, s.group.State().UUID
	return s.group.Retag(ctx, nil, append(m.tags(), tagDomain))
}

// writeDomain changes the tags that differ, at once.
func (s *groupStore) writeDomain(ctx context.Context, m domainMeta) error {
	now, want := s.group.State().Tags, m.tags()
	var remove, add []string
	for _, t := range now {
		if len(t) > len(tagMeta) && t[:len(tagMeta)] == tagMeta && !slices.Contains(want, t) {
			remove = append(remove, t)
		}
	}
	for _, t := range want {
		if !slices.Contains(now, t) {
			add = append(add, t)
		}
	}
	return s.group.Retag(ctx, remove, add)
}

func (s *groupStore) readSlot(slot int) (volumeMeta, error) {
	b := make([]byte, volumeMetaMaxSize)
	if _, err := s.meta.ReadAt(b, slotBase+int64(slot)*slotSize); err != nil {
		return volumeMeta{}, err
	}
	return parseVolumeMeta(b)
}

func (s *groupStore) writeSlot(slot int, m volumeMeta) error {
	content, err := m.encode()
	if err != nil {
		return err
	}
	b := make([]byte, volumeMetaMaxSize)
	copy(b, content)
	_, err = s.meta.WriteAtSync(b, slotBase+int64(slot)*slotSize)
	return err
}

// takeSlot takes a free one.
func (s *groupStore) takeSlot() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range slotCount {
		if !s.slots[n] {
			s.slots[n] = true
			return n, nil
		}
	}
	return 0, fmt.Errorf("the pool has %d volumes, and its metadata has no room for more: remove some", slotCount-1)
}

func (s *groupStore) freeSlot(slot int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.slots, slot)
}

func (s *groupStore) hold(v *volume) (func() error, error) {
	l, there := s.find(v.id.String())
	if !there {
		return nil, fmt.Errorf("logical volume %s has been removed by somebody else", v.id)
	}
	return s.group.Hold(l.Mapping)
}

func (s *groupStore) close() error {
	var err error
	if s.meta != nil {
		err = s.meta.Close()
	}
	return errors.Join(err, s.lock.release())
}

func (s *groupStore) find(name string) (GroupVolume, bool) {
	all := s.group.State().Volumes
	i := slices.IndexFunc(all, func(l GroupVolume) bool { return l.Name == name })
	if i < 0 {
		return GroupVolume{}, false
	}
	return all[i], true
}

func (s *groupStore) name() string { return "volume group " + s.group.State().Name }

func (s *groupStore) kind() string { return typeGroup }

func (s *groupStore) grain() int64 { return s.group.State().ExtentSize }

// capacity is what is free and what the volumes have; nobody configures it, and
// vgextend raises it.
func (s *groupStore) capacity(int64) int64 {
	state := s.group.State()
	if c := s.sum.Load(); c != nil && c.of == state {
		return c.capacity
	}
	c := &groupSum{of: state, capacity: state.Free}
	for _, l := range state.Volumes {
		if _, ours := parseVolumeTags(l.Tags); ours {
			c.capacity += l.Size
		}
	}
	s.sum.Store(c)
	return c.capacity
}

func (s *groupStore) carry(map[uuid.UUID]*volume) (int64, error) { return s.group.State().Free, nil }

func (s *groupStore) describe(v *volume, d *Volume) {
	name := v.id.String()
	d.Path = filepath.Join("/dev", s.group.State().Name, name)
	if l, there := s.find(name); there {
		m := l.Mapping
		d.Allocated, d.Mapping = l.Size, &m
	}
}

func (s *groupStore) describePool(p *PoolReply) {
	state := s.group.State()
	p.Group = &GroupReply{Name: state.Name, UUID: state.UUID, ExtentSize: state.ExtentSize, GroupUse: state.Use}
}

func (s *groupStore) length(v *volume, most int64) int64 {
	if l, there := s.find(v.id.String()); there {
		return l.Size
	}
	return most
}

func (s *groupStore) refresh(ctx context.Context) error { return s.group.Read(ctx) }

func (s *groupStore) shared() bool { return true }
