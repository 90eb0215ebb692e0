package spm

import (
	"context"

	"github.com/google/uuid"

	"tidemark/internal/block"
	"tidemark/spm/task"
)

// A store is where a domain lies: a directory ([dirStore]) or a volume group
// ([groupStore]). The Manager decides, reserves and queues; a store acts, and
// knows the layout, the order of its writes and what a crash leaves. Calls for
// one volume come one after the other (volume.sem), those for several at the
// same time. The methods of the second half answer from memory or with a cheap
// system call, for the Manager asks them under its lock.
type store interface {
	// readDomain returns the metadata of the domain, nil if there is none yet, and
	// makeDomain makes one.
	readDomain(ctx context.Context) (domainMeta, error)
	makeDomain(ctx context.Context, m domainMeta) error
	// writeDomain replaces the metadata: a crash leaves the old or the new.
	writeDomain(ctx context.Context, m domainMeta) error
	// removeDomain removes the domain with everything in it. What is left after an
	// error is removed when the place is opened again.
	removeDomain(ctx context.Context) error
	// tasks opens where the tasks of a master are kept, until done is called.
	tasks(ctx context.Context) (kept task.Store, done func() error, err error)
	// volumes are the volumes that there are, as hold needs them, of a domain that is
	// not in use.
	volumes(ctx context.Context) ([]*volume, error)
	// scan finishes what a crash left half made or half removed, and returns
	// the volumes.
	scan(ctx context.Context) ([]stored, error)

	// create makes a volume of v.size bytes that is complete after a crash, or
	// not there, in an image that may have others. fill writes its content; it is
	// nil for one that reads zero. One that is preallocated has its space then.
	create(ctx context.Context, v *volume, fill func(context.Context, block.File) error) error
	// undo removes what a create that failed has left.
	undo(ctx context.Context, v *volume) error
	// write replaces the metadata of a volume: a crash leaves the old or the new.
	write(ctx context.Context, v *volume, m volumeMeta) error
	// extend makes a volume target bytes long, or up to most if that is better
	// for the store, and returns its size, durably. Without space the error is,
	// or wraps, block.ErrNoSpace or ENOSPC.
	extend(ctx context.Context, v *volume, target, most int64) (int64, error)
	// reduce makes a volume shorter, from exactly from bytes, and returns its size,
	// durably. Its holder has asked for it.
	reduce(ctx context.Context, v *volume, from, to int64) (int64, error)
	// remove removes a volume, which the caller holds. gone says that it is not
	// there any more, although there was an error.
	remove(ctx context.Context, v *volume) (gone bool, err error)
	// removeImage removes all volumes of an image, the topmost first, and returns
	// those that are gone. Once it has begun a crash leaves none of them.
	removeImage(ctx context.Context, all []*volume) (gone []*volume, err error)
	// free reports whether the space of volumes that are gone is free, although their
	// removal has failed.
	free() bool
	// zero makes the bytes of a volume from one to another read zero, durably, if they
	// may not since it was made longer.
	zero(ctx context.Context, v *volume, from, to int64) error
	// look opens a volume for reading what its image says of itself. Nobody has it open who
	// minds, or it is damaged.
	look(ctx context.Context, v *volume) (block.File, error)
	// wipe makes sure that nobody will see what was in a volume that is removed next.
	wipe(ctx context.Context, v *volume) error
	// hold takes a volume so that nobody else can open it, or fails with an
	// error that wraps block.ErrInUse and names who has it.
	hold(v *volume) (release func() error, err error)
	close() error
	// there fails if the place has vanished: if it is unmounted, moved away, or has
	// failed. It is quick.
	there() error
	// lost is closed when the lease is.
	lost() <-chan struct{}

	// refresh looks again at what others may have changed. It is called if the
	// place is shared: if others may change it beside the manager.
	refresh(ctx context.Context) error
	shared() bool

	// name says to people where the domain is, where tells places apart, and kind is
	// VDSM's type of such a domain.
	name() string
	where() string
	kind() string
	// grain is what the lengths of volumes are multiples of, in bytes.
	grain() int64
	// capacity is what the volumes may take together; configured is what the
	// domain's metadata says, 0 if nothing.
	capacity(configured int64) int64
	// carry is what the storage itself could grant beyond what is granted.
	carry(all map[uuid.UUID]*volume) (int64, error)
	// confined refuses a volume that lies elsewhere than in the domain: what is done to
	// it would be done there.
	confined(v *volume) error
	// describe and describePool add what the store knows.
	describe(v *volume, d *Volume)
	describePool(p *PoolReply)
	// length is the size of a volume, or most if that cannot be found out.
	length(v *volume, most int64) int64
}

// stored is a volume as a store finds it.
type stored struct {
	image, id uuid.UUID
	meta      volumeMeta
	size      int64
	damaged   error // why nobody can know what is in it; nil: it is whole
	lost      bool  // of a damaged one: meta does not say what it is based on
}
