package main

import (
	"context"
	"errors"
	"slices"
)

// mostOnLVM is how many volumes a group has besides: each is 128 MiB at least.
const mostOnLVM = 100

func measureDirectory(ctx context.Context, o options) ([]cell, error) {
	return measurePool(ctx, o, onDirectory, func() (*site, error) { return openDirectory(ctx, o) })
}

func measureGroup(ctx context.Context, o options) ([]cell, error) {
	o.volumes = slices.DeleteFunc(slices.Clone(o.volumes), func(n int) bool { return n > mostOnLVM })
	return measurePool(ctx, o, onLVM, func() (*site, error) { return openGroup(ctx, o, false) })
}

// ownPart is the part of the rounds that is done once more for lvm's own time.
const ownPart = 5

// measureOwn measures lvm's own time, in the same way.
func measureOwn(ctx context.Context, o options) ([]cell, error) {
	o.volumes = slices.DeleteFunc(slices.Clone(o.volumes), func(n int) bool { return n > mostOnLVM })
	o.verbs, o.rounds = max(o.verbs/ownPart, 1), max(o.rounds/ownPart, 1)
	return measurePool(ctx, o, onLVM, func() (*site, error) { return openGroup(ctx, o, true) })
}

// measurePool times the verbs in one pool and extensions in another, so that these
// find it small.
func measurePool(ctx context.Context, o options, name string, open func() (*site, error)) (all []cell, err error) {
	for _, do := range []func(context.Context, *site, options, string) ([]cell, error){churn, crossings} {
		s, err := open()
		if err != nil {
			return nil, err
		}
		cells, err := do(ctx, s, o, name)
		if err = errors.Join(err, s.stop()); err != nil {
			return nil, err
		}
		all = append(all, cells...)
	}
	return all, nil
}
