package swap

import (
	"context"
	"fmt"
	"sync"
	"time"

	"tidemark/internal/block"
)

// State is what has become of a merge.
type State string

// The states, in this order; Failed may follow Copying only.
const (
	Copying State = "copying"
	Ready   State = "ready"
	Failed  State = "failed"
)

// piece is how much is copied at a time, under its range and in memory.
const piece = 1 << 20

// longestPause is how long the copying makes way for others after a piece.
const longestPause = 50 * time.Millisecond

// A Mirror shows a top and makes its base the same; see the package comment. It is a
// block.Device. Both disks stay its caller's, who opens the base for writing, makes
// it as large as the top and shows the Mirror while no request is in progress.
type Mirror struct {
	top, base block.Device
	grain     int64
	ranges    ranges

	mu          sync.Mutex // guards all below
	state       State
	err         error // why it failed
	done, total int64
}

var _ block.Device = (*Mirror)(nil)

// NewMirror mirrors top to base. What is discarded is dropped in whole grains, in
// bytes: a multiple of the clusters of both.
func NewMirror(top, base block.Device, grain int64) *Mirror {
	return &Mirror{top: top, base: base, grain: max(grain, 1), state: Copying, total: top.Info().Size}
}

// A Progress is how far a merge is, in bytes of the disk.
type Progress struct {
	State       State
	Err         error
	Done, Total int64
}

// Progress returns how far it is.
func (m *Mirror) Progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return Progress{m.state, m.err, m.done, m.total}
}

// fail ends the merge with err, unless it is ready; then it reports false, and the
// error is the request's.
func (m *Mirror) fail(err error) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state == Copying {
		m.state, m.err = Failed, err
	}
	return m.state == Failed
}

func (m *Mirror) failed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state == Failed
}

// Copy copies what the top has (M1) until all is (M4), the merge has failed or ctx
// ends. It is called once.
func (m *Mirror) Copy(ctx context.Context) error {
	err := m.copyAll(ctx)
	if err == nil {
		err = m.base.Flush(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.state == Failed:
		return m.err
	case err != nil:
		m.state, m.err = Failed, err
		return err
	}
	m.state, m.done = Ready, m.total
	return nil
}

func (m *Mirror) copyAll(ctx context.Context) error {
	buf := make([]byte, piece)
	extents := make([]block.Extent, 0, 64)
	for off := int64(0); off < m.total; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var err error
		if extents, err = m.top.AppendExtents(ctx, extents[:0], off, m.total-off); err != nil {
			return err
		}
		for _, e := range extents {
			for at := e.Off; own(e) && at < e.End(); {
				n := min(e.End(), at-at%piece+piece) - at
				if err := m.copyPiece(ctx, at, n, buf); err != nil {
					return fmt.Errorf("copy %d bytes at %d: %w", n, at, err)
				}
				at += n
				m.came(at)
			}
			off = e.End()
			m.came(off)
		}
	}
	return nil
}

func (m *Mirror) came(to int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done = to
}

// own reports whether an extent is the top's own.
func own(e block.Extent) bool { return e.Depth == 0 && e.State.Has(block.Allocated) }

// copyPiece copies what the top has of n bytes at off, and then makes way for others
// for as long as that took, if there are any.
func (m *Mirror) copyPiece(ctx context.Context, off, n int64, buf []byte) error {
	if p := m.Progress(); p.State == Failed {
		return p.Err
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	asked, began := m.ranges.asked(), time.Now()
	if err := m.copyLocked(ctx, off, n, buf); err != nil {
		return err
	}
	if m.ranges.asked() <= asked+1 {
		return nil
	}
	pause := time.NewTimer(min(time.Since(began), longestPause))
	defer pause.Stop()
	select {
	case <-pause.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *Mirror) copyLocked(ctx context.Context, off, n int64, buf []byte) error {
	h, err := m.ranges.lock(ctx, off, n)
	if err != nil {
		return err
	}
	defer m.ranges.unlock(h)
	extents := make([]block.Extent, 0, 64)
	for end := off + n; off < end; {
		if extents, err = m.top.AppendExtents(ctx, extents[:0], off, end-off); err != nil {
			return err
		}
		for _, e := range extents {
			if err := m.copyExtent(ctx, e, buf); err != nil {
				return err
			}
			off = e.End()
		}
	}
	return nil
}

func (m *Mirror) copyExtent(ctx context.Context, e block.Extent, buf []byte) error {
	switch {
	case !own(e):
		return nil
	case e.State.Has(block.Zero) || !e.State.Has(block.Data):
		return m.base.WriteZeroes(ctx, e.Off, e.Len, block.MayUnmap)
	}
	p := buf[:e.Len]
	if err := m.top.ReadAt(ctx, p, e.Off, 0); err != nil {
		return err
	}
	return m.base.WriteAt(ctx, p, e.Off, 0)
}

// ReadAt reads from the top.
func (m *Mirror) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return m.top.ReadAt(ctx, p, off, f)
}

// WriteAt writes to both.
func (m *Mirror) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return m.both(ctx, off, int64(len(p)), f, func(d block.Device) error { return d.WriteAt(ctx, p, off, f) })
}

// WriteLater is described at block.Device: the one is written when the other has been.
func (m *Mirror) WriteLater([]byte, int64, block.Later) bool { return false }

// WriteZeroes zeroes both.
func (m *Mirror) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if f.Has(block.Fast) {
		if !m.top.Info().CanFastZero || !m.base.Info().CanFastZero {
			return block.ErrNotFast
		}
		f &^= block.Fast // the one may not do it when the other has
	}
	return m.both(ctx, off, n, f, func(d block.Device) error { return d.WriteZeroes(ctx, off, n, f) })
}

// Discard zeroes the grains that lie in n bytes at off as a whole, in both; the rest
// stays as it is.
func (m *Mirror) Discard(ctx context.Context, off, n int64, f block.Flags) error {
	if err := block.CheckRange(off, n, m.top.Info().Size); err != nil {
		return err
	}
	if m.failed() {
		return m.top.Discard(ctx, off, n, f)
	}
	from, to := (off+m.grain-1)/m.grain*m.grain, (off+n)/m.grain*m.grain
	if from >= to {
		return nil
	}
	f |= block.MayUnmap
	return m.both(ctx, from, to-from, f, func(d block.Device) error { return d.WriteZeroes(ctx, from, to-from, f) })
}

// both changes n bytes at off in the base, then in the top.
func (m *Mirror) both(ctx context.Context, off, n int64, f block.Flags, change func(block.Device) error) error {
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock
	}
	if err := block.CheckRange(off, n, m.top.Info().Size); err != nil {
		return fmt.Errorf("%d bytes at %d: %w", n, off, err)
	}
	h, err := m.ranges.lock(ctx, off, n)
	if err != nil {
		return fmt.Errorf("%d bytes at %d are being copied, or changed: %w", n, off, err)
	}
	defer m.ranges.unlock(h)
	if !m.failed() {
		if err := change(m.base); err != nil && !m.fail(err) {
			return err
		}
	}
	return change(m.top)
}

// AppendExtents asks the top.
func (m *Mirror) AppendExtents(ctx context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	return m.top.AppendExtents(ctx, dst, off, n)
}

// Flush flushes both.
func (m *Mirror) Flush(ctx context.Context) error {
	if !m.failed() {
		if err := m.base.Flush(ctx); err != nil && !m.fail(err) {
			return err
		}
	}
	return m.top.Flush(ctx)
}

// Info describes the top, as far as both can do it.
func (m *Mirror) Info() block.DeviceInfo {
	i := m.top.Info()
	i.CanFastZero = i.CanFastZero && m.base.Info().CanFastZero
	return i
}

// Close closes both.
func (m *Mirror) Close() error {
	err := m.base.Close()
	if terr := m.top.Close(); terr != nil {
		return terr
	}
	return err
}
