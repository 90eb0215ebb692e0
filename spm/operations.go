package spm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

// operations are what tasks do with the volumes of domains. A method that is called
// like one of [Storage] checks a request and returns the kind of the task that does
// it, with its arguments: everything that the plan depends on, so that it is the
// same plan whoever makes it again.
type operations struct {
	domain  func(domain uuid.UUID) (*Manager, error) // of one that is active
	active  func() []*Manager                        // all of these
	locks   func() *task.Locks                       // of the tasks
	jobs    ImageJobs
	servers ImageServers
	// patience is how long a server is waited for that is asked what it does; tasks wait
	// for as long as they are let.
	patience time.Duration
}

func newOperations(find func(domain uuid.UUID) (*Manager, error), active func() []*Manager, locks func() *task.Locks, jobs ImageJobs,
	servers ImageServers) *operations {
	return &operations{domain: find, active: active, locks: locks, jobs: jobs, servers: servers, patience: serverPatience}
}

// The names of the kinds, which are VDSM's for the verbs.
const (
	kindCreateVolume = "createVolume"
	kindDeleteVolume = "deleteVolume"
	kindDeleteImage  = "deleteImage"
	kindCopyImage    = "copyImage"
	kindMoveImage    = "moveImage"
	kindMerge        = "mergeSnapshots"
	kindMergeLive    = "mergeSnapshots.live"
	kindResize       = "extendVolumeSize"
	kindResizeLive   = "extendVolumeSize.live"
	kindReduce       = "reduceVolume"
)

// kinds are the sorts of tasks on volumes.
func (o *operations) kinds() []task.Kind {
	return []task.Kind{
		kindOf(kindCreateVolume, o.planCreate),
		kindOf(kindDeleteVolume, o.planDelete),
		kindOf(kindDeleteImage, o.planDeleteImage),
		kindOf(kindCopyImage, o.planCopy),
		kindOf(kindMoveImage, o.planMove),
		kindOf(kindMerge, o.planMerge),
		kindOf(kindMergeLive, o.planMergeLive),
		kindOf(kindResize, o.planResize),
		kindOf(kindResizeLive, o.planResizeLive),
		kindOf(kindReduce, o.planReduce),
	}
}

// kindOf makes a kind of a plan that depends on nothing but its arguments.
func kindOf[A any](name string, plan func(A) task.Plan) task.Kind {
	return task.Kind{Name: name, Build: func(args json.RawMessage) (task.Plan, error) {
		var a A
		if err := json.Unmarshal(args, &a); err != nil {
			return task.Plan{}, fmt.Errorf("arguments of a task of kind %s: %w", name, err)
		}
		return plan(a), nil
	}}
}

// step makes a step of two functions that need no more than a context.
func step(name string, do, undo func(context.Context) error) task.Step {
	s := task.Step{Name: name, Do: func(ctx context.Context, _ *task.Run) error { return do(patient(ctx)) }}
	if undo != nil {
		s.Undo = func(ctx context.Context, _ *task.Run) error { return undo(patient(ctx)) }
	}
	return s
}

// orElse is a step behind the commit point with what is done when the task is given up
// there. Where that is nothing, what is half done says so: it is illegal, and can be done
// again or deleted by force.
func orElse(s task.Step, giveUp func(context.Context) error) task.Step {
	s.GiveUp = func(ctx context.Context, _ *task.Run) error { return giveUp(patient(ctx)) }
	return s
}

// hopeless says of the error of a job behind the commit point whether no repetition avoids
// it: the image is not fit for that, or damaged, or its file is gone and the domain is not.
func (m *Manager) hopeless(err error) error {
	var coded *Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrUnfit), errors.As(err, &coded) && coded.Code == CodeDamaged:
	case errors.Is(err, fs.ErrNotExist) && CodeOf(err) == CodeInternal && m.there() == nil:
	default:
		return err
	}
	return task.Hopeless(err)
}

// The names of resources, in VDSM's namespaces. A domain is held shared by what
// works in it, an image exclusively by what changes it. A volume needs no lock of
// its own: it is its image's.
func domainLock(domain uuid.UUID) task.Lock {
	return task.Lock{Name: "00_storage/" + domain.String()}
}

func imageLock(domain, image uuid.UUID, exclusive bool) task.Lock {
	return task.Lock{Name: "01_img/" + domain.String() + "/" + image.String(), Exclusive: exclusive}
}

// locksOf are what an operation on one image needs, and on templates below it.
func locksOf(domain, image uuid.UUID, templates ...uuid.UUID) []task.Lock {
	locks := []task.Lock{domainLock(domain), imageLock(domain, image, true)}
	for _, t := range templates {
		if t != uuid.Nil && t != image {
			locks = append(locks, imageLock(domain, t, false))
		}
	}
	return locks
}

// at returns the manager of the domain that a request is about.
func (o *operations) at(pool, domain uuid.UUID) (*Manager, error) {
	m, err := o.domain(domain)
	if err != nil {
		return nil, err
	}
	if pool != uuid.Nil && m.ident.pool != uuid.Nil && pool != m.ident.pool {
		return nil, errorf(CodeWrongPool, "domain %s is of pool %s, and the request of pool %s", domain, m.ident.pool, pool)
	}
	return m, nil
}

// volume returns the manager and the volume that a request is about: of an image
// the leaf, if no volume is named; of a domain the volume, if no image is.
func (o *operations) volume(at VolumeAt) (*Manager, kin, error) {
	m, err := o.at(at.Pool, at.Domain)
	if err != nil {
		return nil, kin{}, err
	}
	f := m.family()
	if at.Image == uuid.Nil {
		at.Image = f.all[at.Volume].image
	}
	if at.Volume == uuid.Nil {
		at.Volume, _ = f.shown(at.Image)
	}
	k, err := f.member(at.Image, at.Volume)
	return m, k, err
}

// idle refuses an image that is served, or of which somebody has one of the volumes
// open.
func (o *operations) idle(ctx context.Context, m *Manager, image uuid.UUID, volumes ...uuid.UUID) error {
	s, there, err := o.serving(ctx, m, image)
	if err != nil {
		return err
	}
	if there && servedBy(m.family(), s, volumes) {
		return errorf(CodeInUse, "image %s is served by process %d (%s): tear it down first", image, s.PID, s.URI)
	}
	return o.unused(ctx, m, image, volumes...)
}

// unused is [Manager.unused]. Who only asks has no lock of the image: he must not be in the
// way of a task that works on it, nor take that for somebody who is. If there is one, what
// he asks for waits for it, and looks then.
func (o *operations) unused(ctx context.Context, m *Manager, image uuid.UUID, volumes ...uuid.UUID) error {
	if !isPatient(ctx) {
		release, ok := o.locks().Try([]task.Lock{imageLock(m.ident.domain, image, true)})
		if !ok {
			return nil
		}
		defer release()
	}
	return m.unused(image, volumes...)
}

// jobError gives the error of a job on an image its code.
func jobError(err error, format string, args ...any) error {
	var coded *Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &coded), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, block.ErrInUse):
		return &Error{Code: CodeInUse, Message: fmt.Sprintf(format, args...) + ": " + err.Error(), err: err}
	case errors.Is(err, block.ErrNoSpace):
		return &Error{Code: CodePoolFull, Message: fmt.Sprintf(format, args...) + ": " + err.Error(), err: err}
	}
	return internal(err, format, args...)
}

// missing reports whether a step that goes forward only has nothing left to do:
// what it is about has been removed.
func missing(err error) bool {
	code := CodeOf(err)
	return err != nil && (code == CodeNotFound || code == CodeUnknownImage)
}

// unlessMissing is the error of a step that goes forward only.
func unlessMissing(err error) error {
	if missing(err) {
		return nil
	}
	return err
}
