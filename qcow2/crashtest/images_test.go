package crashtest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
)

// A built image is what QEMU's tools have made.
type built struct {
	path    string
	state   simdisk.State
	raw     bool
	backing []built    // from the one that the image names on
	sums    [][32]byte // of its snapshots
}

// load reads what was built.
func (b built) load(t *testing.T) built {
	var err error
	b.state, err = simdisk.ImportState(b.path)
	require.NoError(t, err)
	for i := range b.backing {
		b.backing[i] = b.backing[i].load(t)
	}
	return b
}

// content is a disk full of data, with holes.
func content(size int64) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, size)
	for i := range p {
		if i/6000%4 != 1 {
			p[i] = byte(rng.IntN(8)) // compressible
		}
	}
	return p
}

// rawFile writes a raw image.
func rawFile(t *testing.T, path string, size int64) {
	require.NoError(t, os.WriteFile(path, content(size), 0o600))
}

const madeSize = 256 << 10

// made creates an empty image with options.
func made(options string) func(*testing.T, string, string) built {
	return func(t *testing.T, img, dir string) built {
		path := filepath.Join(dir, "image")
		size := int64(madeSize)
		if options == "extended_l2=on,cluster_size=64k" {
			size = 512 << 10
		}
		testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", options, path, fmt.Sprint(size))
		return built{path: path}
	}
}

// chain creates an image on backing files: each is "raw" or "qcow2", with a size
// if it is not that of the image. The last one is named first by nobody: it holds
// the data.
func chain(options string, below ...string) func(*testing.T, string, string) built {
	return func(t *testing.T, img, dir string) built {
		b := built{path: filepath.Join(dir, "image")}
		backing, format := "", ""
		for i := len(below) - 1; i >= 0; i-- {
			path := filepath.Join(dir, fmt.Sprint("backing", i+1))
			size := int64(madeSize)
			var kilobytes int64
			if n, _ := fmt.Sscanf(below[i], "raw %dk", &kilobytes); n == 1 {
				size = kib(kilobytes)
			} else if n, _ := fmt.Sscanf(below[i], "qcow2 %dk", &kilobytes); n == 1 {
				size = kib(kilobytes)
			}
			switch {
			case below[i][:3] == "raw":
				rawFile(t, path, size)
				format = "raw"
			case backing == "":
				rawFile(t, path+".raw", size)
				testenv.Run(t, img, "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", path+".raw", path)
				format = "qcow2"
			default:
				testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "-b", backing, "-F", format, path, fmt.Sprint(size))
				io := testenv.Tool(t, "qemu-io")
				testenv.Run(t, io, "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 8k 24k", 40+i), "-c", "write -z 48k 8k", path)
				format = "qcow2"
			}
			backing = path
			b.backing = append([]built{{path: path, raw: format == "raw"}}, b.backing...)
		}
		testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", options, "-b", backing, "-F", format, b.path, fmt.Sprint(madeSize))
		return b
	}
}

// snapshots creates an image with n internal snapshots of different content.
func snapshots(options string, n int) func(*testing.T, string, string) built {
	return func(t *testing.T, img, dir string) built {
		b := built{path: filepath.Join(dir, "image")}
		raw := filepath.Join(dir, "raw")
		size := int64(madeSize)
		if options == "cluster_size=512,refcount_bits=64" {
			size = 96 << 10
		}
		rawFile(t, raw, size)
		testenv.Run(t, img, "convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, b.path)
		io := testenv.Tool(t, "qemu-io")
		for i := range n {
			testenv.Run(t, img, "snapshot", "-c", fmt.Sprint("s", i), b.path)
			testenv.Run(t, img, "convert", "-f", "qcow2", "-l", fmt.Sprint("s", i), "-O", "raw", b.path, raw)
			p, err := os.ReadFile(raw)
			require.NoError(t, err)
			b.sums = append(b.sums, sha256.Sum256(p))
			testenv.Run(t, io, "-f", "qcow2", "-c", fmt.Sprintf("write -P %d %dk 12k", 50+i, 8*i+4), "-c", "discard 40k 8k", b.path)
		}
		return b
	}
}

// holes creates an image with a snapshot, between whose clusters there are free ones.
func holes(t *testing.T, img, dir string) built {
	b := built{path: filepath.Join(dir, "image")}
	raw := filepath.Join(dir, "raw")
	rawFile(t, raw, madeSize)
	testenv.Run(t, img, "convert", "-S", "0", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=2k", raw, b.path)
	args := []string{"-t", "unsafe", "-f", "qcow2"}
	for at := 2; at < madeSize>>10; at += 4 {
		args = append(args, "-c", fmt.Sprintf("discard %dk 2k", at))
	}
	testenv.Run(t, testenv.Tool(t, "qemu-io"), append(args, b.path)...)
	testenv.Run(t, img, "snapshot", "-c", "s", b.path)
	testenv.Run(t, img, "convert", "-f", "qcow2", "-l", "s", "-O", "raw", b.path, raw)
	p, err := os.ReadFile(raw)
	require.NoError(t, err)
	b.sums = append(b.sums, sha256.Sum256(p))
	return b
}

// longName creates an image on a raw one whose name is so long, and begins so near
// the end of a sector, that an extension which takes the name's place is in two
// sectors, and more of the name behind it.
func longName(t *testing.T, img, dir string) built {
	for range 3 {
		dir = filepath.Join(dir, strings.Repeat("x", 120))
	}
	require.NoError(t, os.MkdirAll(dir, 0o700))
	b := chain("cluster_size=4k", "raw")(t, img, dir)
	f, err := os.OpenFile(b.path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // what was written is read again
	first := make([]byte, 4096)
	_, err = f.ReadAt(first, 0)
	require.NoError(t, err)
	const to = 1024 // the name's new place
	at, n := int(binary.BigEndian.Uint64(first[8:])), int(binary.BigEndian.Uint32(first[16:]))
	name := slices.Clone(first[at : at+n])
	end := at - 8 // the mark behind the extensions
	require.Equal(t, make([]byte, 8), first[end:at])
	require.Less(t, end+16, to)
	clear(first[end : at+n])
	binary.BigEndian.PutUint32(first[end:], 0x66696c6c) // an extension that nobody knows
	binary.BigEndian.PutUint32(first[end+4:], uint32(to-16-end))
	copy(first[to:], name)
	binary.BigEndian.PutUint64(first[8:], to)
	_, err = f.WriteAt(first, 0)
	require.NoError(t, err)
	return b
}

// compressed creates an image whose clusters are compressed.
func compressed(options string) func(*testing.T, string, string) built {
	return func(t *testing.T, img, dir string) built {
		raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
		rawFile(t, raw, madeSize)
		testenv.Run(t, img, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
		return built{path: path}
	}
}
