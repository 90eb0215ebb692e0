package spm

import (
	"context"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// CreateVolume makes an image with one volume.
func (m *Manager) CreateVolume(ctx context.Context, r VolumeCreateRequest) (VolumeReply, error) {
	if err := m.check(r.Header); err != nil {
		return VolumeReply{}, err
	}
	v, made, err := m.begin(r)
	if err != nil {
		return VolumeReply{}, err
	}
	if !made { // a repeated request: its first one has made, or still makes, the volume
		if err := m.take(ctx, v); err != nil {
			return VolumeReply{}, err
		}
		defer func() { <-v.sem }()
		if !m.isReady(v) {
			return VolumeReply{}, errorf(CodeInternal, "create %s: the request that this one repeats has failed: repeat it", v.name)
		}
		return VolumeReply{Header: m.header(r.Header), Volume: m.describe(v)}, nil
	}
	defer func() { <-v.sem }()
	if err := m.build(ctx, v); err != nil {
		m.undo(v)
		return VolumeReply{}, &Error{Code: CodeOf(err), Message: "create " + v.name + ": " + err.Error(), err: err}
	}
	m.mu.Lock()
	v.ready = true
	m.mu.Unlock()
	m.o.Log.Info("volume created", "volume", v.name, "uuid", v.id, "format", v.meta.wireFormat(), "size", v.meta.Capacity,
		"granted", v.size, "bound", v.bound)
	return VolumeReply{Header: m.header(r.Header), Volume: m.describe(v)}, nil
}

// begin checks a request to create and reserves the name and the space. The
// volume comes with its sem taken, unless the request is a repeated one.
func (m *Manager) begin(r VolumeCreateRequest) (v *volume, made bool, err error) {
	o, err := m.checkCreate(r)
	if err != nil {
		return nil, false, err
	}
	meta, err := newVolumeMeta(m.ident.domain, uuid.New(), r.Name, o.Format, o.Size, m.o.Now())
	if err != nil {
		return nil, false, errorf(CodeInvalid, "create %s: %v", r.Name, err)
	}
	if _, err := meta.encode(); err != nil {
		return nil, false, errorf(CodeInvalid, "create %s: %v", r.Name, err)
	}
	v = m.newVolume(meta.Image, uuid.New(), meta)
	v.createID = r.RequestID
	v.sem <- struct{}{}
	m.mu.Lock()
	defer m.mu.Unlock()
	if other := m.names[r.Name]; other != nil {
		if r.RequestID != "" && other.createID == r.RequestID {
			return other, false, nil
		}
		return nil, false, errorf(CodeExists, "create %s: volume %s has that name already: choose another", r.Name, other.id)
	}
	size := m.firstSize(o.Format, v.bound)
	if free := m.freeLocked(); size > free || len(m.queue) > 0 {
		return nil, false, errorf(CodePoolFull,
			"create %s: it needs %d bytes, and of the pool's %d bytes %d can be granted (%d volumes wait): remove a volume or raise the capacity",
			r.Name, size, m.capacity, free, len(m.queue))
	}
	m.volumes[v.id], m.names[r.Name] = v, v
	m.reserveLocked(v, size)
	return v, true, nil
}

func (m *Manager) checkCreate(r VolumeCreateRequest) (CreateImage, error) {
	o := CreateImage{Size: r.Size, Format: r.Format}
	if o.Format == "" {
		o.Format = FormatQCOW2
	}
	if err := checkName(r.Name); err != nil {
		return o, errorf(CodeInvalid, "create: %v", err)
	}
	switch {
	case o.Format != FormatQCOW2 && o.Format != FormatRaw:
		return o, errorf(CodeInvalid, "create %s: format is %q, expected %s or %s", r.Name, o.Format, FormatQCOW2, FormatRaw)
	case o.Format == FormatQCOW2 && m.o.Images == nil:
		return o, errorf(CodeInvalid, "create %s: this manager can make no %s images: use %s", r.Name, FormatQCOW2, FormatRaw)
	case o.Size <= 0 || o.Size%512 != 0 || o.Size > sizeMax:
		return o, errorf(CodeInvalid, "create %s: size is %d bytes, expected a multiple of 512 from 512 to %d", r.Name, o.Size, int64(sizeMax))
	}
	return o, nil
}

// sizeMax is the largest virtual size, 1 PiB: more than any image of QEMU's
// default geometry, and far from where the arithmetic of sizes overflows.
const sizeMax = 1 << 50

// firstSize is what a new volume is granted: a raw one everything, for its
// length is its size to whoever opens it; a thin one a chunk, or its bound if
// that is less.
func (m *Manager) firstSize(format string, bound int64) int64 {
	if format == FormatRaw {
		return bound
	}
	return min(roundUp(chunkSize, m.unit()), bound)
}

// build makes the volume and its content.
func (m *Manager) build(ctx context.Context, v *volume) error {
	if v.meta.wireFormat() != FormatQCOW2 {
		return m.store.create(ctx, v, nil)
	}
	o := CreateImage{Size: v.meta.Capacity, Format: v.meta.wireFormat()}
	return m.store.create(ctx, v, func(ctx context.Context, f block.File) error {
		return m.o.Images.Create(ctx, f, o)
	})
}

// undo gives back what begin has taken, and removes what build has made.
func (m *Manager) undo(v *volume) {
	err := m.store.undo(context.WithoutCancel(m.ctx), v)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.volumes, v.id)
	delete(m.names, v.name)
	v.gone = true
	if err != nil { // keep the space: the bytes may be there until the next start
		m.o.Log.Error("half-made volume is still on disk", "volume", v.name, "uuid", v.id, "error", err)
		return
	}
	m.granted -= v.size
	m.wakeLocked()
}
