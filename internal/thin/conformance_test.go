package thin

import (
	"context"
	"testing"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/simdisk"
)

// stingyPool grants what is needed and no headroom, so that the size is what the
// suite expects it to be.
type stingyPool struct{ size int64 }

func (p *stingyPool) Extend(_ context.Context, need, _ int64) (int64, error) {
	p.size = max(p.size, need)
	return p.size, nil
}

func TestFileConformance(t *testing.T) {
	blocktest.TestFile(t, func(t *testing.T, size int64) block.File {
		return New(simdisk.New(size, simdisk.Options{}), &stingyPool{size}, Options{})
	})
}
