//go:build linux && !race

package lvm

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNothingIsAllocated: neither a transfer that somebody waits for, alone as here, nor
// one that is begun allocates memory. (The race detector does, so not there.)
func TestNothingIsAllocated(t *testing.T) {
	f := openLoop(t, 8*mib)
	p, to := alignedBuffer(4*kib, 4*kib), make(told, 1)
	for name, transfer := range map[string]func() bool{
		"begun": func() bool { return f.WriteLater(p, 0, to) && <-to },
		"write": func() bool { _, err := f.WriteAt(p, 0); return err == nil },
		"read":  func() bool { _, err := f.ReadAt(p, 0); return err == nil },
	} {
		require.Zero(t, testing.AllocsPerRun(200, func() {
			if !transfer() {
				t.Errorf("%s has failed", name)
			}
		}), name)
	}
}
