package spm

import (
	"cmp"
	"context"
	"strings"
	"time"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// createArgs is a volume that is to be made, with everything that has been decided
// about it. A size of 0 is that of the parent, when the task has both locked: until
// then that may become larger.
type createArgs struct {
	VolumeAt
	ParentImage uuid.UUID  `json:"parent_image"`
	Meta        volumeMeta `json:"metadata"`
	Granted     int64      `json:"granted"`
}

// createVolume makes a volume: blank, on a template, or on the leaf of its own
// image, which may be served: a snapshot.
func (o *operations) createVolume(ctx context.Context, r NewVolume) (kind string, args any, err error) {
	m, err := o.at(r.Pool, r.Domain)
	if err != nil {
		return "", nil, err
	}
	if r.Parent != uuid.Nil && r.ParentImage == uuid.Nil {
		r.ParentImage = r.Image
	}
	f := m.family()
	meta, err := newMeta(f, m.store.kind(), r, m.o.Now())
	if err != nil {
		return "", nil, err
	}
	if r.Initial > 0 { // less than a chunk has no room for the tables of a large image
		r.Initial = max(r.Initial, m.firstSize(meta, m.boundOf(meta)))
	}
	a := createArgs{VolumeAt: r.VolumeAt, ParentImage: r.ParentImage, Meta: meta, Granted: r.Initial}
	if err := o.checkSpace(m, r.Volume, meta, r.Initial); err != nil {
		return "", nil, err
	}
	a.Meta.Capacity = r.Size
	return kindCreateVolume, a, o.checkCreate(ctx, a)
}

// newMeta checks a request for a volume and says what its metadata will be.
func newMeta(f *family, kind string, r NewVolume, now time.Time) (volumeMeta, error) {
	meta := volumeMeta{
		Capacity: r.Size, Created: now.Unix(), Description: fittingDescription(r.Description), DiskType: r.DiskType, Domain: r.Domain,
		Format: r.Format, Image: r.Image, Legality: Legal, Parent: r.Parent, Priority: r.Priority,
		Sequence: 1, Type: r.Alloc, VolType: r.Type,
	}
	if meta.DiskType == "" {
		meta.DiskType = "DATA"
	}
	if r.Parent != uuid.Nil {
		parent, err := f.maySnapshot(r.Image, r.ParentImage, r.Parent)
		if err != nil {
			return meta, err
		}
		meta.Sequence = parent.meta.Sequence + 1
		if meta.Capacity, err = sizeOn(parent, meta.Capacity); err != nil {
			return meta, err
		}
		if meta.Description == "" && parent.image == r.Image {
			meta.Description = parent.meta.Description
		}
	} else if len(f.images[r.Image]) > 0 {
		return meta, errorf(CodeExists, "image %s has volumes already: a new one of it is based on its leaf", r.Image)
	}
	return meta, checkMeta(kind, meta, r.Volume)
}

// sizeOn is the size of a volume that is to be based on parent; 0 asks for the parent's.
// Were it less, the image would lose what the parent shows behind that, and could never
// be extended.
func sizeOn(parent kin, size int64) (int64, error) {
	switch have := parent.meta.Capacity; {
	case size == 0:
		return have, nil
	case size < have:
		return 0, errorf(CodeInvalid, "size is %d bytes, less than the %d of the volume that it is to be based on: repeat the request with that, or with 0", size, have)
	}
	return size, nil
}

// checkMeta refuses what no volume may be, in a domain of that kind.
func checkMeta(kind string, m volumeMeta, id uuid.UUID) error {
	bad := func(what, got, want string) error {
		return errorf(CodeInvalid, "volume %s: %s is %q, expected %s", id, what, got, want)
	}
	switch {
	case id == uuid.Nil || m.Image == uuid.Nil:
		return errorf(CodeInvalid, "volume %s of image %s: expected a UUID of each that is not all zeroes", id, m.Image)
	case id == m.Parent:
		return errorf(CodeInvalid, "volume %s cannot be based on itself", id)
	case m.Format != Cow && m.Format != Raw:
		return bad("format", m.Format, Cow+" or "+Raw)
	case m.Type != Sparse && m.Type != Preallocated:
		return bad("allocation", m.Type, Sparse+" or "+Preallocated)
	case m.VolType != Leaf && m.VolType != Shared:
		return bad("type", m.VolType, Leaf+" or "+Shared)
	case m.Format == Raw && m.Parent != uuid.Nil:
		return errorf(CodeInvalid, "volume %s: a raw volume cannot be based on another: use %s", id, Cow)
	case m.Format == Raw && m.Type == Sparse && kind == typeGroup:
		return errorf(CodeInvalid, "volume %s: a raw volume of a block domain cannot be sparse: use %s, or %s", id, Preallocated, Cow)
	case !validSize(m.Capacity):
		return errorf(CodeInvalid, "volume %s: size is %d bytes, expected a multiple of 512 from 512 to %d", id, m.Capacity, int64(sizeMax))
	case m.Priority < -priorityMax || m.Priority > priorityMax:
		return errorf(CodeInvalid, "volume %s: priority is %d, expected %d to %d", id, m.Priority, -priorityMax, priorityMax)
	case strings.ContainsAny(m.Description+m.DiskType, "\n\r\x00"):
		return errorf(CodeInvalid, "volume %s: description and disk type are one line each", id)
	}
	if alias := m.alias(); alias != "" {
		if err := checkName(alias); err != nil {
			return errorf(CodeInvalid, "volume %s: its DiskAlias: %v", id, err)
		}
	}
	if _, err := m.encode(); err != nil {
		return errorf(CodeInvalid, "volume %s: %v", id, err)
	}
	return nil
}

// checkSpace refuses at once what the pool cannot carry now.
func (o *operations) checkSpace(m *Manager, id uuid.UUID, meta volumeMeta, initial int64) error {
	if meta.Format == Cow && m.o.Images == nil {
		return errorf(CodeUnsupported, "this manager can make no %s images: use %s", FormatQCOW2, Raw)
	}
	if initial < 0 {
		return errorf(CodeInvalid, "initial size is %d bytes, expected a number that is not negative", initial)
	}
	if err := m.there(); err != nil {
		return err
	}
	bound := m.boundOf(meta)
	need := initial
	if need == 0 || meta.Format == Raw || meta.Type == Preallocated {
		need = m.firstSize(meta, bound)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if free := m.freeLocked() - m.reserveOfLocked(); min(need, bound) > free {
		return m.refuseLocked(id, meta.alias(), min(need, bound), "the volume needs %d bytes, and of the domain's %d bytes %d can be granted",
			min(need, bound), m.capacity, max(free, 0))
	}
	return nil
}

// checkCreate says whether a volume can be made now. The task asks it again when it
// has its locks.
func (o *operations) checkCreate(ctx context.Context, a createArgs) error {
	m, err := o.at(a.Pool, a.Domain)
	if err != nil {
		return err
	}
	f := m.family()
	m.mu.Lock()
	other := m.volumes[a.Volume]
	m.mu.Unlock()
	if other != nil {
		return errorf(CodeExists, "volume %s exists already, in image %s", a.Volume, other.image)
	}
	if below := f.all[a.Meta.Parent]; below.image != a.Image || below.meta.alias() != a.Meta.alias() {
		if err := o.mayName(a.Image, a.Meta.alias()); err != nil {
			return err
		}
	}
	if a.Meta.Parent == uuid.Nil {
		if len(f.images[a.Image]) > 0 {
			return errorf(CodeExists, "image %s has volumes already", a.Image)
		}
		return nil
	}
	parent, err := f.maySnapshot(a.Image, a.ParentImage, a.Meta.Parent)
	if err != nil {
		return err
	}
	size, err := sizeOn(parent, a.Meta.Capacity)
	if err != nil || parent.image != a.Image {
		return err
	}
	s, there, err := o.serving(ctx, m, a.Image)
	switch {
	case err != nil:
		return err
	case there && s.Merge != "":
		return errorf(CodeUnfinished, "image %s is being merged (%s): a snapshot is made when that is over", a.Image, s.Merge)
	case there && size != parent.meta.Capacity:
		return errorf(CodeInUse, "image %s is served by process %d (%s), and its snapshot has its size, %d bytes: ask for that, or for 0, and extend it afterwards",
			a.Image, s.PID, s.URI, parent.meta.Capacity)
	case there:
		return nil
	}
	return o.unused(ctx, m, a.Image, parent.id)
}

// planCreate: once the volume is there it is the leaf, and whoever serves the image
// goes over to it.
func (o *operations) planCreate(a createArgs) task.Plan {
	settled := false // what it is made on: with the locks nobody writes to that any more
	p := task.Plan{
		Locks: append(locksOf(a.Domain, a.Image, a.ParentImage), nameLocks(a.Meta)...),
		Steps: []task.Step{
			step("check", func(ctx context.Context) error { return o.checkCreate(ctx, a) }, nil),
			{
				Name: "make",
				Do: func(ctx context.Context, r *task.Run) (err error) {
					if settled, err = o.settleLeaf(patient(ctx), a, r.Progress); err != nil {
						return err
					}
					return o.makeVolume(patient(ctx), a)
				},
				Undo: func(ctx context.Context, _ *task.Run) error {
					return o.removeVolumes(ctx, deleteArgs{Domain: a.Domain, Image: a.Image, Volumes: []uuid.UUID{a.Volume}})
				},
			},
		},
		Commit: 2,
	}
	if a.snapshot() {
		p.Steps = append(p.Steps, orElse(task.Step{
			Name: "switch",
			Do:   func(ctx context.Context, r *task.Run) error { return o.switchTo(patient(ctx), a, settled, r.Progress) },
		}, func(ctx context.Context) error { return o.unswitch(ctx, a.VolumeAt) }))
	}
	return p
}

// snapshot reports whether the volume is made on the leaf of its image, which becomes
// internal.
func (a createArgs) snapshot() bool { return a.Meta.Parent != uuid.Nil && a.ParentImage == a.Image }

func (o *operations) makeVolume(ctx context.Context, a createArgs) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	meta := a.Meta
	if meta.Parent != uuid.Nil {
		parent, err := m.family().member(a.ParentImage, meta.Parent)
		if err != nil {
			return err
		}
		if meta.Capacity, err = sizeOn(parent, meta.Capacity); err != nil {
			return err
		}
	}
	if err := m.ensureVolume(ctx, making{id: a.Volume, meta: meta, granted: a.Granted}); err != nil || a.ParentImage != a.Image {
		return err
	}
	// Only a server of ours goes over to the new leaf. Who has opened the old one for
	// himself since the check would go on to write to it.
	if _, there, err := o.serving(ctx, m, a.Image); there || err != nil {
		return err
	}
	return m.unused(a.Image, a.Meta.Parent)
}

// settleLeaf gives back what a writer of the leaf that died had reserved: nobody writes to
// that volume any more once it has a snapshot. Who serves it does that when it goes over
// to the new leaf: then, and of a raw one, settled is false.
func (o *operations) settleLeaf(ctx context.Context, a createArgs, p Progress) (settled bool, err error) {
	m, err := o.domain(a.Domain)
	if err != nil || !a.snapshot() || m.family().all[a.Meta.Parent].meta.Format != Cow {
		return false, err
	}
	s, there, err := o.serving(ctx, m, a.Image)
	if err != nil || there && !s.ReadOnly {
		return false, err
	}
	if died, err := m.writerDied(ctx, &volume{image: a.Image, id: a.Meta.Parent}); err == nil && !died {
		return true, nil
	} // what is wrong the job says, and whom to ask
	chain, err := m.places(a.Meta.Parent)
	if err != nil {
		return false, err
	}
	err = jobError(o.jobs.Settle(ctx, chain, p), "give back what a process that died had reserved in volume %s", a.Meta.Parent)
	if err != nil {
		err = cmp.Or(m.headless(ctx, a.Image, a.Meta.Parent), err)
	}
	return err == nil, err
}

// drop removes a volume.
func (o *operations) drop(ctx context.Context, at VolumeAt, zero bool) error {
	m, err := o.domain(at.Domain)
	if err != nil {
		return err
	}
	return m.dropVolume(ctx, at.Image, at.Volume, zero)
}

// switchTo makes a new leaf the one that is written to. A server that has gone
// meanwhile opens it when it comes back, and what it had reserved below is given back
// here. The snapshot is made, so what stands in the way of that does not undo it.
func (o *operations) switchTo(ctx context.Context, a createArgs, settled bool, p Progress) error {
	m, err := o.domain(a.Domain)
	if err != nil {
		return err
	}
	s, there, err := o.serving(ctx, m, a.Image)
	if err != nil {
		return err
	}
	if there && !s.ReadOnly && s.Leaf != a.Volume.String() {
		if err := o.servers.Snapshot(ctx, a.Image.String(), a.Volume.String()); err != nil {
			if _, still, ferr := o.serving(ctx, m, a.Image); still || ferr != nil {
				return jobError(err, "let the server of image %s write to volume %s", a.Image, a.Volume)
			}
		}
	}
	if settled {
		return m.settle(ctx, a.Image)
	}
	if _, err := o.settleLeaf(ctx, a, p); err != nil {
		if ctx.Err() != nil {
			return err
		}
		m.o.Log.Warn("a volume that has a snapshot now keeps what a process that died had reserved in it", "volume", a.Meta.Parent, "error", err)
	}
	return m.settle(ctx, a.Image)
}

// unswitch is the end of a snapshot that is given up: it goes if the server of the image
// does not write to it.
func (o *operations) unswitch(ctx context.Context, at VolumeAt) error {
	m, err := o.domain(at.Domain)
	if err != nil {
		return err
	}
	s, there, err := o.serving(ctx, m, at.Image)
	if err != nil {
		return err
	}
	if there && !s.ReadOnly && s.Leaf != at.Volume.String() {
		return o.removeVolumes(ctx, deleteArgs{Domain: at.Domain, Image: at.Image, Volumes: []uuid.UUID{at.Volume}})
	}
	return m.settle(ctx, at.Image)
}
