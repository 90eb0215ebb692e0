package spm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
)

// Servers are processes of their own, and one may hang: it is stopped in a debugger, or its
// disk does not answer. A request waits for the answer of a server no longer than
// HostOptions.ServerPatience, and who lists images that long for all of them together.
// Whether such an image is served is unknown then, which nobody takes for no.

// serverPatience is the default of HostOptions.ServerPatience.
const serverPatience = 2 * time.Second

var errUnanswered = errors.New("it does not answer")

type patientKey struct{}

// patient is for those who wait for a server for as long as ctx lasts: tasks, which go on
// when it does.
func patient(ctx context.Context) context.Context {
	return context.WithValue(ctx, patientKey{}, true)
}

// isPatient reports whether a task asks.
func isPatient(ctx context.Context) bool { return ctx.Value(patientKey{}) != nil }

// ask limits how long servers are waited for.
func (o *operations) ask(ctx context.Context) (context.Context, context.CancelFunc) {
	if isPatient(ctx) {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, o.patience, errUnanswered)
}

// serving returns the server of an image, if there is one, and keeps what it says. Who
// serves a copy of the image in another domain does not count. One that asks another
// manager is told to ask this one: the domain is ours, so the other has it no more.
func (o *operations) serving(ctx context.Context, m *Manager, image uuid.UUID) (s Server, there bool, err error) {
	asked, cancel := o.ask(ctx)
	defer cancel()
	s, err = o.servers.Find(asked, image.String())
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		return Server{}, false, nil
	case errors.Is(context.Cause(asked), errUnanswered):
		return Server{}, false, internal(err, "who serves image %s does not answer within %v: ask again, or end that process if it hangs for good", image, o.patience)
	default:
		return Server{}, false, internal(err, "find who serves image %s", image)
	}
	if s.Domain != "" && s.Domain != m.ident.domain.String() {
		return Server{}, false, nil
	}
	if s.Foreign {
		if err := o.servers.Adopt(asked, image.String()); err != nil {
			return Server{}, false, internal(err, "image %s is served by process %d for another manager, and it cannot be told to ask this one: end that process, and prepare the image again", image, s.PID)
		}
		s.Foreign = false
	}
	if leaf, err := uuid.Parse(s.Leaf); err == nil && s.Used > 0 {
		m.learnUsed(leaf, s.Used)
	}
	return s, true, nil
}

// An asked is what became of the question who serves an image.
type asked struct {
	server Server
	there  bool
	err    error // it is not known
}

// askMany is how many servers are asked side by side.
const askMany = 64

// servingEach asks for the servers of images, side by side, and for no longer than for one.
func (o *operations) servingEach(ctx context.Context, m *Manager, images []uuid.UUID) map[uuid.UUID]asked {
	ctx, cancel := o.ask(ctx)
	defer cancel()
	answers := make([]asked, len(images))
	next := make(chan int)
	var asking sync.WaitGroup
	for range min(askMany, len(images)) {
		asking.Go(func() {
			for i := range next {
				a := &answers[i]
				a.server, a.there, a.err = o.serving(ctx, m, images[i])
			}
		})
	}
	for i := range images {
		next <- i
	}
	close(next)
	asking.Wait()
	all := make(map[uuid.UUID]asked, len(images))
	for i, image := range images {
		all[image] = answers[i]
	}
	return all
}

// tell says of a volume what is known of who serves its image.
func (a asked) tell(f *family, i *VolumeInfo) {
	switch {
	case a.err != nil:
		i.Served, i.ServedUnknown = true, a.err.Error()
	case a.there:
		i.Served = servedBy(f, a.server, []uuid.UUID{i.Volume})
	}
}

// adopt finds who serves the images of a domain, so that those who ask another manager ask
// this one.
func (o *operations) adopt(m *Manager) {
	images, _ := o.images(m.ctx, m.ident.domain)
	for image, a := range o.servingEach(m.ctx, m, images) {
		if a.err != nil && m.ctx.Err() == nil {
			m.o.Log.Warn("who serves an image is not known, and may ask another manager", "image", image, "error", a.err)
		}
	}
}

// servedOf says of the images of a domain that are served who does it, as far as that
// can be found out.
func (o *operations) servedOf(ctx context.Context, m *Manager) (served []string) {
	images, _ := o.images(ctx, m.ident.domain)
	for image, a := range o.servingEach(ctx, m, images) {
		if a.there {
			served = append(served, fmt.Sprintf("image %s by process %d (%s)", image, a.server.PID, a.server.URI))
		}
	}
	slices.Sort(served)
	return served
}

// servedBy reports whether one of the volumes is in the chain of a server.
func servedBy(f *family, s Server, volumes []uuid.UUID) bool {
	leaf, err := uuid.Parse(s.Leaf)
	if err != nil {
		return true
	}
	chain, err := f.chain(leaf)
	if err != nil {
		return true
	}
	return slices.ContainsFunc(chain, func(k kin) bool { return slices.Contains(volumes, k.id) })
}
