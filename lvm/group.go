package lvm

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// A Group is a volume group that this process changes. It is safe for concurrent
// use; changes run one after the other.
type Group struct {
	tool *Tool
	name string
	sys  fs.FS // of sysfs

	view atomic.Pointer[View] // what others may look at without waiting for mu

	extending waiting // for mu

	mu      sync.Mutex
	vg      *VG   // as last read
	durable int64 // the seqno up to which the metadata is on disk; -1: unknown
	failed  error // a flush that failed; final
	// lost are extents that volumes had and lost by commands that were not ours,
	// by the volume's UUID.
	lost map[string][]Piece
}

// GroupOptions say how a group is made. The zero value works.
type GroupOptions struct {
	// ExtentSize in bytes. Default: 128 MiB.
	ExtentSize int64
	// MetadataSize of each physical volume's area, in bytes. Default: 128 MiB,
	// which is about half a million segments.
	MetadataSize int64
	Tags         []string
}

const (
	defaultExtentSize   = 128 << 20
	defaultMetadataSize = 128 << 20
)

// CreateGroup makes a group of all devices of the tool, which must hold nothing.
func CreateGroup(ctx context.Context, t *Tool, name string, o GroupOptions) (*Group, error) {
	args := []string{
		"-qq", "-s", bytesArg(cmp.Or(o.ExtentSize, defaultExtentSize)),
		"--metadatasize", bytesArg(cmp.Or(o.MetadataSize, defaultMetadataSize)),
	}
	for _, tag := range o.Tags {
		args = append(args, "--addtag", tag)
	}
	if _, err := t.metadata(ctx, "vgcreate", append(append(args, name), t.o.Devices...)...); err != nil {
		return nil, err
	}
	return OpenGroup(ctx, t, name)
}

// OpenGroup reads a group and makes durable what a process before this one may
// have changed. The error wraps ErrNotFound if there is none of that name.
func OpenGroup(ctx context.Context, t *Tool, name string) (*Group, error) {
	g := &Group{tool: t, name: name, sys: os.DirFS("/sys"), durable: -1, lost: map[string][]Piece{}}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.settleLocked(ctx, ""); err != nil {
		return nil, err
	}
	if g.vg.Exported {
		return nil, fmt.Errorf("volume group %s is exported: vgimport it first", name)
	}
	return g, nil
}

// Name is the group's.
func (g *Group) Name() string { return g.name }

// A View is a group at one moment. It must not be changed.
type View struct {
	VG *VG
	// Free is how many bytes could be given to volumes.
	Free int64
}

// View returns the group as last read, and never waits.
func (g *Group) View() *View { return g.view.Load() }

// VG returns the group as last read, and never waits.
func (g *Group) VG() *VG { return g.View().VG }

// Free is how many bytes can be given to volumes now.
func (g *Group) Free() int64 { return g.View().Free }

// Read reads the group again, and finds what others have changed: [Group.Lost].
func (g *Group) Read(ctx context.Context) (*VG, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.readLocked(ctx, ""); err != nil {
		return nil, err
	}
	return g.vg, nil
}

// Lost returns the UUIDs of the volumes that have lost extents to commands that
// were not ours. Those extents are not given to anybody.
func (g *Group) Lost() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	ids := make([]string, 0, len(g.lost))
	for id := range g.lost {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// Forget lets the lost extents of a volume be given away. The caller says with
// it that nobody has the volume open: it has its lock.
func (g *Group) Forget(lv string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.lost, lv)
	g.showLocked()
}

// showLocked lets others see what has changed.
func (g *Group) showLocked() {
	g.view.Store(&View{VG: g.vg, Free: freeExtents(g.spaceLocked()) * g.vg.ExtentSize})
}

// Check runs vgck, which verifies the metadata.
func (g *Group) Check(ctx context.Context) error {
	_, err := g.tool.metadata(ctx, "vgck", g.name)
	return err
}

// spaceLocked is what may be given to volumes: what is free and was not lost.
func (g *Group) spaceLocked() []Space {
	var space []Space
	for _, p := range g.vg.PVs {
		if p.Allocatable && !p.Missing && !p.Duplicate {
			space = append(space, Space{PV: p.UUID, Free: p.Free})
		}
	}
	for _, pieces := range g.lost {
		space = without(space, pieces)
	}
	return space
}

// changeLocked runs a command that changes volume ours ("" for none), reads the
// group and flushes it. The error of the command comes back as it is, with the
// group up to date; any other error means that nothing may be answered.
func (g *Group) changeLocked(ctx context.Context, ours string, verb string, args ...string) (refused, err error) {
	if g.failed != nil {
		return nil, g.failed
	}
	if _, err := g.tool.metadata(ctx, verb, args...); err != nil {
		refused = err
	}
	// What the command has done must be known and durable, also when the
	// request that wanted it has been given up.
	return refused, g.settleLocked(context.WithoutCancel(ctx), ours)
}

// settleLocked reads the group and flushes what is not known to be durable.
func (g *Group) settleLocked(ctx context.Context, ours string) error {
	if err := g.readLocked(ctx, ours); err != nil {
		return err
	}
	return g.flushLocked()
}

func (g *Group) readLocked(ctx context.Context, ours string) error {
	vg, err := g.tool.read(ctx, g.name)
	if err != nil {
		return err
	}
	active, err := activeVolumes(g.sys)
	if err != nil {
		return err
	}
	for i, l := range vg.LVs {
		vg.LVs[i].Active = active[activeKey(vg.UUID, l.UUID)] != ""
	}
	if g.vg != nil {
		for id, pieces := range lostBetween(g.vg, vg) {
			if id != ours {
				g.lost[id] = append(g.lost[id], pieces...)
			}
		}
	}
	g.vg = vg
	g.showLocked()
	return nil
}

// flushLocked makes the metadata durable. Its error latches.
func (g *Group) flushLocked() error {
	if g.failed != nil || g.durable == g.vg.Seqno {
		return g.failed
	}
	for _, p := range g.vg.PVs {
		if !p.HoldsMetadata || p.Missing {
			continue
		}
		if err := g.tool.o.Flush(p.Device); err != nil {
			g.failed = fmt.Errorf("volume group %s: flush its metadata on %s: %w; whether the last change survives is not known, and no more are made until the group is opened again",
				g.name, p.Device, err)
			return g.failed
		}
	}
	g.durable = g.vg.Seqno
	return nil
}

// lostBetween returns the extents that volumes had and have no more.
func lostBetween(before, after *VG) map[string][]Piece {
	has := map[string]LV{}
	for _, l := range after.LVs {
		has[l.UUID] = l
	}
	out := map[string][]Piece{}
	for _, l := range before.LVs {
		for _, s := range l.Segments {
			if s.PV == "" {
				continue
			}
			left := []Range{{s.First, s.Count}}
			for _, n := range has[l.UUID].Segments {
				if n.PV == s.PV {
					left = cut(left, Range{n.First, n.Count})
				}
			}
			for _, r := range left {
				out[l.UUID] = append(out[l.UUID], Piece{s.PV, r})
			}
		}
	}
	return out
}

// findLocked returns a volume, which must still be the one with that UUID if one
// is given: a name can be given to another volume by hand.
func (g *Group) findLocked(name, uuid string) (LV, error) {
	l, ok := g.vg.LV(name)
	switch {
	case !ok:
		return l, fmt.Errorf("logical volume %s/%s: %w", g.name, name, ErrNotFound)
	case uuid != "" && l.UUID != uuid:
		return l, fmt.Errorf("logical volume %s/%s is %s, expected %s: %w", g.name, name, l.UUID, uuid, ErrStale)
	}
	return l, nil
}

// noted adds what lvm said to an error that was found by reading.
func noted(err, refused error) error {
	if refused == nil {
		return err
	}
	if err == nil {
		return refused
	}
	return fmt.Errorf("%w (%w)", err, refused)
}

func bytesArg(n int64) string { return strconv.FormatInt(n, 10) + "b" }

// pieceArg names extents on the command line.
func (g *Group) pieceArg(p Piece) string {
	v, _ := g.vg.PV(p.PV)
	return fmt.Sprintf("%s:%d-%d", v.Device, p.First, p.End()-1)
}

func (g *Group) path(name string) string { return strings.Join([]string{g.name, name}, "/") }
