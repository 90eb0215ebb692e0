package record

import (
	"context"
	"fmt"
	"slices"

	"tidemark/internal/block"
)

// A Log is what happened, in order.
type Log []Event

// Marks returns the positions of the marks with a label, for instance to crash
// right behind an acknowledgement: log.Replay(ctx, f, position+1).
func (l Log) Marks(label string) (at []int) {
	for i, e := range l {
		if e.Kind == Mark && e.Label == label {
			at = append(at, i)
		}
	}
	return at
}

// Replay does the first n events again on f, which must be as the recorded File
// was at the start. Operations that failed are left out, except writes, of which
// any part may have been done; an operation in flight at n is done.
func (l Log) Replay(ctx context.Context, f block.File, n int) error {
	for _, e := range l[:n].schedule() {
		if err := e.redo(ctx, f); err != nil {
			return fmt.Errorf("replay of operation %d, %v(%d, %d): %w", e.ID, e.Kind, e.Off, e.Len, err)
		}
	}
	return nil
}

// schedule is the order in which the operations are done again: as submitted,
// but an operation in flight when a successful Sync began comes behind it.
func (l Log) schedule() []Event {
	done := map[int]Event{}
	for _, e := range l {
		if e.Done {
			done[e.ID] = e
		}
	}
	var plan []Event
	open := map[int]Event{} // submitted, not yet in the plan
	for _, e := range l {
		switch end, ended := done[e.ID]; {
		case e.Kind == Mark || e.Kind == Read:
		case e.Done:
			if start, ok := open[e.ID]; ok {
				plan = appendDone(plan, start, e)
				delete(open, e.ID)
			}
		case e.Kind == Sync:
			if ended && end.Err == nil {
				plan = append(plan, e)
			}
		default:
			open[e.ID] = e
		}
	}
	left := make([]Event, 0, len(open))
	for _, e := range open {
		left = append(left, e)
	}
	slices.SortFunc(left, func(a, b Event) int { return a.ID - b.ID })
	for _, e := range left {
		if e.Kind == WriteSync {
			e.Kind = Write // not durable yet
		}
		if e.Kind != Grow && e.Kind != Shrink { // the size has not changed for anybody yet
			plan = append(plan, e)
		}
	}
	return plan
}

// appendDone adds an operation that has ended.
func appendDone(plan []Event, start, end Event) []Event {
	switch {
	case end.Err == nil:
		start.Size = end.Size
		return append(plan, start)
	case start.Kind == Write || start.Kind == WriteSync || start.Kind == Zeroes:
		if start.Kind == WriteSync {
			start.Kind = Write
		}
		return append(plan, start)
	}
	return plan
}

func (e Event) redo(ctx context.Context, f block.File) (err error) {
	switch e.Kind {
	case Write:
		if block.CheckRange(e.Off, e.Len, f.Size()) == nil { // else it was refused then, too
			_, err = f.WriteAt(e.Data, e.Off)
		}
	case WriteSync:
		_, err = f.WriteAtSync(e.Data, e.Off)
	case Zeroes:
		if block.CheckRange(e.Off, e.Len, f.Size()) == nil {
			err = f.WriteZeroes(e.Off, e.Len)
		}
	case Discard:
		err = f.Discard(e.Off, e.Len)
	case Grow:
		if e.Size > f.Size() {
			_, err = f.Grow(ctx, e.Size, e.Size)
		}
	case Shrink:
		err = f.Shrink(ctx, e.Off, e.Len)
	case Sync:
		err = f.Sync()
	}
	return err
}
