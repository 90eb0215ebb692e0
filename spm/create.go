package spm

import (
	"context"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// A making is a volume that is to be made.
type making struct {
	id      uuid.UUID
	meta    volumeMeta
	granted int64 // bytes, at first; 0: the pool's choice
	request string
}

// CreateVolume makes an image with one volume.
func (m *Manager) CreateVolume(ctx context.Context, r VolumeCreateRequest) (VolumeReply, error) {
	if err := m.check(r.Header); err != nil {
		return VolumeReply{}, err
	}
	o, err := m.checkCreate(r)
	if err != nil {
		return VolumeReply{}, err
	}
	meta, err := newVolumeMeta(m.ident.domain, uuid.New(), r.Name, o.Format, o.Size, m.o.Now())
	if err != nil {
		return VolumeReply{}, errorf(CodeInvalid, "create %s: %v", r.Name, err)
	}
	meta.Type = allocIn(m.store.kind(), meta.Type, meta.Format)
	v, err := m.makeVolume(ctx, making{id: uuid.New(), meta: meta, request: r.RequestID})
	if err != nil {
		return VolumeReply{}, err
	}
	return VolumeReply{Header: m.header(r.Header), Volume: m.describe(v)}, nil
}

// ensureVolume makes a volume, unless it is there already as it should be.
func (m *Manager) ensureVolume(ctx context.Context, mk making) error {
	_, err := m.makeVolume(ctx, mk)
	return err
}

// makeVolume makes a volume. Of a repeated request the first one has made it, or still
// makes it.
func (m *Manager) makeVolume(ctx context.Context, mk making) (*volume, error) {
	v, made, err := m.begin(mk)
	if err != nil {
		return nil, err
	}
	if !made {
		if err := m.take(ctx, v); err != nil {
			return nil, err
		}
		defer func() { <-v.sem }()
		if !m.isReady(v) {
			return nil, errorf(CodeInternal, "create %s: the request that this one repeats has failed: repeat it", v.name())
		}
		return v, nil
	}
	defer func() { <-v.sem }()
	if err := m.build(ctx, v); err != nil {
		m.undo(v)
		return nil, &Error{Code: CodeOf(err), Message: "create " + v.name() + ": " + err.Error(), err: err}
	}
	m.mu.Lock()
	v.ready = true
	m.renameLocked(v.image)
	bound := v.bound // from here on a task may raise it
	m.mu.Unlock()
	meta := v.meta()
	m.o.Log.Info("volume created", "volume", v.name(), "uuid", v.id, "format", meta.wireFormat(), "size", meta.Capacity,
		"granted", v.size, "bound", bound)
	return v, nil
}

// begin checks a request to create and reserves the name and the space. The
// volume comes with its sem taken, unless the request is a repeated one.
func (m *Manager) begin(mk making) (v *volume, made bool, err error) {
	if _, err := mk.meta.encode(); err != nil {
		return nil, false, errorf(CodeInvalid, "create %s: %v", mk.id, err)
	}
	if err := m.there(); err != nil {
		return nil, false, err
	}
	v = m.newVolume(mk.meta.Image, mk.id, mk.meta)
	v.createID = mk.request
	v.sem <- struct{}{}
	m.mu.Lock()
	defer m.mu.Unlock()
	name := m.firstNameLocked(mk)
	if other, err := m.repeatedLocked(mk, name); other != nil || err != nil {
		return other, false, err
	}
	size := mk.granted
	if size == 0 || mk.meta.Type == Preallocated || mk.meta.Format == Raw {
		size = m.firstSize(mk.meta, v.bound)
	}
	size = min(roundUp(size, m.unit()), v.bound)
	if free := m.freeLocked() - m.reserveOfLocked(); size > free || len(m.queue) > 0 {
		return nil, false, m.refuseLocked(mk.id, name, size,
			"create %s: it needs %d bytes, and of the pool's %d bytes %d can be granted (%d volumes wait)",
			name, size, m.capacity, max(free, 0), len(m.queue))
	}
	m.volumes[v.id] = v
	m.callLocked(v, name)
	m.reserveLocked(v, size)
	return v, true, nil
}

// firstNameLocked is what a volume is called while it is being made: as its image
// if that is new.
func (m *Manager) firstNameLocked(mk making) string {
	if len(m.familyLocked().images[mk.meta.Image]) > 0 {
		return mk.id.String()
	}
	if alias := mk.meta.alias(); alias != "" {
		return alias
	}
	return mk.meta.Image.String()
}

// repeatedLocked returns the volume of a request that has been made before, and
// refuses one whose name or UUID another volume has.
func (m *Manager) repeatedLocked(mk making, name string) (*volume, error) {
	if other := m.volumes[mk.id]; other != nil {
		if have := other.meta(); other.damaged == nil && other.image == mk.meta.Image && have.Parent == mk.meta.Parent && have.Format == mk.meta.Format {
			return other, nil
		}
		return nil, errorf(CodeExists, "create %s: image %s has a volume of that UUID, and it is another one: choose another", mk.id, other.image)
	}
	if other := m.names[name]; other != nil {
		if mk.request != "" && other.createID == mk.request {
			return other, nil
		}
		return nil, errorf(CodeExists, "create %s: volume %s has that name already: choose another", name, other.id)
	}
	if p := mk.meta.Parent; p != uuid.Nil {
		if parent := m.volumes[p]; parent == nil || !parent.ready {
			return nil, errorf(CodeNotFound, "create %s: there is no volume %s that it could be based on", mk.id, p)
		}
	}
	return nil, nil
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
	case !validSize(o.Size):
		return o, errorf(CodeInvalid, "create %s: size is %d bytes, expected a multiple of 512 from 512 to %d", r.Name, o.Size, int64(sizeMax))
	}
	return o, nil
}

// sizeMax is the largest virtual size, 1 PiB: more than any image of QEMU's
// default geometry, and far from where the arithmetic of sizes overflows.
const sizeMax = 1 << 50

func validSize(n int64) bool { return n > 0 && n%512 == 0 && n <= sizeMax }

// firstSize is what a new volume is granted: a raw one everything, for its length
// is its size to whoever opens it, and a preallocated one too; a thin one a chunk,
// or its bound if that is less.
func (m *Manager) firstSize(meta volumeMeta, bound int64) int64 {
	if meta.Format == Raw || meta.Type == Preallocated {
		return bound
	}
	return min(roundUp(chunkSize, m.unit()), bound)
}

// build makes the volume and its content.
func (m *Manager) build(ctx context.Context, v *volume) error {
	meta := v.meta()
	if meta.wireFormat() != FormatQCOW2 {
		return m.store.create(ctx, v, nil)
	}
	o := CreateImage{Size: meta.Capacity, Format: meta.wireFormat(), Backing: m.backing(meta)}
	return m.store.create(ctx, v, func(ctx context.Context, f block.File) error {
		return m.o.Images.Create(ctx, f, o)
	})
}

// backing is what an image with that metadata says it is based on.
func (m *Manager) backing(meta volumeMeta) *BackingRef {
	m.mu.Lock()
	defer m.mu.Unlock()
	parent := m.volumes[meta.Parent]
	if parent == nil {
		return nil
	}
	return &BackingRef{Name: backingName(m.store.kind(), meta.Image, parent.image, parent.id), Format: parent.meta().wireFormat()}
}

// backingName is how an image names the one below it, in a domain of that kind. In
// a directory QEMU finds it by that.
func backingName(kind string, image, parentImage, parent uuid.UUID) string {
	if kind == typeDir && image != parentImage {
		return "../" + parentImage.String() + "/" + parent.String()
	}
	return parent.String()
}

// undo gives back what begin has taken, and removes what build has made.
func (m *Manager) undo(v *volume) {
	err := m.store.undo(context.WithoutCancel(m.ctx), v)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgetLocked(v)
	if err != nil { // keep the space: the bytes may be there until the next start
		m.o.Log.Error("half-made volume is still on disk", "volume", v.name(), "uuid", v.id, "error", err)
		return
	}
	m.granted -= v.size
	m.wakeLocked()
}
