//go:build linux

package qcow2_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// cutWrites is a file that keeps every state that its syncs divide.
type cutWrites struct {
	block.File
	states [][]byte // the first cluster at each sync
	n      int
}

func (c *cutWrites) Sync() error {
	b := make([]byte, c.n)
	if _, err := c.ReadAt(b, 0); err != nil {
		return err
	}
	c.states = append(c.states, b)
	return c.File.Sync()
}

func backingOf(t *testing.T, first []byte) string {
	t.Helper()
	h, err := format.DecodeHeader(first)
	require.NoError(t, err)
	return h.BackingFile + "|" + h.BackingFormat()
}

// Whatever a power cut leaves of a change, the image has the old backing file or the
// new one, with its own format.
func TestSetBackingSurvivesAPowerCut(t *testing.T) {
	long := strings.Repeat("n", 900)
	for i, o := range []qcow2.CreateOptions{
		{}, {BackingFile: "a", BackingFormat: "raw"}, {ClusterSize: 2048, BackingFile: "a", BackingFormat: "qcow2"}, {Version: 2, BackingFile: "abc", BackingFormat: "qcow2"},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			seed, rng := testenv.Seed(t)
			t.Log("seed", seed)
			path := filepath.Join(t.TempDir(), "i")
			f, err := hostfile.Create(path, 0, hostfile.CreateOptions{})
			require.NoError(t, err)
			o.Size = 1 << 20
			require.NoError(t, qcow2.Create(t.Context(), f, o))
			h, err := qcow2.ReadHeader(f)
			require.NoError(t, err)
			for _, to := range [][2]string{{"x/one", "qcow2"}, {"second", "raw"}, {"", ""}, {long, "qcow2"}, {"", ""}, {"third", "raw"}, {"third", "raw"}} {
				c := &cutWrites{File: f, n: int(h.ClusterSize())}
				before := make([]byte, c.n)
				_, err := f.ReadAt(before, 0)
				require.NoError(t, err)
				was := backingOf(t, before)
				require.NoError(t, qcow2.SetBacking(c, to[0], to[1]))
				want := to[0] + "|" + to[1]
				require.Equal(t, want, backingOf(t, c.states[len(c.states)-1]))
				for _, after := range c.states {
					for range 50 {
						torn := bytes.Clone(before)
						for s := 0; s < c.n; s += 512 {
							if rng.IntN(2) == 0 {
								copy(torn[s:s+512], after[s:s+512])
							}
						}
						require.Contains(t, []string{was, want}, backingOf(t, torn))
					}
					before = after
				}
				im, err := qcow2.Open(t.Context(), f, qcow2.Options{Backing: zeroDevice{}.orNil(to[0])})
				require.NoError(t, err)
				require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 0, 0))
				require.NoError(t, im.Close(), "extensions of ours find their place")
			}
			require.NoError(t, f.Close())
			if img := testenv.Tool(t, "qemu-img"); img != "" {
				require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(path), "third"), make([]byte, 1<<20), 0o600))
				require.Contains(t, testenv.Run(t, img, "info", path), "backing file format: raw")
				testenv.Run(t, img, "check", path)
			}
		})
	}
}

// zeroDevice is a backing file of a byte.
type zeroDevice struct{ block.Device }

func (zeroDevice) Info() block.DeviceInfo { return block.DeviceInfo{Size: 0} }

func (z zeroDevice) orNil(name string) block.Device {
	if name == "" {
		return nil
	}
	return z
}

// What a backing file gains shows in the image, once that knows of it; and what was
// discarded there stays hidden.
func TestBackingGrew(t *testing.T) {
	below := &sized{MemDevice: blocktest.NewMemDevice(2 << 20), size: 1 << 20}
	f, err := hostfile.Create(filepath.Join(t.TempDir(), "i"), 0, hostfile.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(t.Context(), f, qcow2.CreateOptions{Size: 2 << 20, BackingFile: "b", BackingFormat: "raw"}))
	im, err := qcow2.Open(t.Context(), f, qcow2.Options{Backing: below})
	require.NoError(t, err)
	below.size = 2 << 20
	im.BackingGrew()
	require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 1<<20, 0))
	require.NoError(t, im.Discard(t.Context(), 1<<20, 64<<10, 0))
	require.NoError(t, below.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 1<<20), 1<<20, 0))
	got := make([]byte, 1<<20)
	require.NoError(t, im.ReadAt(t.Context(), got, 1<<20, 0))
	require.True(t, bytes.Equal(append(make([]byte, 64<<10), bytes.Repeat([]byte{7}, 1<<20-64<<10)...), got))
	require.NoError(t, im.Close())
	require.NoError(t, f.Close())
}

// sized is a disk that says how large it is.
type sized struct {
	*blocktest.MemDevice
	size int64
}

func (s *sized) Info() block.DeviceInfo {
	i := s.MemDevice.Info()
	i.Size = s.size
	return i
}
