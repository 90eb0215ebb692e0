package crashlab

import (
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
)

// A walk goes along a log with a model of the disk below.
type walk struct {
	model   *simdisk.Model
	options simdisk.Options
	failed  bool                // a sync has failed, or a write, and the host's cache has not been dropped since
	evict   []eviction          // to come
	ops     map[int]*simdisk.Op // by the number in the log, in flight
	syncs   map[int]int         // syncs in flight: when they began
}

func newWalk(s simdisk.State, o simdisk.Options) *walk {
	return &walk{model: simdisk.NewModel(s, o), options: o, ops: map[int]*simdisk.Op{}, syncs: map[int]int{}}
}

// walk begins a walk along the recording.
func (r *Recording) walk() *walk {
	w := newWalk(r.setup.Start, r.setup.Options)
	w.evict = r.history.evicted
	return w
}

// A change is what an event means for what a crash may leave.
type change struct {
	// added is an operation that is pending since the event: nothing but choices
	// with it are new.
	added *simdisk.Op
	// ground says that what is durable has changed: all choices are new.
	ground bool
}

// step goes one event on.
func (w *walk) step(e record.Event) change {
	switch {
	case e.Kind == record.Mark:
		if e.Label == evictMark { // what was dropped is the disk's choice, not ours
			w.model = simdisk.NewModel(w.evict[0].left, w.options)
			w.evict, w.failed = w.evict[1:], false
			return change{ground: true}
		}
		w.failed = w.failed || e.Label == failMark
		return change{}
	case e.Kind == record.Sync && !e.Done:
		w.syncs[e.ID] = w.model.BeginSync()
		return change{}
	case e.Kind == record.Sync:
		w.model.EndSync(w.syncs[e.ID], e.Err == nil)
		delete(w.syncs, e.ID)
		w.failed = w.failed || e.Err != nil
		return change{ground: e.Err == nil}
	case !e.Done:
		return change{added: w.submit(e)}
	}
	return change{ground: w.end(e)}
}

var kinds = map[record.Kind]simdisk.Kind{
	record.Write: simdisk.Write, record.WriteSync: simdisk.Write, record.Zeroes: simdisk.Zeroes,
	record.Discard: simdisk.Discard, record.Grow: simdisk.Grow, record.Shrink: simdisk.Shrink,
}

// submit begins an operation; nil if it changes nothing, or cannot.
func (w *walk) submit(e record.Event) *simdisk.Op {
	kind, ok := kinds[e.Kind]
	if !ok {
		return nil
	}
	off, n, size := e.Off, e.Len, w.model.Size()
	switch kind {
	case simdisk.Grow: // need and want: the least that it may become
		if off, n = 0, e.Off; n <= size {
			return nil
		}
	case simdisk.Shrink: // from and to
		if e.Off != size {
			return nil
		}
		off, n = 0, e.Len
	default:
		if n == 0 || off < 0 || off+n > size {
			return nil
		}
	}
	o := w.model.Submit(kind, off, n, e.Data)
	w.ops[e.ID] = o
	return o
}

// end ends an operation and reports whether what is durable has changed.
func (w *walk) end(e record.Event) bool {
	o := w.ops[e.ID]
	delete(w.ops, e.ID)
	switch {
	case o == nil:
		return false
	case e.Err != nil:
		w.model.Fail(o)
		if e.Kind == record.WriteSync { // counts as a failed sync
			w.failed = true
			w.model.EndSync(w.model.BeginSync(), false)
		}
		return false
	case e.Kind == record.Grow:
		o.Len = e.Size // what it became
	}
	durable := e.Kind == record.WriteSync
	w.model.Return(o, durable)
	return durable || e.Kind == record.Grow || e.Kind == record.Shrink
}
