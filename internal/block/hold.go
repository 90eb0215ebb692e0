package block

import (
	"context"
	"errors"
)

// A Hold is told when a request begins to wait for space and when it has
// stopped. Begin may refuse: then the request does not wait but fails with the
// error that Begin returned, which should wrap ErrNoSpace. End is called once
// for every Begin that returned nil.
type Hold interface {
	Begin() error
	End()
}

type holdKey struct{}

// WithHold returns a context whose requests report to h.
func WithHold(ctx context.Context, h Hold) context.Context {
	return context.WithValue(ctx, holdKey{}, h)
}

// HoldOf returns the Hold of ctx, or one that allows everything.
func HoldOf(ctx context.Context) Hold {
	if h, ok := ctx.Value(holdKey{}).(Hold); ok {
		return h
	}
	return free{}
}

type free struct{}

func (free) Begin() error { return nil }
func (free) End()         {}

// SpaceError turns the error of a context that ended while something waited
// for space into the one that the seam promises: ErrNoSpace for a deadline,
// the cancellation itself otherwise.
func SpaceError(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return ErrNoSpace
	}
	return context.Cause(ctx)
}
