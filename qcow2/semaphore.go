package qcow2

import (
	"context"

	"tidemark/internal/block"
)

// A semaphore of one that can be waited for with a context.
type semaphore chan struct{}

func newSemaphore() semaphore { return make(semaphore, 1) }

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return block.SpaceError(ctx)
	}
}

func (s semaphore) lock()    { s <- struct{}{} }
func (s semaphore) release() { <-s }
