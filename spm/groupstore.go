package spm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

// The special volumes of a block domain. The first holds the metadata of the others.
const (
	lvMetadata  = "metadata"
	lvMaster    = "master"
	specialSize = 16 << 20
)

// A groupStore is a domain on a volume group; see the package comment for its
// layout.
type groupStore struct {
	group VolumeGroup
	lease Lease
	log   *slog.Logger
	meta  block.File // the volume metadata; nil until there is one
	sum   atomic.Pointer[groupSum]
	seen  atomic.Pointer[groupLook] // nil: nothing has failed yet

	mu    sync.Mutex
	slots map[int]string // taken, by the logical volume of that name; of one that is lost, see keepLost
}

// A groupLook is what became of the last look at a group.
type groupLook struct{ err error }

// A groupSum is what volumes may take together, of one state of the group.
type groupSum struct {
	of       *GroupState
	capacity int64
}

// openGroup opens a group for changes, with its lease, and removes what a crash has
// left of a domain that was being removed.
func openGroup(ctx context.Context, g VolumeGroup, lease Lease, o Options) (*groupStore, error) {
	s := &groupStore{group: g, lease: lease, log: o.Log, slots: map[int]string{}}
	if err := g.Read(ctx); err != nil {
		return s, err
	}
	if slices.Contains(g.State().Tags, tagFormatting) {
		return s, s.finishRemoval(ctx, s.group.Hold)
	}
	return s, nil
}

func (s *groupStore) readDomain(context.Context) (domainMeta, error) {
	return domainOfTags(s.group.State().Tags)
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
	if err := s.openMeta(ctx); err != nil {
		return err
	}
	if err := errors.Join(s.meta.WriteZeroes(0, specialSize), s.meta.Sync()); err != nil {
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

// openMeta opens the volume metadata.
func (s *groupStore) openMeta(ctx context.Context) (err error) {
	if s.meta == nil {
		s.meta, err = s.group.Open(ctx, lvMetadata)
	}
	return err
}

// removeDomain takes the tags away, which is the commit point, and then the logical
// volumes, which the caller holds.
func (s *groupStore) removeDomain(ctx context.Context) error {
	var remove []string
	for _, t := range s.group.State().Tags {
		if t == tagDomain || strings.HasPrefix(t, tagMeta) {
			remove = append(remove, t)
		}
	}
	if err := s.group.Retag(ctx, remove, []string{tagFormatting}); err != nil {
		return err
	}
	return s.finishRemoval(ctx, func(Mapping) (func() error, error) { return func() error { return nil }, nil })
}

// finishRemoval removes what was the domain's: nothing else has these tags. hold takes
// a volume, unless somebody has taken all.
func (s *groupStore) finishRemoval(ctx context.Context, hold func(Mapping) (func() error, error)) error {
	for _, l := range s.group.State().Volumes {
		if _, ours := parseVolumeTags(l.Tags); !ours && !slices.Contains(l.Tags, tagSpecial) {
			continue
		}
		release, err := hold(l.Mapping)
		if err == nil {
			err = errors.Join(s.group.Remove(ctx, l.Name), release())
		}
		if err != nil {
			return fmt.Errorf("remove what is left of a domain, logical volume %s: %w", l.Name, err)
		}
	}
	return s.group.Retag(ctx, []string{tagFormatting}, nil)
}

// tasks formats the logical volume of a domain that was made by a version which kept
// no tasks.
func (s *groupStore) tasks(ctx context.Context) (task.Store, func() error, error) {
	f, err := s.group.Open(ctx, lvMaster)
	if err != nil {
		return nil, nil, err
	}
	kept, err := task.OpenBlockStore(f, s.log)
	if errors.Is(err, task.ErrUnformatted) {
		if err = task.FormatBlockStore(f); err == nil {
			kept, err = task.OpenBlockStore(f, s.log)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return kept, f.Close, nil
}

func (s *groupStore) volumes(context.Context) ([]*volume, error) {
	var all []*volume
	for _, l := range s.group.State().Volumes {
		if tags, ours := l.volume(); ours {
			all = append(all, &volume{image: tags.image, id: uuid.MustParse(l.Name)})
		}
	}
	return all, nil
}

func (s *groupStore) hold(v *volume) (func() error, error) {
	l, there := s.find(v.id.String())
	if !there {
		return nil, fmt.Errorf("logical volume %s has been removed by somebody else", v.id)
	}
	return s.group.Hold(l.Mapping)
}

func (s *groupStore) look(ctx context.Context, v *volume) (block.File, error) {
	return s.group.Open(ctx, v.id.String())
}

func (s *groupStore) close() error {
	var err error
	if s.meta != nil {
		err = s.meta.Close()
	}
	return errors.Join(err, s.lease.Release())
}

func (s *groupStore) lost() <-chan struct{} { return s.lease.Lost() }

func (s *groupStore) find(name string) (GroupVolume, bool) {
	all := s.group.State().Volumes
	i := slices.IndexFunc(all, func(l GroupVolume) bool { return l.Name == name })
	if i < 0 {
		return GroupVolume{}, false
	}
	return all[i], true
}

func (s *groupStore) name() string { return "volume group " + s.group.State().Name }

func (s *groupStore) where() string { return s.group.State().UUID }

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
		if _, ours := l.volume(); ours {
			c.capacity += l.Size
		}
	}
	s.sum.Store(c)
	return c.capacity
}

func (s *groupStore) carry(map[uuid.UUID]*volume) (int64, error) { return s.group.State().Free, nil }

// confined: LVM knows where the volumes of a group lie.
func (s *groupStore) confined(*volume) error { return nil }

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

func (s *groupStore) refresh(ctx context.Context) error {
	err := s.group.Read(ctx)
	if ctx.Err() == nil {
		s.seen.Store(&groupLook{err})
	}
	return err
}

// there is what the last look at the group has found, which is a second old at most.
func (s *groupStore) there() error {
	if l := s.seen.Load(); l != nil {
		return l.err
	}
	return nil
}

func (s *groupStore) shared() bool { return true }

// free: a logical volume is there with its extents, or neither is.
func (s *groupStore) free() bool { return true }
