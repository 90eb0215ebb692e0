package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"tidemark/internal/block"
	"tidemark/lvm"
	"tidemark/spm"
)

// groupRunDir is where everything on this host that has to do with a volume group
// is found: who manages it, who has a volume of it open, how lvm is run on it.
// The group's UUID, not its name, says which group that is.
func groupRunDir(uuid string) string { return filepath.Join(runDir, "vg-"+uuid) }

// What is in it.
func lockDir(run string) string { return filepath.Join(run, "volumes") }
func confDir(run string) string { return filepath.Join(run, "lvm") }

// A volumeGroup is what the pool manager knows of LVM.
type volumeGroup struct {
	group   *lvm.Group
	tool    *lvm.Tool
	devices []string
	run     string
	locks   lvm.Locks
	noDM    bool
	log     *slog.Logger
	state   atomic.Pointer[groupView]
}

var _ spm.VolumeGroup = (*volumeGroup)(nil)

// A groupView is a state in the manager's terms, and what it was made of.
type groupView struct {
	of    *lvm.View
	state *spm.GroupState
}

// groupOptions say which volume group to manage.
type groupOptions struct {
	name    string
	devices []string
	create  bool // make it of the devices
	noDM    bool // do not use device-mapper, although it is there
	log     *slog.Logger
}

// openVolumeGroup opens a group, or makes it if it is asked to and there is none.
func openVolumeGroup(ctx context.Context, o groupOptions) (*volumeGroup, error) {
	conf := filepath.Join(runDir, "lvm-"+o.name)
	tool, err := lvm.NewTool(lvm.ToolOptions{Devices: o.devices, Dir: conf})
	if err != nil {
		return nil, err
	}
	g, err := lvm.OpenGroup(ctx, tool, o.name)
	if errors.Is(err, lvm.ErrNotFound) {
		g, err = o.make(ctx, tool, err)
	}
	if err != nil {
		return nil, err
	}
	run := groupRunDir(g.VG().UUID)
	if err := os.MkdirAll(run, 0o700); err != nil {
		return nil, err
	}
	return &volumeGroup{
		group: g, tool: tool, devices: o.devices, run: run, noDM: o.noDM, log: o.log,
		locks: lvm.Locks{Dir: lockDir(run)},
	}, nil
}

// volumeGroups are those on the devices of a host. The name in the options is none's.
type volumeGroups struct{ o groupOptions }

var _ spm.Groups = volumeGroups{}

// List is described at spm.Groups, as Open is.
func (v volumeGroups) List(ctx context.Context, devices []string) ([]spm.GroupState, error) {
	tool, err := lvm.NewTool(lvm.ToolOptions{Devices: devices, Dir: filepath.Join(runDir, "lvm")})
	if err != nil {
		return nil, err
	}
	groups, err := tool.Groups(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]spm.GroupState, len(groups))
	for i, g := range groups {
		all[i] = spm.GroupState{Name: g.Name, UUID: g.UUID, Tags: g.Tags}
	}
	return all, nil
}

// Open finds the name of a group, by which lvm knows it.
func (v volumeGroups) Open(ctx context.Context, uuid string, devices []string) (spm.VolumeGroup, error) {
	all, err := v.List(ctx, devices)
	if err != nil {
		return nil, err
	}
	for _, g := range all {
		if g.UUID == uuid {
			o := v.o
			o.name, o.devices = g.Name, devices
			return openVolumeGroup(ctx, o)
		}
	}
	return nil, fmt.Errorf("volume group %s is not on %s any more: %w", uuid, strings.Join(devices, ", "), lvm.ErrNotFound)
}

// make makes the group that notFound is about, if it shall.
func (o groupOptions) make(ctx context.Context, tool *lvm.Tool, notFound error) (*lvm.Group, error) {
	for _, d := range o.devices {
		if err := checkDevice(d); err != nil {
			return nil, err
		}
	}
	if !o.create {
		return nil, fmt.Errorf("%w; name all its devices with --devices, or have it made of them with --create", notFound)
	}
	g, err := lvm.CreateGroup(ctx, tool, o.name, lvm.GroupOptions{})
	if err != nil {
		return nil, fmt.Errorf("%w; --create takes devices that hold nothing: wipefs DEVICE shows what one holds, wipefs -a DEVICE removes that for ever", err)
	}
	return g, nil
}

// checkDevice says why a path cannot be a device of a group, which lvm says of none.
func checkDevice(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("--devices %s: there is no such device; lsblk shows those that there are", path)
	case err != nil:
		return fmt.Errorf("--devices: %w", err)
	case st.Mode().Type() != fs.ModeDevice: // of blocks
		return fmt.Errorf("--devices %s: expected a block device; losetup --find --show makes one of a file", path)
	}
	return nil
}

// RunDir is described at spm.VolumeGroup, as the other methods are.
func (v *volumeGroup) RunDir() string { return v.run }

// State converts what was read last, once.
func (v *volumeGroup) State() *spm.GroupState {
	view := v.group.View()
	if have := v.state.Load(); have != nil && have.of == view {
		return have.state
	}
	s := v.convert(view)
	v.state.Store(&groupView{view, s})
	return s
}

func (v *volumeGroup) convert(view *lvm.View) *spm.GroupState {
	vg := view.VG
	use := vg.Metadata()
	s := &spm.GroupState{
		Name: vg.Name, UUID: vg.UUID, Tags: vg.Tags, ExtentSize: vg.ExtentSize, Free: view.Free,
		Use: spm.GroupUse{MetadataUsed: use.Used, MetadataLimit: use.Limit, Segments: use.Segments, SegmentsLimit: use.SegmentsLimit},
	}
	for _, l := range vg.LVs {
		m, err := vg.Map(l.Name)
		s.Volumes = append(s.Volumes, spm.GroupVolume{Name: l.Name, Tags: l.Tags, Size: l.Size, Mapping: v.mapping(m), Unusable: err})
	}
	return s
}

// mapping says in the manager's terms where a volume lies.
func (v *volumeGroup) mapping(m lvm.Map) spm.Mapping {
	out := spm.Mapping{
		Group: v.group.Name(), GroupUUID: m.VG, LVUUID: m.LV, Seqno: m.Seqno, Devices: v.devices, LockDir: v.locks.Dir,
		Segments: make([]spm.Piece, len(m.Segments)),
	}
	for i, s := range m.Segments {
		out.Segments[i] = spm.Piece(s)
	}
	return out
}

// mapOf is the reverse.
func mapOf(m *spm.Mapping) lvm.Map {
	out := lvm.Map{VG: m.GroupUUID, LV: m.LVUUID, Seqno: m.Seqno, Segments: make([]lvm.MapSegment, len(m.Segments))}
	for i, s := range m.Segments {
		out.Segments[i] = lvm.MapSegment(s)
	}
	return out
}

// Read also lets go of extents that somebody has taken away from a volume by
// hand, once nobody has the volume open.
func (v *volumeGroup) Read(ctx context.Context) error {
	if _, err := v.group.Read(ctx); err != nil {
		return err
	}
	for _, uuid := range v.group.Lost() {
		hold, err := v.locks.Hold(uuid, lvm.Writing)
		if err != nil {
			continue // it still is
		}
		v.log.Warn("what was taken away from a volume by hand is free now", "group", v.group.Name(), "lv", uuid)
		v.group.Forget(uuid)
		if err := errors.Join(v.locks.Removed(uuid), hold.Release()); err != nil {
			return err
		}
	}
	return nil
}

// Retag changes the tags of the group.
func (v *volumeGroup) Retag(ctx context.Context, remove, add []string) error {
	return v.group.RetagGroup(ctx, remove, add)
}

// RetagVolume changes the tags of a volume.
func (v *volumeGroup) RetagVolume(ctx context.Context, name string, remove, add []string) error {
	return v.group.Retag(ctx, name, "", remove, add)
}

// Create makes a volume.
func (v *volumeGroup) Create(ctx context.Context, name string, tags []string, size int64, grows bool) (spm.Mapping, error) {
	m, err := v.group.Create(ctx, name, tags, lvm.Size{Need: size, Still: !grows})
	return v.mapping(m), err
}

// Extend makes a volume larger.
func (v *volumeGroup) Extend(ctx context.Context, name string, target, most int64) (spm.Mapping, error) {
	m, err := v.group.Extend(ctx, name, "", lvm.Size{Need: target, Want: target, Most: most})
	return v.mapping(m), err
}

// Reduce makes a volume shorter.
func (v *volumeGroup) Reduce(ctx context.Context, name string, from, to int64) (spm.Mapping, error) {
	m, err := v.group.Reduce(ctx, name, "", from, to)
	return v.mapping(m), err
}

// Remove removes a volume, which the caller holds.
func (v *volumeGroup) Remove(ctx context.Context, name string) error {
	l, there := v.group.VG().LV(name)
	if !there {
		return nil
	}
	if err := v.group.Remove(ctx, name, l.UUID); err != nil && !errors.Is(err, lvm.ErrNotFound) {
		return err
	}
	return v.locks.Removed(l.UUID)
}

// Open opens a volume for the manager itself.
func (v *volumeGroup) Open(ctx context.Context, name string) (block.File, error) {
	m, err := v.group.VG().Map(name)
	if err != nil {
		return nil, err
	}
	mapping := v.mapping(m)
	return openLV(ctx, &mapping, lvSpec{lv: name, tool: v.tool, noDM: v.noDM, log: v.log})
}

// Hold takes a volume.
func (v *volumeGroup) Hold(m spm.Mapping) (func() error, error) {
	h, err := v.locks.Hold(m.LVUUID, lvm.Writing)
	if err != nil {
		return nil, err
	}
	return h.Release, nil
}
