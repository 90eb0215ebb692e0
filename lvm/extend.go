package lvm

import (
	"context"
	"fmt"
	"sync"
)

// extendMost is how many extensions are made together at most. Each waits for all of
// them; a look at the group and a flush cost as much as a command.
const extendMost = 16

// An extension is a request to extend, and its answer.
type extension struct {
	ctx        context.Context
	name, uuid string
	size       Size

	done bool
	m    Map
	err  error
}

func (e *extension) answer(m Map, err error) { e.m, e.err, e.done = m, err, true }

// waiting are the extensions that wait for Group.mu, in the order in which they came.
type waiting struct {
	mu  sync.Mutex
	all []*extension
}

func (w *waiting) add(e *extension) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, e)
}

// take returns the first, at most n.
func (w *waiting) take(n int) []*extension {
	w.mu.Lock()
	defer w.mu.Unlock()
	n = min(n, len(w.all))
	first := w.all[:n:n]
	w.all = w.all[n:]
	return first
}

// Extend makes a volume as large as s says and never smaller, and returns its
// map, which is durable. It may be repeated for ever. uuid, if given, must be
// the volume's. The error wraps ErrNoSpace, ErrMetadataFull, ErrNotFound or
// ErrStale where it is that. Extensions that wait for each other are made together.
func (g *Group) Extend(ctx context.Context, name, uuid string, s Size) (Map, error) {
	e := &extension{ctx: ctx, name: name, uuid: uuid, size: s}
	g.extending.add(e)
	g.mu.Lock()
	defer g.mu.Unlock()
	for !e.done { // else somebody has taken it along; it is among the first sometime
		g.extendAllLocked(g.extending.take(extendMost))
	}
	return e.m, e.err
}

// extendAllLocked answers extensions: those of which each takes one command by these
// commands, one look at the group and one flush, and then the others, by themselves.
func (g *Group) extendAllLocked(all []*extension) {
	if len(all) > 1 && g.failed == nil {
		g.extendTogetherLocked(all)
	}
	for _, e := range all {
		if !e.done {
			e.answer(g.extendLocked(e.ctx, e.name, e.uuid, e.size))
		}
	}
}

// A grant is an extension with its piece.
type grant struct {
	e       *extension
	lv      LV
	piece   Piece
	extents int64 // of the volume, with the piece
}

// extendTogetherLocked answers the extensions that can be made together. The others,
// and those whose command was refused, are left.
func (g *Group) extendTogetherLocked(all []*extension) {
	var made []grant
	for _, w := range g.grantsLocked(all) {
		if w.e.ctx.Err() != nil {
			continue
		}
		made = append(made, w)
		if _, err := g.tool.metadata(w.e.ctx, "lvextend", g.extendArgs(w.lv.Name, w.extents, w.piece)...); err != nil {
			break // perhaps the group is not as it was read: see what there is
		}
	}
	if len(made) == 0 {
		return
	}
	if err := g.settleLocked(context.WithoutCancel(made[0].e.ctx), ""); err != nil {
		for _, w := range made {
			w.e.answer(Map{}, fmt.Errorf("extend %s/%s: %w", g.name, w.e.name, err))
		}
		return
	}
	for _, w := range made {
		if l, err := g.findLocked(w.e.name, w.lv.UUID); err == nil && g.vg.extents(l.Size) >= w.extents {
			w.e.answer(g.vg.Map(w.e.name))
		}
	}
}

// grantsLocked gives each volume a piece that no other gets, where one is enough.
func (g *Group) grantsLocked(all []*extension) (grants []grant) {
	var taken []Piece
	has := map[string]bool{}
	for _, e := range all {
		l, err := g.findLocked(e.name, e.uuid)
		if err != nil || has[e.name] {
			continue
		}
		pieces, err := g.chooseLocked(l, e.size, taken)
		if err != nil || len(pieces) != 1 {
			continue
		}
		has[e.name] = true
		taken = append(taken, pieces[0])
		grants = append(grants, grant{e, l, pieces[0], g.vg.extents(l.Size) + pieces[0].Count})
	}
	return grants
}
