package spm

import (
	"context"
	"time"

	"tidemark/spm/task"
)

// mergePoll is how often a server is asked how far its merge is.
const mergePoll = 100 * time.Millisecond

// What a Server says of its merge.
const (
	mergeReady  = "ready"
	mergeFailed = "failed"
)

// checkMergeLive says whether a served image can be merged now: its leaf into the
// leaf's parent.
func (o *operations) checkMergeLive(ctx context.Context, a mergeArgs) error {
	m, err := o.mergeable(a)
	if err != nil {
		return err
	}
	s, there, err := o.serving(ctx, m, a.Image)
	switch {
	case err != nil:
		return err
	case !there:
		return errorf(CodeStale, "image %s is not served any more: repeat the request", a.Image)
	case s.ReadOnly:
		return errorf(CodeInUse, "image %s is served read-only by process %d: tear it down first", a.Image, s.PID)
	case s.Leaf != a.successor().String() || len(a.Run) != 2:
		return errorf(CodeInUse, "image %s is served by process %d: then only its leaf, %s, can be merged, and into the volume right below", a.Image, s.PID, s.Leaf)
	case s.Merge != "" && s.Merge != mergeFailed:
		return errorf(CodeUnfinished, "image %s is being merged already (%s)", a.Image, s.Merge)
	}
	return nil
}

// planMergeLive merges the leaf of a served image into its parent. From the step
// "mirror" on the server writes to both, so that they show the same: "publish"
// decides that the parent is the leaf, and then the server lets go of the other.
func (o *operations) planMergeLive(a mergeArgs) task.Plan {
	leave := func(ctx context.Context) error { return o.unpublish(ctx, a) }
	return task.Plan{
		Locks: locksOf(a.Domain, a.Image),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkMergeLive(ctx, a) }, nil),
			step("space", func(ctx context.Context) error { return o.mergeSpaceLive(ctx, a) },
				func(ctx context.Context) error { return o.unspend(ctx, a) }),
			o.tear(a),
			{
				Name: "mirror",
				Do:   func(ctx context.Context, r *task.Run) error { return o.mirror(ctx, a, r.Progress) },
				Undo: func(ctx context.Context, _ *task.Run) error { return o.cancelMirror(ctx, a) },
			},
			orElse(step("publish", func(ctx context.Context) error { return o.publishMirrored(ctx, a) }, nil), leave),
			orElse(step("pivot", func(ctx context.Context) error { return o.pivot(ctx, a) }, nil), leave),
			step("remove", func(ctx context.Context) error { return o.removeMerged(ctx, a) }, nil),
		},
		Commit: 4,
	}
}

// mergeSpaceLive gives the ancestor what the leaf has, from the reserve if need be.
// What the guest writes meanwhile its server asks for itself.
func (o *operations) mergeSpaceLive(ctx context.Context, a mergeArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	if err := m.raiseBound(a.Image, a.ancestor(), a.Size); err != nil {
		return err
	}
	below, leaf := m.info(a.ancestor()), m.info(a.successor())
	need := min(below.Used+leaf.Used, below.Bound)
	if below.Format == Raw {
		need = a.Size
	}
	return m.grantAtLeast(ctx, a.Image, a.ancestor(), need, true)
}

// mirror starts the merge at the server and waits until it writes to both volumes.
func (o *operations) mirror(ctx context.Context, a mergeArgs, p Progress) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	if err := m.raiseBound(a.Image, a.ancestor(), a.Size); err != nil { // again: marking it has set it
		return err
	}
	image, leaf := a.Image.String(), a.successor().String()
	if err := o.servers.MergeStart(ctx, image, leaf); err != nil {
		return jobError(err, "merge the leaf of image %s", image)
	}
	tick := time.NewTicker(mergePoll)
	defer tick.Stop()
	for {
		s, err := o.servers.Find(ctx, image)
		switch {
		case err != nil:
			return jobError(err, "the server of image %s, which merges its leaf", image)
		case s.Merge == mergeReady:
			return nil
		case s.Merge == mergeFailed || s.Merge == "":
			return errorf(CodeInternal, "merge the leaf of image %s: its server says: %s", image, s.MergeError)
		}
		p(s.MergeDone, s.MergeTotal)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// cancelMirror lets a server write to the leaf alone again. One that has gone does
// nothing else when it comes back. One that does not say that it merges is told as well: what
// a manager that died has asked for it may be about to begin.
func (o *operations) cancelMirror(ctx context.Context, a mergeArgs) error {
	_, s, err := o.writer(ctx, a)
	if err != nil || s == nil || s.ReadOnly {
		return err
	}
	return jobError(o.servers.MergeCancel(ctx, a.Image.String(), a.successor().String()), "end the merge of image %s", a.Image)
}

// writer is the server of the image that has the leaf which is merged, nil if there is none.
func (o *operations) writer(ctx context.Context, a mergeArgs) (*Manager, *Server, error) {
	m, err := o.domain(a.Domain)
	if err != nil {
		return nil, nil, err
	}
	s, there, err := o.serving(ctx, m, a.Image)
	if err != nil || !there || s.Leaf != a.successor().String() {
		return m, nil, err
	}
	return m, &s, nil
}

// mirrors reports whether a server of the image writes to both volumes. One that came back
// meanwhile writes to the leaf alone: then the merge is given up.
func (o *operations) mirrors(ctx context.Context, a mergeArgs) (bool, error) {
	_, s, err := o.writer(ctx, a)
	switch {
	case err != nil || s == nil:
		return false, err
	case s.Merge != mergeReady:
		return false, task.Hopeless(errorf(CodeStale, "image %s is served anew by process %d, which writes to its leaf alone: merge it again", a.Image, s.PID))
	}
	return true, nil
}

// publishMirrored makes the ancestor the leaf.
func (o *operations) publishMirrored(ctx context.Context, a mergeArgs) error {
	if _, err := o.mirrors(ctx, a); err != nil {
		return err
	}
	return o.publishMerge(ctx, a)
}

// unpublish is the end of a merge that is given up while a server writes to the leaf: that
// is the leaf, and the ancestor is what a merge that failed leaves.
func (o *operations) unpublish(ctx context.Context, a mergeArgs) error {
	m, s, err := o.writer(ctx, a)
	if err != nil || s == nil {
		return err
	}
	if err := o.cancelMirror(ctx, a); err != nil {
		return err
	}
	// It may have let go of the leaf before it was told: a manager that died had asked it to.
	if _, s, err = o.writer(ctx, a); err != nil || s == nil {
		return err
	}
	if err := o.mark(ctx, a.Domain, a.Image, a.above(), Legal); err != nil {
		return err
	}
	if err := o.mark(ctx, a.Domain, a.Image, a.torn(), Illegal); err != nil {
		return err
	}
	return m.settle(ctx, a.Image)
}

// pivot lets a server write to the ancestor alone. One that has gone opens it when
// it comes back, for it is the leaf.
func (o *operations) pivot(ctx context.Context, a mergeArgs) error {
	if mirrors, err := o.mirrors(ctx, a); err != nil || !mirrors {
		return err
	}
	return jobError(o.servers.MergePivot(ctx, a.Image.String(), a.successor().String()), "let the server of image %s write to volume %s",
		a.Image, a.ancestor())
}
