package crashtest

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/faultfile"
	"tidemark/internal/simdisk"
	"tidemark/internal/steps"
	"tidemark/qcow2"
)

// TestNothingTouchesAClosedFile: a FUA write that has done its part when the image is
// closed (W4) comes to its flush afterwards. It must leave the file alone, which is
// somebody else's by then: a Sync that fails there would mark the image as not to be
// trusted.
func TestNothingTouchesAClosedFile(t *testing.T) {
	if !steps.Enabled {
		t.Skip("it stops a write at W4: that needs the build tag crashlab")
	}
	ctx := t.Context()
	d := simdisk.New(0, simdisk.Options{})
	require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 1 << 20, ClusterSize: 4096}))
	f := faultfile.New(d, faultfile.Fault{})
	o := qcow2.Options{CommitInterval: -1, RedoDir: t.TempDir()}
	im, err := qcow2.Open(ctx, f, o)
	require.NoError(t, err)

	written, goon := make(chan struct{}), make(chan struct{})
	first := true
	stop := steps.Observe(func(step string) {
		if step == "W4" && first {
			first = false
			close(written)
			<-goon
		}
	})
	defer stop()
	want := bytes.Repeat([]byte{7}, 4096)
	done := make(chan error, 1)
	go func() { done <- im.WriteAt(ctx, want, 0, block.FUA) }()
	<-written
	require.NoError(t, im.Close())
	before := f.Ops()
	close(goon)
	require.ErrorIs(t, <-done, block.ErrClosed)
	require.Equal(t, before, f.Ops())

	im, err = qcow2.Open(ctx, d, o)
	require.NoError(t, err)
	got := make([]byte, len(want))
	require.NoError(t, im.ReadAt(ctx, got, 0, 0))
	require.Equal(t, want, got)
	require.NoError(t, im.Close())
}
