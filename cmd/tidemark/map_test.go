package main

import (
	"context"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

func TestContinues(t *testing.T) {
	a := block.Extent{Off: 0, Len: 10, State: block.Data | block.Allocated, Host: 100}
	next := block.Extent{Off: 10, Len: 5, State: a.State, Host: 110}
	require.True(t, continues(a, next))
	require.False(t, continues(block.Extent{}, next), "there is nothing yet")
	for name, change := range map[string]func(*block.Extent){
		"stored elsewhere": func(x *block.Extent) { x.Host = 120 },
		"stored nowhere":   func(x *block.Extent) { x.Host = -1 },
		"another state":    func(x *block.Extent) { x.State |= block.Zero },
		"another image":    func(x *block.Extent) { x.Depth = 1 },
	} {
		x := next
		change(&x)
		require.False(t, continues(a, x), name)
	}
	hole, more := block.Extent{Len: 10, State: block.Zero, Host: -1}, block.Extent{Off: 10, Len: 5, State: block.Zero, Host: -1}
	require.True(t, continues(hole, more))
}

// A pieces is a Device that tells its extents one at a time.
type pieces struct {
	block.Device
	all []block.Extent
}

func (p pieces) Info() block.DeviceInfo { return block.DeviceInfo{Size: p.all[len(p.all)-1].End()} }

func (p pieces) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	for _, x := range p.all {
		if off < x.End() {
			delta := off - x.Off
			x.Off, x.Len = off, min(x.Len-delta, n)
			return append(dst, x), nil
		}
	}
	return dst, nil
}

func TestEachExtentJoins(t *testing.T) {
	var d pieces
	for i := range int64(10) {
		d.all = append(d.all, block.Extent{Off: i * 10, Len: 10, State: block.Zero, Host: -1})
	}
	d.all[5].State = block.Data | block.Allocated
	c := &cobra.Command{}
	c.SetContext(t.Context())
	var got [][2]int64
	collect := func(x block.Extent) error { got = append(got, [2]int64{x.Off, x.Len}); return nil }
	require.NoError(t, eachExtent(c, d, 5, 70, collect))
	require.Equal(t, [][2]int64{{5, 45}, {50, 10}, {60, 15}}, got)
	require.Error(t, eachExtent(c, d, 101, 1, collect))
}
