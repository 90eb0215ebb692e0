package simdisk_test

import (
	"testing"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/simdisk"
)

func TestFile(t *testing.T) {
	for name, o := range map[string]simdisk.Options{
		"plain":   {},
		"foreign": {Foreign: true, DiscardForeign: true},
		"direct":  {Align: 4096},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.TestFile(t, func(_ *testing.T, size int64) block.File { return simdisk.New(size, o) })
		})
	}
	t.Run("later", func(t *testing.T) {
		blocktest.TestFile(t, func(_ *testing.T, size int64) block.File {
			return simdisk.Later(simdisk.New(size, simdisk.Options{}))
		})
	})
}
