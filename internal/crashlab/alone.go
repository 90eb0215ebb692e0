package crashlab

import (
	"errors"
	"syscall"

	"tidemark/internal/block"
)

// alone does a request that is done alone.
func (r *runner) alone(q Request) {
	a := r.begin(q)
	var err error
	switch q.Kind {
	case Resize:
		err = r.disk.Resize(r.ctx, q.N*sector)
	case GiveBack:
		err = r.giveBack(q.N * sector)
	case Reopen:
		err = r.disk.Close()
		r.ack(a, err)
		r.reopen()
		return
	case Amend:
		err = r.amend(int(q.N))
		r.ack(a, err)
		r.reopen()
		return
	case Kill:
		left := r.die()
		_ = r.disk.Close() // whatever it says and does: the process is dead
		r.restoreBeside(left)
		r.reopen()
	case FailSync:
		r.below.FailSync(syscall.EIO)
	case FailWrite:
		r.gate.failing.Store(q.N)
	case EvictReopen:
		r.die()
		_ = r.disk.Close()
		r.restoreBeside(nil)
		r.below.FailSync(nil)
		r.below.Evict()
		_ = r.below.Sync() // what is left of the cache lands: it cannot fail now
		r.history.evicted = append(r.history.evicted, eviction{r.file.Mark(evictMark), r.below.State()})
		r.reopen()
	}
	r.ack(a, err)
}

// giveBack grants the File n bytes and has the image give back what it can. A File that
// keeps its space is as good.
func (r *runner) giveBack(n int64) error {
	size := r.gate.Size() + n
	if _, err := r.gate.Grow(r.ctx, size, size); err != nil {
		return err
	}
	_, err := r.disk.GiveBack(r.ctx)
	if errors.Is(err, block.ErrUnsupported) {
		return nil
	}
	return err
}

// amend closes the image and changes the width of its reference counts.
func (r *runner) amend(bits int) error {
	if err := r.disk.Close(); err != nil {
		return err
	}
	if r.setup.Engine.Amend == nil {
		return errors.ErrUnsupported
	}
	return r.setup.Engine.Amend(r.ctx, r.gate, bits)
}

// die cuts the process off from its File, and returns what it leaves beside it.
func (r *runner) die() (left folder) {
	r.gate.shut(func() { left = r.saveBeside() })
	return left
}

func (r *runner) saveBeside() folder {
	f, err := saveFolder(r.beside)
	if err != nil {
		r.fault(asFault(err, 1, "save what is beside the image"))
	}
	return f
}

func (r *runner) restoreBeside(f folder) {
	if err := f.restore(r.beside); err != nil {
		r.fault(asFault(err, 1, "restore what is beside the image"))
	}
}

func (r *runner) reopen() {
	if err := r.open(); err != nil {
		r.fault(asFault(err, 1, "open again"))
	}
}
