package spm

import (
	"context"
	"errors"
	"io/fs"

	"github.com/google/uuid"
)

// prepare serves the chain of a volume.
func (o *operations) prepare(ctx context.Context, at VolumeAt, opt PrepareOptions) (Prepared, error) {
	m, k, err := o.volume(at)
	if err != nil {
		return Prepared{}, err
	}
	if err := m.there(); err != nil {
		return Prepared{}, err
	}
	if err := mayServe(m.family(), k, opt); err != nil {
		return Prepared{}, err
	}
	if _, err := m.places(k.id); err != nil {
		return Prepared{}, err
	}
	readOnly := opt.ReadOnly || k.shared()
	s, err := o.servers.Start(ctx, Serve{Domain: m.ident.domain.String(), Image: k.image.String(), Leaf: k.id.String(), ReadOnly: readOnly, AllowIllegal: opt.AllowIllegal})
	if err != nil {
		return Prepared{}, m.serveError(err, k.id)
	}
	return o.prepared(m, k, at.Pool, s)
}

// serveError is the error of a server that has not started. An image is damaged that is
// none, is corrupt or needs what we do not have, or whose file is gone while its domain is
// there.
func (m *Manager) serveError(err error, id uuid.UUID) error {
	if errors.Is(err, ErrUnfit) || errors.Is(err, fs.ErrNotExist) && m.there() == nil {
		return errorf(CodeDamaged, "serve volume %s: %v", id, err)
	}
	return jobError(err, "serve volume %s", id)
}

// served is prepare for an image that is served already as it should be, also while a
// task works on it.
func (o *operations) served(ctx context.Context, at VolumeAt, opt PrepareOptions) (p Prepared, there bool, err error) {
	m, k, err := o.volume(at)
	if err != nil {
		return p, false, err
	}
	s, there, err := o.serving(ctx, m, k.image)
	if err != nil || !there || s.Leaf != k.id.String() || s.ReadOnly != (opt.ReadOnly || k.shared()) {
		return p, false, err
	}
	p, err = o.prepared(m, k, at.Pool, s)
	return p, true, err
}

// mayServe decides whether a volume may be served. What is below it may be illegal:
// a merge that failed leaves the chain above it whole.
func mayServe(f *family, k kin, opt PrepareOptions) error {
	if !k.legal() && !opt.AllowIllegal {
		return f.illegal(k)
	}
	if len(f.kids[k.id]) > 0 && !opt.ReadOnly && !k.shared() {
		return errorf(CodeHasChildren, "volume %s has %d volumes that are based on it, so nobody may write to it: serve it read-only, or the leaf",
			k.id, len(f.kids[k.id]))
	}
	if !opt.ReadOnly && !k.shared() {
		if err := f.mayWrite(k); err != nil {
			return err
		}
	}
	_, err := f.chain(k.id)
	return err
}

func (o *operations) prepared(m *Manager, k kin, pool uuid.UUID, s Server) (Prepared, error) {
	p := Prepared{
		VolumeAt: VolumeAt{Pool: pool, Domain: m.ident.domain, Image: k.image, Volume: k.id},
		URI:      s.URI, Socket: s.Socket, Control: s.Control, PID: s.PID,
	}
	chain, err := m.family().chain(k.id)
	for _, k := range chain {
		p.Chain = append(p.Chain, m.info(k.id))
	}
	return p, err
}

// teardown ends who serves an image. Nobody does: that is no error.
func (o *operations) teardown(ctx context.Context, at VolumeAt) error {
	if there, err := o.mayTeardown(ctx, at); err != nil || !there {
		return err
	}
	return jobError(o.servers.Stop(ctx, at.Image.String()), "end the server of image %s", at.Image)
}

// mayTeardown decides whether the server of an image may end, if there is one.
func (o *operations) mayTeardown(ctx context.Context, at VolumeAt) (there bool, err error) {
	m, err := o.at(at.Pool, at.Domain)
	if err != nil {
		return false, err
	}
	if len(m.family().images[at.Image]) == 0 {
		return false, errorf(CodeUnknownImage, "domain %s has no image %s", at.Domain, at.Image)
	}
	s, there, err := o.serving(ctx, m, at.Image)
	if err == nil && there && s.Merge != "" && s.Merge != mergeFailed {
		err = errorf(CodeInUse, "image %s is being merged (%s): wait for its task, or stop it", at.Image, s.Merge)
	}
	return there, err
}
