package crashlab

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
)

// TestSlowWriteEndsLast: it is held, at once, until the other client has ended.
func TestSlowWriteEndsLast(t *testing.T) {
	d := simdisk.New(4*sector, simdisk.Options{})
	h := newHolder(d)
	h.most = time.Minute
	h.start(2)
	h.hold(Write, 7)
	write := func(v version) {
		p := make([]byte, sector)
		stamp(p, 0, v)
		_, err := h.WriteAt(p, 0)
		require.NoError(t, err)
		h.end()
	}
	ended := make(chan struct{})
	go func() { defer close(ended); write(7) }()
	h.wait(ended)
	require.Zero(t, d.State().Hash()^simdisk.New(4*sector, simdisk.Options{}).State().Hash(), "nothing is written yet")
	write(8)
	<-ended
	p := make([]byte, sector)
	_, err := d.ReadAt(p, 0)
	require.NoError(t, err)
	v, err := versionOf(p, 0, nil)
	require.NoError(t, err)
	require.Equal(t, version(7), v)
}

// TestSlowRequestGoesFirst: also where it stands behind another client's.
func TestSlowRequestGoesFirst(t *testing.T) {
	script, err := Parse("write 3+2; write 9+1@1~; write 9+1")
	require.NoError(t, err)
	rec, err := Run(t.Context(), toySetup(t, ""), script)
	require.NoError(t, err)
	require.True(t, rec.history.acts[0].Slow)
}
