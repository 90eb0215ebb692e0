//go:build linux

package qcow2_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// TestUnsupportedIsRefused opens images that QEMU made with features which are
// missing here: they are refused by name, and not a byte changes.
func TestUnsupportedIsRefused(t *testing.T) {
	img := testenv.Tool(t, "qemu-img")
	base := filepath.Join(t.TempDir(), "base.qcow2")
	testenv.Run(t, img, "create", "-q", "-f", "qcow2", base, "16M")
	for _, c := range []struct {
		name     string
		make     func(path string)
		want     string // when opened for writing
		readable bool   // read-only it opens
	}{
		{"backing file", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", p)
		}, "has the backing file", false},
		{"encryption", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", p, "16M")
		}, "encryption (method 2)", false},
		{"data file", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", "data_file="+p+".data", p, "16M")
		}, `"external data file"`, false},
		{"bitmap", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", p, "16M")
			testenv.Run(t, img, "bitmap", "--add", p, "one")
		}, "persistent bitmaps", true},
		{"unknown incompatible bit", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", p, "16M")
			patch(t, p, 72, 0x80)
		}, "unknown incompatible feature bit 63", false},
		{"dirty", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", p, "16M")
			patch(t, p, 79, 0x01)
		}, "marked dirty", true},
		{"corrupt", func(p string) {
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", p, "16M")
			patch(t, p, 79, 0x02)
		}, "marked corrupt", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image.qcow2")
			c.make(path)
			before, err := os.ReadFile(path)
			require.NoError(t, err)
			_, err = open(t, path, false)
			require.ErrorContains(t, err, c.want)
			im, err := open(t, path, true)
			if c.readable {
				require.NoError(t, err)
				require.NoError(t, im.ReadAt(context.Background(), make([]byte, 1<<16), 0, 0))
				require.NoError(t, im.Close())
			} else {
				require.ErrorContains(t, err, c.want)
			}
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, before, after, "the image was changed")
		})
	}
}

// TestAutoclear: bits that are not maintained here are cleared when an image is
// opened for writing, and only then.
func TestAutoclear(t *testing.T) {
	img, path := testenv.Tool(t, "qemu-img"), filepath.Join(t.TempDir(), "image.qcow2")
	testenv.Run(t, img, "create", "-q", "-f", "qcow2", path, "16M")
	patch(t, path, 88, 0x40)
	for _, readOnly := range []bool{true, false} {
		im, err := open(t, path, readOnly)
		require.NoError(t, err)
		require.NoError(t, im.Close())
		f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
		require.NoError(t, err)
		h, err := qcow2.ReadHeader(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Equal(t, readOnly, h.Autoclear != 0)
		require.NotNil(t, h.Extension(format.ExtFeatureNames), "the rest of the header is kept")
	}
}

// TestHostileEntries: entries that name metadata, or space behind the end, are
// errors where they are used; they never become valid, and nothing is written
// through them.
func TestHostileEntries(t *testing.T) {
	for name, entry := range map[string]uint64{
		"refcount table": 1<<63 | 1<<16,
		"L1 table":       1<<63 | 3<<16,
		"behind the end": 1<<63 | 40<<16,
		"unaligned":      1<<63 | 5<<16 | 512,
		"reserved bits":  1<<63 | 1<<60 | 5<<16,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, path := context.Background(), filepath.Join(t.TempDir(), "image.qcow2")
			f, err := hostfile.Create(path, 0, hostfile.CreateOptions{})
			require.NoError(t, err)
			require.NoError(t, qcow2.Create(ctx, f, qcow2.CreateOptions{Size: 16 << 20}))
			im, err := qcow2.Open(ctx, f, qcow2.Options{})
			require.NoError(t, err)
			require.NoError(t, im.WriteAt(ctx, []byte{1}, 0, 0))
			require.NoError(t, im.Close())
			b := make([]byte, 8)
			format.EncodeTable(b, []format.L2Entry{format.L2Entry(entry)})
			l2 := l2Table(t, f)
			_, err = f.WriteAt(b, l2+8) // guest cluster 1
			require.NoError(t, err)
			before, err := os.ReadFile(path)
			require.NoError(t, err)

			im, err = qcow2.Open(ctx, f, qcow2.Options{})
			require.NoError(t, err)
			var c *qcow2.CorruptError
			require.ErrorAs(t, im.ReadAt(ctx, b, 1<<16, 0), &c)
			require.ErrorAs(t, im.WriteAt(ctx, b, 1<<16, 0), &c)
			require.ErrorAs(t, im.Discard(ctx, 1<<16, 1<<16, 0), &c)
			// Its neighbour is not concerned, and the entry is written back as it was.
			require.NoError(t, im.ReadAt(ctx, b[:1], 0, 0))
			require.NoError(t, im.Close())
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, before, after)
			im, err = qcow2.Open(ctx, f, qcow2.Options{})
			require.NoError(t, err)
			require.NoError(t, im.WriteAt(ctx, b, 2<<16, 0))
			require.NoError(t, im.Close())
			_, err = f.ReadAt(b, l2+8)
			require.NoError(t, err)
			require.Equal(t, entry, binary.BigEndian.Uint64(b))
			res, err := qcow2.Check(ctx, f, qcow2.CheckOptions{})
			require.NoError(t, err)
			require.NotZero(t, res.Corruptions)
			require.NoError(t, f.Close())
		})
	}
}

// l2Table is the offset of the first L2 table.
func l2Table(t *testing.T, f qcow2.File) int64 {
	h, err := qcow2.ReadHeader(f)
	require.NoError(t, err)
	b := make([]byte, 8)
	_, err = f.ReadAt(b, h.L1Offset)
	require.NoError(t, err)
	e := make([]format.L1Entry, 1)
	format.DecodeTable(e, b)
	return e[0].Offset()
}

// An opened image closes its file too.
type opened struct {
	*qcow2.Image
	file *hostfile.File
}

func (o *opened) Close() error { return errors.Join(o.Image.Close(), o.file.Close()) }

func open(t *testing.T, path string, readOnly bool) (*opened, error) {
	t.Helper()
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: readOnly})
	require.NoError(t, err)
	im, err := qcow2.Open(context.Background(), f, qcow2.Options{ReadOnly: readOnly})
	if err != nil {
		require.NoError(t, f.Close())
	}
	return &opened{im, f}, err
}

// patch sets bits of one byte of a file.
func patch(t *testing.T, path string, off int64, bits byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	require.NoError(t, err)
	b[0] |= bits
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}
