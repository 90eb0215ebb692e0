//go:build linux

package qcow2_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// A combo is one row of the interoperability sweep.
type combo struct {
	compat       string
	clusterSize  int64
	refcountBits int
	size         int64
}

func (c combo) String() string {
	return fmt.Sprintf("compat=%s,cluster_size=%d,refcount_bits=%d,size=%d", c.compat, c.clusterSize, c.refcountBits, c.size)
}

func (c combo) options() string {
	return fmt.Sprintf("compat=%s,cluster_size=%d,refcount_bits=%d", c.compat, c.clusterSize, c.refcountBits)
}

func (c combo) create() qcow2.CreateOptions {
	v := 3
	if c.compat == "0.10" {
		v = 2
	}
	return qcow2.CreateOptions{Size: c.size, Version: v, ClusterSize: c.clusterSize, RefcountBits: c.refcountBits}
}

// combos are all cluster sizes with all refcount widths, and version 2, with
// sizes that are no multiple of the cluster.
func combos() []combo {
	var list []combo
	for bits := 9; bits <= 21; bits++ {
		cs := int64(1) << bits
		size := min(max(cs*37, 1<<20), 12<<20) + 512*int64(bits)
		list = append(list, combo{"0.10", cs, 16, size})
		for order := 0; order <= 6; order++ {
			list = append(list, combo{"1.1", cs, 1 << order, size + 1024*int64(order)})
		}
	}
	return list
}

// TestInterop writes each combination with one side and reads it with the
// other, both ways, and lets both check it.
func TestInterop(t *testing.T) {
	img, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	_, rng := testenv.Seed(t)
	list := combos()
	require.GreaterOrEqual(t, len(list), 100)
	for i, c := range list {
		if testing.Short() && i%13 != 0 {
			continue
		}
		t.Log(c)
		dir := t.TempDir()
		// Ours, then QEMU reads, writes on, and checks.
		ours := filepath.Join(dir, "ours.qcow2")
		shadow := make([]byte, c.size)
		writeOurs(t, ours, c, shadow, rng)
		raw := filepath.Join(dir, "raw")
		require.NoError(t, os.WriteFile(raw, shadow, 0o600))
		testenv.Run(t, img, "compare", "-f", "qcow2", "-F", "raw", ours, raw)
		requireCheck(t, img, ours)

		// QEMU's image, written by QEMU, then by us, then by QEMU.
		theirs := filepath.Join(dir, "theirs.qcow2")
		testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", c.options(), theirs, fmt.Sprint(c.size))
		clear(shadow)
		args := []string{"-f", "qcow2"}
		for range 6 {
			off := rng.Int64N(c.size-512) &^ 511
			n := min(rng.Int64N(200<<10)+512, c.size-off) &^ 511
			b := byte(1 + rng.IntN(255))
			copy(shadow[off:off+n], bytes.Repeat([]byte{b}, int(n)))
			args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", b, off, n))
		}
		if c.compat != "0.10" {
			off := c.clusterSize * 2
			n := min(c.clusterSize*3, c.size-off)
			args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, n))
			clear(shadow[off : off+n])
		}
		testenv.Run(t, qio, append(args, theirs)...)
		mutate(t, theirs, shadow, rng, 20)
		require.NoError(t, os.WriteFile(raw, shadow, 0o600))
		testenv.Run(t, img, "compare", "-f", "qcow2", "-F", "raw", theirs, raw)
		requireCheck(t, img, theirs)
		os.RemoveAll(dir)
	}
}

// writeOurs makes an image with random content.
func writeOurs(t *testing.T, path string, c combo, shadow []byte, rng *rand.Rand) {
	t.Helper()
	f, err := hostfile.Create(path, 0, hostfile.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(context.Background(), f, c.create()))
	require.NoError(t, f.Close())
	mutate(t, path, shadow, rng, 30)
}

// mutate does n random operations on the image and on shadow, compares, and
// closes.
func mutate(t *testing.T, path string, shadow []byte, rng *rand.Rand, n int) {
	t.Helper()
	ctx := context.Background()
	f, err := hostfile.Open(path, hostfile.Options{})
	require.NoError(t, err)
	im, err := qcow2.Open(ctx, f, qcow2.Options{})
	require.NoError(t, err)
	size := int64(len(shadow))
	for range n {
		off := rng.Int64N(size)
		length := min(rng.Int64N(1+rng.Int64N(400<<10))+1, size-off)
		part := shadow[off : off+length]
		switch rng.IntN(6) {
		case 0:
			require.NoError(t, im.WriteZeroes(ctx, off, length, qcow2.MayUnmap))
			clear(part)
		case 1:
			require.NoError(t, im.WriteZeroes(ctx, off, length, 0))
			clear(part)
		case 2:
			require.NoError(t, im.Discard(ctx, off, length, 0))
			require.NoError(t, im.ReadAt(ctx, part, off, 0))
		case 3:
			require.NoError(t, im.Flush(ctx))
		default:
			fill(part, rng)
			require.NoError(t, im.WriteAt(ctx, part, off, 0))
		}
	}
	got := make([]byte, size)
	require.NoError(t, im.ReadAt(ctx, got, 0, 0))
	require.True(t, bytes.Equal(shadow, got), "content differs before close")
	require.NoError(t, im.Close())
	res, err := qcow2.Check(ctx, f, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.True(t, res.Clean(), "our check: %+v", res)
	require.NoError(t, f.Close())
}

func fill(p []byte, rng *rand.Rand) {
	for len(p) >= 8 {
		binary.LittleEndian.PutUint64(p, rng.Uint64())
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// requireCheck lets QEMU check an image: neither corruptions nor leaks.
func requireCheck(t *testing.T, img, path string) {
	t.Helper()
	r := testenv.Try(t, img, "check", "--output=json", "-f", "qcow2", path)
	var rep struct {
		Corruptions, Leaks int
		CheckErrors        int `json:"check-errors"`
	}
	require.NoError(t, json.Unmarshal([]byte(strings.TrimSpace(r.Stdout)), &rep), "%s", r)
	require.Zero(t, rep, "%s", r)
}
