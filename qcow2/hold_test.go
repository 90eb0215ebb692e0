package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// A pool is a File whose space belongs to somebody else: Grow waits until there
// is room.
type pool struct {
	*simdisk.Disk
	mu    sync.Mutex
	limit int64
	more  chan struct{} // closed and replaced when limit rises
	queue int           // calls of Grow that wait
}

func newPool(limit int64) *pool {
	return &pool{Disk: simdisk.New(0, simdisk.Options{}), limit: limit, more: make(chan struct{})}
}

func (p *pool) Grow(ctx context.Context, need, want int64) (int64, error) {
	for {
		p.mu.Lock()
		limit, more := p.limit, p.more
		if need > limit && ctx.Err() == nil {
			p.queue++
		}
		p.mu.Unlock()
		if need <= limit {
			return p.Disk.Grow(ctx, need, min(want, limit))
		}
		if ctx.Err() != nil {
			return p.Size(), block.SpaceError(ctx)
		}
		select {
		case <-more:
		case <-ctx.Done():
		}
		p.mu.Lock()
		p.queue--
		p.mu.Unlock()
	}
}

func (p *pool) waiting() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.queue
}

func (p *pool) Shrink(context.Context, int64, int64) error { return block.ErrUnsupported }

func (p *pool) raise(limit int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
	close(p.more)
	p.more = make(chan struct{})
}

// fullImage is an image in a full pool: its first used clusters are written,
// and flushed; the next write of a new one is held.
func fullImage(t *testing.T) (p *pool, im *qcow2.Image, used int64) {
	ctx := t.Context()
	p = newPool(4 << 20)
	require.NoError(t, qcow2.Create(ctx, p, qcow2.CreateOptions{Size: 16 << 20}))
	im, err := qcow2.Open(ctx, p, qcow2.Options{})
	require.NoError(t, err)
	for {
		short, cancel := context.WithTimeout(ctx, time.Second)
		err := im.WriteAt(short, make([]byte, 1<<16), used, 0)
		cancel()
		if err != nil {
			require.ErrorIs(t, err, block.ErrNoSpace)
			synctest.Wait()
			require.Zero(t, p.waiting(), "nobody waits, so the pool is not asked")
			require.NoError(t, im.Flush(ctx))
			return p, im, used
		}
		used += 1 << 16
	}
}

func TestHeldWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p, im, used := fullImage(t)
		require.Greater(t, used, int64(3<<20), "the last space of the pool is used")
		began := time.Now()
		held := make(chan error, 1)
		data := []byte{1: 1, 4095: 7}
		require.Zero(t, p.waiting())
		go func() { held <- im.WriteAt(ctx, data, used, 0) }()
		synctest.Wait()
		require.Equal(t, 1, p.waiting())

		// Everything that needs no space goes on, at once.
		got := make([]byte, 1<<16)
		require.NoError(t, im.ReadAt(ctx, got, 0, 0))
		require.NoError(t, im.WriteAt(ctx, got, 1<<16, block.FUA))
		require.NoError(t, im.WriteZeroes(ctx, 0, 100, 0))
		require.NoError(t, im.Flush(ctx))
		require.Equal(t, began, time.Now())
		select {
		case err := <-held:
			t.Fatalf("the write was not held: %v", err)
		default:
		}
		p.raise(8 << 20)
		require.NoError(t, <-held)
		require.Equal(t, began, time.Now(), "resumed at once")
		require.NoError(t, im.ReadAt(ctx, got[:len(data)], used, 0))
		require.Equal(t, data, got[:len(data)])
		require.NoError(t, im.Close())
		requireClean(t, p)
	})
}

// TestPatience: a deadline is for the wait for space and becomes "no space";
// each request has its own.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, im, used := fullImage(t)
		began := time.Now()
		errs := make(chan error, 2)
		for i, patience := range []time.Duration{2 * time.Second, 20 * time.Second} {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				err := im.WriteAt(ctx, []byte{1}, used+int64(i)<<16, 0)
				if took := time.Since(began); took != patience {
					err = errors.Join(err, fmt.Errorf("patience of %v ended after %v", patience, took))
				}
				errs <- err
			}()
		}
		for range 2 {
			err := <-errs
			require.ErrorIs(t, err, block.ErrNoSpace)
			require.NotContains(t, err.Error(), "ended after")
		}
		require.NoError(t, im.Close())
		requireClean(t, p)
	})
}

// TestHeldWriteResumesByDiscard: what the guest discards is space too.
func TestHeldWriteResumesByDiscard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p, im, used := fullImage(t)
		held := make(chan error, 1)
		go func() { held <- im.WriteAt(ctx, []byte{1}, used, 0) }()
		synctest.Wait()
		require.NoError(t, im.Discard(ctx, 0, 1<<20, 0))
		require.NoError(t, <-held)
		require.LessOrEqual(t, p.Size(), int64(4<<20))
		require.NoError(t, im.Close())
		requireClean(t, p)
	})
}

func TestHeldWriteIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, im, used := fullImage(t)
		gone := errors.New("the client is gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		held := make(chan error, 2)
		go func() { held <- im.WriteAt(ctx, []byte{1}, used, 0) }()
		synctest.Wait()
		cancel(gone)
		require.ErrorIs(t, <-held, gone)

		// Closing ends the others.
		go func() { held <- im.WriteAt(t.Context(), []byte{1}, used, 0) }()
		synctest.Wait()
		require.NoError(t, im.Close())
		require.ErrorIs(t, <-held, block.ErrClosed)
		requireClean(t, p)
	})
}

type refuse struct{ begun, ended int }

func (r *refuse) Begin() error {
	r.begun++
	return fmt.Errorf("eight are held already: %w", block.ErrNoSpace)
}
func (r *refuse) End() { r.ended++ }

func TestHoldIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, im, used := fullImage(t)
		r := &refuse{}
		err := im.WriteAt(block.WithHold(t.Context(), r), []byte{1}, used, 0)
		require.ErrorContains(t, err, "eight are held")
		require.ErrorIs(t, err, block.ErrNoSpace)
		require.Equal(t, refuse{begun: 1}, *r)
		require.NoError(t, im.Close())
	})
}

func requireClean(t *testing.T, f block.File) {
	t.Helper()
	res, err := qcow2.Check(context.Background(), f, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.True(t, res.Clean(), "%+v", res)
}

// TestHeldWriteIsToldOfPoison: who waits for space is told when the image has stopped
// accepting writes, and does not wait for what would be of no use.
func TestHeldWriteIsToldOfPoison(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p, im, used := fullImage(t)
		held := make(chan error, 1)
		go func() { held <- im.WriteAt(ctx, []byte{1}, used, 0) }()
		grown := make(chan error, 1)
		go func() { grown <- im.Grow(ctx, 1<<40) }()
		synctest.Wait()
		require.Equal(t, 2, p.waiting())
		began := time.Now()
		require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, 0))
		p.FailSync(syscall.EIO)
		require.ErrorIs(t, im.Flush(ctx), syscall.EIO)
		require.ErrorIs(t, <-held, syscall.EIO)
		require.ErrorIs(t, <-grown, syscall.EIO)
		require.Equal(t, began, time.Now(), "at once")
		synctest.Wait()
		require.Zero(t, p.waiting())
		require.ErrorIs(t, im.Close(), syscall.EIO)
	})
}
