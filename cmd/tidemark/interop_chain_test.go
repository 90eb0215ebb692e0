package main_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// A servedChain is top -> mid -> base, of which base is raw and shorter, and its
// content as it should read.
type servedChain struct {
	dir, top, mid, base string
	want                []byte
}

// newChain lets QEMU make the lower images and us the upper one.
func newChain(t *testing.T, rng *rand.Rand, options string) *servedChain {
	t.Helper()
	img, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	c := &servedChain{dir: shortDir(t), want: make([]byte, 12<<20)}
	c.top, c.mid, c.base = filepath.Join(c.dir, "top"), filepath.Join(c.dir, "mid"), filepath.Join(c.dir, "base")
	for i := range c.want[:5<<20+1536] {
		c.want[i] = byte(rng.Uint32())
	}
	clear(c.want[1<<20 : 2<<20])
	require.NoError(t, os.WriteFile(c.base, c.want[:5<<20+1536], 0o600))
	testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", "-b", "base", "-F", "raw", c.mid, "8M")
	testenv.Run(t, qio, "-f", "qcow2", "-c", "write -P 1 100k 300k", "-c", "write -z 4M 64k", "-c", "write -P 2 7M 10k", "-c", "write -c -P 3 3M 64k", c.mid)
	c.fill(1, 100<<10, 300<<10)
	c.fill(0, 4<<20, 64<<10)
	c.fill(2, 7<<20, 10<<10)
	c.fill(3, 3<<20, 64<<10)
	args := []string{"create", "-q", "-b", "mid", "-F", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	ok(t, append(args, c.top, "12M")...)
	return c
}

func (c *servedChain) fill(b byte, off, n int) { copy(c.want[off:off+n], bytes.Repeat([]byte{b}, n)) }

// The depths of a chain are those that qemu-nbd tells.
func TestServeDepths(t *testing.T) {
	img, info, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "nbdinfo"), testenv.Tool(t, "qemu-io")
	for _, options := range []string{"", "extended_l2=on", "cluster_size=4k"} {
		t.Run(options, func(t *testing.T) {
			dir := shortDir(t)
			base, mid, top := filepath.Join(dir, "base"), filepath.Join(dir, "mid"), filepath.Join(dir, "top")
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", base, "12M")
			testenv.Run(t, qio, "-f", "qcow2", "-c", "write 1M 3M", "-c", "write -z 8M 64k", base)
			testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", mid)
			testenv.Run(t, qio, "-f", "qcow2", "-c", "write 2M 300k", "-c", "write -c 9M 64k", mid)
			create := []string{"create", "-q", "-b", "mid", "-F", "qcow2"}
			if options != "" {
				create = append(create, "-o", options)
			}
			ok(t, append(create, top, "12M")...)
			s := serve(t, dir, "-A", "--backing", "auto", top)
			testenv.Run(t, qio, "-f", "raw", "-c", "write 64k 64k", "-c", "write -z 6M 1M", "-c", "write 2M 4k", "-c", "write 9M 32k", s.uri())
			ours := testenv.Run(t, info, "--map=qemu:allocation-depth", s.uri())
			s.stop()
			sock := filepath.Join(dir, "qemu.sock")
			p := testenv.Start(t, testenv.Command(t, testenv.Tool(t, "qemu-nbd"), "-A", "-r", "-t", "-f", "qcow2", "-k", sock, top))
			ready(t, p, func() error {
				d, err := nbd.Dial(t.Context(), "unix", sock, nbd.ClientOptions{})
				if err != nil {
					return err
				}
				return d.Close()
			})
			theirs := testenv.Run(t, info, "--map=qemu:allocation-depth", "nbd+unix:///?socket="+sock)
			require.Equal(t, theirs, ours)
			for _, kind := range []string{"absent", "local", "backing depth 2", "backing depth 3"} {
				require.Contains(t, ours, kind)
			}
			p.Kill()
		})
	}
}

// TestServeChain reads through a chain, writes into the overlay in every size, and
// lets QEMU compare: the overlay has the content, the rest is as it was.
func TestServeChain(t *testing.T) {
	for _, options := range []string{"", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compat=0.10,cluster_size=4k"} {
		t.Run(options, func(t *testing.T) {
			_, rng := testenv.Seed(t)
			c := newChain(t, rng, options)
			lower := map[string][]byte{c.mid: contentOf(t, c.mid), c.base: contentOf(t, c.base)}
			s := serve(t, c.dir, "--backing", "auto", c.top)
			d := s.dial()
			ctx := t.Context()
			got := make([]byte, len(c.want))
			require.NoError(t, d.ReadAt(ctx, got, 0, 0))
			require.True(t, bytes.Equal(c.want, got), "before anything is written")
			for i := range 80 {
				off := rng.IntN(len(c.want))
				n := min(1+rng.IntN(1<<(1+rng.IntN(18))), len(c.want)-off)
				part := c.want[off : off+n]
				switch i % 8 {
				case 0:
					require.NoError(t, d.WriteZeroes(ctx, int64(off), int64(n), 0))
					clear(part)
				case 1:
					require.NoError(t, d.Discard(ctx, int64(off), int64(n), 0))
					require.NoError(t, d.ReadAt(ctx, part, int64(off), 0))
				case 2:
					require.NoError(t, d.Flush(ctx))
				default:
					for k := range part {
						part[k] = byte(rng.Uint32())
					}
					require.NoError(t, d.WriteAt(ctx, part, int64(off), 0))
				}
			}
			require.NoError(t, d.ReadAt(ctx, got, 0, 0))
			require.True(t, bytes.Equal(c.want, got), "after writing")
			require.NoError(t, d.Close())
			s.stop()

			for path, content := range lower {
				require.True(t, bytes.Equal(content, contentOf(t, path)), "%s was changed", path)
			}
			require.Zero(t, testenv.Try(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", c.top).ExitCode)
			raw := filepath.Join(c.dir, "want.raw")
			require.NoError(t, os.WriteFile(raw, c.want, 0o600))
			testenv.Run(t, testenv.Tool(t, "qemu-img"), "compare", "-f", "qcow2", "-F", "raw", c.top, raw)
		})
	}
}

func contentOf(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return b
}

// TestChainLocks: a backing file in use may be read, by QEMU and by us, and not
// written to; one that is being written to is not used.
func TestChainLocks(t *testing.T) {
	img, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	_, rng := testenv.Seed(t)
	c := newChain(t, rng, "")
	other := filepath.Join(c.dir, "other")
	ok(t, "create", "-q", "-b", "mid", "-F", "qcow2", other)
	s := serve(t, c.dir, "--backing", "qcow2:"+c.mid, "--backing", "raw:"+c.base, c.top)
	for path, format := range map[string]string{c.top: "qcow2", c.mid: "qcow2", c.base: "raw"} {
		r := testenv.Try(t, qio, "-f", format, "-c", "write 0 512", path)
		require.Error(t, r.Err, "%s", r)
		require.Contains(t, r.Stderr, "lock", "%s", r)
	}
	testenv.Run(t, img, "info", c.mid)
	testenv.Run(t, qio, "-f", "qcow2", "-c", "write -P 5 0 1M", "-c", "read -P 5 0 1M", other)
	ok(t, "map", "--output=json", "--backing", "auto", other)
	s.stop()

	holder := testenv.Start(t, testenv.Command(t, testenv.Tool(t, "qemu-nbd"), "-t", "-f", "qcow2", "-k", filepath.Join(c.dir, "q"), c.mid))
	testenv.Eventually(t, startLimit, "qemu-nbd has the image open", func() bool {
		_, err := os.Stat(filepath.Join(c.dir, "q"))
		return err == nil
	})
	out, err := program(t, "map", "--backing", "auto", c.top).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "in use by qemu-nbd")
	ok(t, "map", "-U", "--output=json", "--backing", "auto", c.top)
	holder.Kill()
}

// TestServeRaw: with -f raw the file is the disk.
func TestServeRaw(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "disk")
	_, rng := testenv.Seed(t)
	want := make([]byte, 3<<20+1000)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	require.NoError(t, os.WriteFile(path, want, 0o600))
	s := serve(t, dir, "-f", "raw", path)
	d := s.dial()
	ctx := t.Context()
	require.EqualValues(t, len(want), d.Info().Size)
	got := make([]byte, len(want))
	require.NoError(t, d.ReadAt(ctx, got, 0, 0))
	require.True(t, bytes.Equal(want, got))
	copy(want[5000:], "hello")
	require.NoError(t, d.WriteAt(ctx, []byte("hello"), 5000, 0))
	clear(want[1<<20 : 2<<20])
	require.NoError(t, d.WriteZeroes(ctx, 1<<20, 1<<20, 0))
	clear(want[2<<20 : 2<<20+128<<10])
	require.NoError(t, d.Discard(ctx, 2<<20, 128<<10, 0))
	require.NoError(t, d.ReadAt(ctx, want[2<<20:2<<20+128<<10], 2<<20, 0))
	require.NoError(t, d.Flush(ctx))
	require.NoError(t, d.Close())
	testenv.Run(t, testenv.Tool(t, "qemu-io"), "-f", "raw", "-c", "write -P 9 8k 4k", "-c", "read -P 9 8k 4k", s.uri())
	copy(want[8<<10:], bytes.Repeat([]byte{9}, 4<<10))
	s.stop()
	require.True(t, bytes.Equal(want, contentOf(t, path)))

	s = serve(t, dir, "-r", "-f", "raw", path)
	r := testenv.Try(t, testenv.Tool(t, "qemu-io"), "-f", "raw", "-c", "write 0 512", s.uri())
	require.Error(t, r.Err, "%s", r)
	s.stop()
	require.True(t, bytes.Equal(want, contentOf(t, path)))
}
