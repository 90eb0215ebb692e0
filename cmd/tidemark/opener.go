package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"tidemark/spm"
)

// closers are what has been opened and how to close it: in the reverse order,
// also when a start fails half way. The zero value is ready.
type closers struct {
	all []func() error // in the order of opening
}

// opened remembers how to close what was opened.
func (c *closers) opened(close func() error) { c.all = append(c.all, close) }

func (c *closers) close() error {
	var errs []error
	for i := len(c.all) - 1; i >= 0; i-- {
		errs = append(errs, c.all[i]())
	}
	c.all = nil
	return errors.Join(errs...)
}

// isVolume reports whether an image that was named on a command line is a volume:
// with a pool, everything without a slash in it is.
func isVolume(image, pool string) bool { return pool != "" && !strings.Contains(image, "/") }

// An opener opens images for a command that serves them, and the connection to
// the pool manager when the first of them is a volume.
type opener struct {
	closers
	socket string // of the pool manager
	log    *slog.Logger
	pool   *spm.Client // nil until a volume was opened
	disks  []*served   // in the order of opening
}

// open opens the image that spec names. It is closed with the opener.
func (o *opener) open(ctx context.Context, spec diskSpec) (*served, error) {
	volume := isVolume(spec.Image, o.socket)
	if volume {
		if err := o.dial(); err != nil {
			return nil, err
		}
		// What is below a volume is its pool's to say.
		spec.Pool, spec.Raw, spec.Backing = o.pool, false, nil
	}
	spec.Exchanged = spec.Exchanged && volume
	spec.Log = o.log
	d, err := openDisk(ctx, spec)
	if err != nil {
		return nil, o.advise(spec.Image, volume, err)
	}
	s := newServed(d)
	o.opened(s.Close)
	o.disks = append(o.disks, s)
	return s, nil
}

// alive returns if no disk hangs: who asks for its figures takes its locks.
func (o *opener) alive(context.Context) {
	for _, d := range o.disks {
		d.Stats()
	}
}

func (o *opener) dial() error {
	if o.pool != nil {
		return nil
	}
	c, err := spm.Dial(o.socket)
	if err != nil {
		return err
	}
	o.pool = c
	o.opened(c.Close)
	return nil
}

// redirect makes the disks ask the pool manager on another socket.
func (o *opener) redirect(socket string) error {
	switch {
	case o.pool == nil:
		return errNoVolume
	case !filepath.IsAbs(socket):
		return fmt.Errorf("%w: manager %q: expected the path of a socket, from the root of the file system", errBadRequest, socket)
	case o.pool.Socket() != socket:
		o.log.Info("another manager is asked", "was", o.pool.Socket(), "socket", socket)
		o.pool.Redirect(socket)
	}
	return nil
}

// advise says what to do when a volume is not there that may be a file.
func (o *opener) advise(image string, volume bool, err error) error {
	if !volume || spm.CodeOf(err) != spm.CodeNotFound {
		return err
	}
	return fmt.Errorf("%w; asked the pool manager at %s: see tidemark volume list, or write ./%s if you mean a file",
		err, o.socket, image)
}
