package lvm

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// A cuttable remembers what the metadata of each physical volume was when it was
// last flushed. A power cut may bring that back.
type cuttable struct {
	l       *lab
	flushed map[string][]byte
}

// metadataOf is everything of a physical volume before its first extent.
func (c *cuttable) metadataOf(t *testing.T, device string) (*os.File, []byte) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	require.NoError(t, err)
	start, ok := peStart(c.l.VG(), device)
	require.True(t, ok)
	return f, make([]byte, start)
}

func (c *cuttable) note(t *testing.T, device string) {
	f, b := c.metadataOf(t, device)
	defer f.Close()
	_, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	c.flushed[device] = b
}

// cut loses what was not flushed.
func (c *cuttable) cut(t *testing.T) {
	for device, was := range c.flushed {
		f, _ := c.metadataOf(t, device)
		_, err := f.WriteAt(was, 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
}

// Whatever the metadata loses that was not flushed, every size that was answered
// is still there, at the same place: what a guest flushed lies inside its volume.
func TestPowerCutLosesNoAnsweredSize(t *testing.T) {
	l := newLab(t, GroupOptions{MetadataSize: 256 * kib, ExtentSize: 64 * kib}, 64*mib, 64*mib)
	_, rng := testenv.Seed(t)
	c := &cuttable{l: l, flushed: map[string][]byte{}}
	r := &recorder{tool: l.tool(t, ToolOptions{})}
	o := r.options(ToolOptions{Devices: r.tool.o.Devices})
	dead := context.Canceled
	run, steps := o.Run, -1
	die := func() error {
		if steps == 0 {
			return dead
		}
		steps--
		return nil
	}
	o.Run = func(ctx context.Context, args []string) ([]byte, error) {
		if err := die(); err != nil {
			return nil, err
		}
		return run(ctx, args)
	}
	o.Flush = func(device string) error {
		if err := die(); err != nil {
			return err
		}
		c.note(t, device)
		return nil
	}
	answered := map[string]Map{}
	cuts := 0
	for round := range 40 {
		steps = -1
		g, err := OpenGroup(t.Context(), &Tool{o}, l.Name())
		require.NoError(t, err)
		for name, was := range answered {
			now, err := g.VG().Map(name)
			require.NoError(t, err, "round %d", round)
			require.NoError(t, now.appendsTo(was), "round %d: %s", round, name)
		}
		steps = rng.IntN(20) // the process dies after so many commands and flushes
		for err == nil {
			name := fmt.Sprintf("v%d", rng.IntN(4))
			var m Map
			if was, there := answered[name]; there {
				m, err = g.Extend(t.Context(), name, was.LV, Size{Need: was.Size() + (1+rng.Int64N(4))*64*kib})
			} else if l, left := g.VG().LV(name); left { // made, but nobody was told
				err = g.Remove(t.Context(), name, l.UUID)
				continue
			} else {
				m, err = g.Create(t.Context(), name, nil, Size{Need: 64 * kib})
			}
			if err == nil {
				answered[name] = m
			}
		}
		require.ErrorIs(t, err, dead)
		if rng.IntN(3) > 0 { // else only the process dies
			c.cut(t)
			cuts++
		}
	}
	require.Positive(t, cuts)
	require.NoError(t, l.Check(t.Context()))
}
