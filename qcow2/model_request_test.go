package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/testenv"
)

// patience is for a request: with faults a second, for ever otherwise.
func (r *model) patience() (context.Context, context.CancelFunc) {
	if r.faulty {
		return context.WithTimeout(context.Background(), time.Second)
	}
	return context.Background(), func() {}
}

// do does one request, and takes account of it unless the process has died.
func (r *model) do(o modelOp) error {
	q := &modelRequest{off: o.off, after: make([]byte, o.n)}
	r.moment.RLock()
	size, dead := int64(len(r.m.content)), r.died.Load()
	r.moment.RUnlock()
	if dead || o.verb != "grow" && o.off+o.n > size {
		return nil // the case was reduced
	}
	switch o.verb {
	case "write", "now", "fua":
		rng := testenv.Rand(o.data)
		for i := range q.after {
			q.after[i] = byte(rng.Uint32()) | 1
		}
	case "zero", "zerofua", "unmap", "discard":
	case "grow":
		r.growing.Lock()
		defer r.growing.Unlock()
		q = &modelRequest{grow: o.n}
	default:
		return r.look(o)
	}
	r.begin(q)
	err := r.request(o, q)
	r.end(q, err)
	if r.died.Load() {
		return nil
	}
	return err
}

func (r *model) begin(q *modelRequest) {
	r.moment.Lock()
	defer r.moment.Unlock()
	if !r.died.Load() {
		r.inside = append(r.inside, q)
	}
}

func (r *model) end(q *modelRequest, err error) {
	r.moment.Lock()
	defer r.moment.Unlock()
	if r.died.Load() {
		return
	}
	if err != nil && r.faulty {
		return // it may be done, or a part of it
	}
	r.inside = slices.DeleteFunc(r.inside, func(other *modelRequest) bool { return other == q })
	if err != nil {
		return
	}
	r.m.content = append(r.m.content, make([]byte, q.grow)...)
	copy(r.m.content[q.off:], q.after)
}

func (r *model) request(o modelOp, q *modelRequest) error {
	ctx, cancel := r.patience()
	defer cancel()
	switch o.verb {
	case "now":
		if err := r.im.WriteAt(ctx, q.after, o.off, block.NoWait); !errors.Is(err, block.ErrWouldBlock) {
			return err
		}
		return writeLater(ctx, r.im, q.after, o.off)
	case "write":
		return writeLater(ctx, r.im, q.after, o.off)
	case "fua":
		return r.im.WriteAt(ctx, q.after, o.off, block.FUA)
	case "zero":
		return r.im.WriteZeroes(ctx, o.off, o.n, 0)
	case "zerofua":
		return r.im.WriteZeroes(ctx, o.off, o.n, block.FUA)
	case "unmap":
		return r.im.WriteZeroes(ctx, o.off, o.n, block.MayUnmap)
	case "grow":
		return r.im.Grow(ctx, r.im.Info().Size+o.n)
	}
	if err := r.im.Discard(ctx, o.off, o.n, 0); err != nil {
		return err
	}
	// What was there, or zeroes; from now on it is what is read now.
	got := make([]byte, o.n)
	if err := r.im.ReadAt(ctx, got, o.off, 0); err != nil {
		return err
	}
	if err := r.compareOwn(o, got, "behind a discard"); err != nil {
		return err
	}
	r.moment.Lock()
	defer r.moment.Unlock()
	copy(q.after, got)
	return nil
}

// A modelError says that the image is wrong, not that it has met an error.
type modelError struct{ error }

// compareOwn holds what a client read of its own bytes against what it may read:
// the content, what a request of its own inside wants (a discard zeroes).
func (r *model) compareOwn(o modelOp, got []byte, when string) error {
	r.moment.RLock()
	defer r.moment.RUnlock()
	for i, b := range got {
		if at := o.off + int64(i); !r.allows(at, b) {
			return &modelError{fmt.Errorf("%s: byte %d (sector %d) is %d instead of %d", when, at, at/sector, b, r.m.content[at])}
		}
	}
	return nil
}

// content is what the client's own bytes hold.
func (r *model) content(o modelOp) []byte {
	r.moment.RLock()
	defer r.moment.RUnlock()
	return slices.Clone(r.m.content[o.off : o.off+o.n])
}

// look does a request that changes nothing.
func (r *model) look(o modelOp) error {
	ctx, cancel := r.patience()
	defer cancel()
	switch o.verb {
	case "flush":
		return r.im.Flush(ctx)
	case "evict":
		r.im.Evict()
		return nil
	case "extents":
		extents, err := r.im.AppendExtents(ctx, nil, o.off, o.n)
		want := r.content(o)
		for _, e := range extents {
			if e.State.Has(block.Zero) && !r.faulty && slices.Max(want[e.Off-o.off:e.End()-o.off]) != 0 {
				return fmt.Errorf("%d bytes at %d are said to read zero", e.Len, e.Off)
			}
		}
		return err
	case "read":
		got := make([]byte, o.n)
		if err := r.im.ReadAt(ctx, got, o.off, 0); err != nil {
			return err
		}
		return r.compareOwn(o, got, "read")
	}
	return fmt.Errorf("no such operation")
}
