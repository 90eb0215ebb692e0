package blocktest_test

import (
	"testing"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
)

func TestMemDevice(t *testing.T) {
	blocktest.TestDevice(t, func(_ *testing.T, size int64) block.Device { return blocktest.NewMemDevice(size) })
}
