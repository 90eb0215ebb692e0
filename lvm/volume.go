package lvm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
)

// A Size is what a volume should be, in bytes and absolute: at least Need, Want
// if there is as much, and up to Most where more saves segments. Need and Want
// are rounded up to extents, Most down. A volume that will never grow is out of
// the way of others if Still is set when it is made.
type Size struct {
	Need, Want, Most int64
	Still            bool
}

// attempts is how often extents are chosen anew because somebody else has
// changed the group meanwhile.
const attempts = 4

// Create makes a volume with tags, inactive and with whatever its extents hold.
// Its map is durable. The error wraps ErrNoSpace, ErrMetadataFull or
// fs.ErrExist where it is that.
func (g *Group) Create(ctx context.Context, name string, tags []string, s Size) (Map, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var refused error
	for range attempts {
		if l, ok := g.vg.LV(name); ok {
			return Map{}, fmt.Errorf("logical volume %s/%s is there already (%s): %w", g.name, name, l.UUID, fs.ErrExist)
		}
		pieces, err := g.chooseLocked(LV{}, s, nil)
		if err != nil {
			return Map{}, noted(fmt.Errorf("create %s/%s: %w", g.name, name, err), refused)
		}
		args := []string{"-qq", "-an", "-Zn", "-Wn", "--alloc", "normal", "-l", strconv.FormatInt(pieces[0].Count, 10), "-n", name}
		for _, tag := range tags {
			args = append(args, "--addtag", tag)
		}
		refused, err = g.changeLocked(ctx, "", "lvcreate", append(args, g.name, g.pieceArg(pieces[0]))...)
		if err != nil {
			return Map{}, err
		}
		switch {
		case refused != nil && ctx.Err() != nil:
			return Map{}, fmt.Errorf("create %s/%s: %w", g.name, name, refused)
		case refused != nil:
			continue
		case pieces[0].Count*g.vg.ExtentSize >= s.Need:
			return g.vg.Map(name)
		}
		m, err := g.extendLocked(ctx, name, "", s) // no gap is as large as that
		if err != nil {
			return Map{}, errors.Join(err, g.removeLocked(context.WithoutCancel(ctx), name, ""))
		}
		return m, nil
	}
	return Map{}, fmt.Errorf("create %s/%s: %w", g.name, name, refused)
}

func (g *Group) extendLocked(ctx context.Context, name, uuid string, s Size) (Map, error) {
	var refused error
	for range attempts {
		l, err := g.findLocked(name, uuid)
		if err != nil {
			return Map{}, noted(err, refused)
		}
		pieces, err := g.chooseLocked(l, s, nil)
		if err != nil {
			return Map{}, noted(fmt.Errorf("extend %s/%s from %d to %d bytes: %w", g.name, name, l.Size, s.Need, err), refused)
		}
		if len(pieces) == 0 {
			if err := g.flushLocked(); err != nil {
				return Map{}, err
			}
			return g.vg.Map(name)
		}
		if refused, err = g.growLocked(ctx, l, pieces); err != nil {
			return Map{}, err
		}
		now, err := g.findLocked(name, l.UUID)
		switch {
		case err != nil:
			return Map{}, noted(err, refused)
		case refused == nil && now.Size >= s.Need:
			return g.vg.Map(name)
		case refused == nil:
			refused = fmt.Errorf("lvm says that it is done, and there are %d bytes, expected %d: %w", now.Size, s.Need, ErrStale)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return Map{}, fmt.Errorf("extend %s/%s: %w", g.name, name, refused)
}

// growLocked adds the pieces, a command for each: with more than one the order
// in which lvm takes them is its own.
func (g *Group) growLocked(ctx context.Context, l LV, pieces []Piece) (refused, err error) {
	extents := g.vg.extents(l.Size)
	for _, p := range pieces {
		extents += p.Count
		refused, err = g.changeLocked(ctx, "", "lvextend", g.extendArgs(l.Name, extents, p)...)
		if refused != nil || err != nil {
			return refused, err
		}
	}
	return nil, nil
}

// extendArgs are those that make a volume of so many extents, the last of which are p.
func (g *Group) extendArgs(name string, extents int64, p Piece) []string {
	return []string{"-qq", "--alloc", "normal", "-l", strconv.FormatInt(extents, 10), g.path(name), g.pieceArg(p)}
}

// chooseLocked places what s asks for beyond the volume's present size, where it is
// not taken by others in the same moment.
func (g *Group) chooseLocked(l LV, s Size, taken []Piece) ([]Piece, error) {
	vg := g.vg
	if vg.Partial {
		return nil, fmt.Errorf("volume group %s lacks a physical volume, and nothing is changed in it until it is back: %w", g.name, ErrUnusable)
	}
	size := vg.extents(l.Size)
	d := Demand{
		Need: vg.extents(s.Need) - size, Want: vg.extents(max(s.Want, s.Need)) - size, Most: s.Most/vg.ExtentSize - size,
		Size: size, Jump: jumpExtents(size, vg.ExtentSize), Still: s.Still && size == 0,
	}
	if d.Want <= 0 {
		return nil, nil
	}
	if n := len(l.Segments); n > 0 {
		last := l.Segments[n-1]
		if last.PV == "" {
			return nil, fmt.Errorf("its last segment is of type %s, expected linear: %w", last.Type, ErrUnusable)
		}
		d.TailPV, d.TailEnd = last.PV, last.First+last.Count
	}
	pieces, err := Place(without(g.spaceLocked(), taken), d)
	if err != nil {
		return nil, err
	}
	return g.afford(pieces, d, int64(len(taken)))
}

// afford drops what the metadata area has no room for, beside so many new segments.
func (g *Group) afford(pieces []Piece, d Demand, others int64) ([]Piece, error) {
	m := g.vg.Metadata()
	volumes, segments := int64(0), int64(0)
	if d.Size == 0 {
		volumes = 1
	}
	taken := int64(0)
	for i, p := range pieces {
		if grows := d.Size > 0 && i == 0 && p.PV == d.TailPV && p.First == d.TailEnd; !grows {
			segments++
		}
		if segments > 0 && !m.admits(volumes, segments+others) {
			if taken < d.Need {
				return nil, fmt.Errorf("volume group %s: %d of %d bytes of metadata are used, by %d segments, and the rest is a reserve: remove volumes, or make a group with a larger --metadatasize: %w",
					g.name, m.Used, m.Limit, m.Segments, ErrMetadataFull)
			}
			return pieces[:i], nil
		}
		taken += p.Count
	}
	return pieces, nil
}

// Reduce makes a volume of exactly from bytes one of to bytes: compare and set.
// The caller holds the volume, and nothing beyond to is referenced any more.
func (g *Group) Reduce(ctx context.Context, name, uuid string, from, to int64) (Map, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.readLocked(ctx, ""); err != nil {
		return Map{}, err
	}
	l, err := g.findLocked(name, uuid)
	if err != nil {
		return Map{}, err
	}
	switch extents := to / g.vg.ExtentSize; {
	case l.Size != from:
		return Map{}, fmt.Errorf("reduce %s/%s: expected %d bytes, found %d: %w", g.name, name, from, l.Size, ErrStale)
	case extents <= 0 || to > from || to%g.vg.ExtentSize != 0:
		return Map{}, fmt.Errorf("reduce %s/%s from %d to %d bytes: expected a smaller multiple of the extent size %d, not 0",
			g.name, name, from, to, g.vg.ExtentSize)
	}
	if from == to {
		return g.vg.Map(name)
	}
	refused, err := g.changeLocked(ctx, l.UUID, "lvreduce", "-qq", "-f", "-l", strconv.FormatInt(to/g.vg.ExtentSize, 10), g.path(name))
	if err != nil {
		return Map{}, err
	}
	switch now, err := g.findLocked(name, uuid); {
	case err != nil:
		return Map{}, noted(err, refused)
	case now.Size != to:
		return Map{}, noted(fmt.Errorf("reduce %s/%s to %d bytes: it has %d: %w", g.name, name, to, now.Size, ErrStale), refused)
	}
	return g.vg.Map(name)
}

// Remove removes the volume with that UUID. The caller holds it. One that is not
// there is an error that wraps ErrNotFound.
func (g *Group) Remove(ctx context.Context, name, uuid string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.removeLocked(ctx, name, uuid)
}

func (g *Group) removeLocked(ctx context.Context, name, uuid string) error {
	l, err := g.findLocked(name, uuid)
	if err != nil {
		return err
	}
	refused, err := g.changeKnownLocked(ctx, l.UUID, g.vg.without(l.UUID), "lvremove", "-qq", "-f", g.path(name))
	if err != nil {
		return err
	}
	if now, ok := g.vg.LV(name); ok && now.UUID == l.UUID {
		return refused
	}
	return nil
}

// RetagGroup removes and adds tags of the group itself, in one change.
func (g *Group) RetagGroup(ctx context.Context, remove, add []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	refused, err := g.changeLocked(ctx, "", "vgchange", append(tagArgs(remove, add), g.name)...)
	if err != nil {
		return err
	}
	return refused
}

func tagArgs(remove, add []string) []string {
	args := []string{"-qq"}
	for _, t := range remove {
		args = append(args, "--deltag", t)
	}
	for _, t := range add {
		args = append(args, "--addtag", t)
	}
	return args
}

// Retag removes and adds tags of a volume, in one change.
func (g *Group) Retag(ctx context.Context, name, uuid string, remove, add []string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	l, err := g.findLocked(name, uuid)
	if err != nil {
		return err
	}
	refused, err := g.changeKnownLocked(ctx, "", g.vg.retagged(l.UUID, remove, add), "lvchange", append(tagArgs(remove, add), g.path(name))...)
	if err != nil {
		return err
	}
	return refused
}
