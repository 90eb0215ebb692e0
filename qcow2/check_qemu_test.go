//go:build linux

package qcow2_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// checkImages are images with what a check must follow, made by QEMU's tools.
func checkImages(t *testing.T) map[string]func(path string) {
	img, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	create := func(path, options, size string) {
		testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", options, path, size)
	}
	io := func(path string, commands ...string) {
		args := []string{"-f", "qcow2"}
		for _, c := range commands {
			args = append(args, "-c", c)
		}
		testenv.Run(t, qio, append(args, path)...)
	}
	compressed := func(options string) func(string) {
		return func(path string) {
			raw := path + ".raw"
			b := make([]byte, 3<<20+512)
			for i := range b {
				b[i] = byte(i * i >> 11)
			}
			require.NoError(t, os.WriteFile(raw, b, 0o600))
			testenv.Run(t, img, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
			io(path, "write -P 7 1M 200k", "discard 2M 64k")
			testenv.Run(t, img, "snapshot", "-c", "one", path)
			io(path, "write -P 8 100k 300k", "write -c -P 9 2M 64k")
		}
	}
	snapshots := func(options string) func(string) {
		return func(path string) {
			create(path, options, "16M")
			io(path, "write -P 1 0 1M", "write -P 2 10M 300k")
			testenv.Run(t, img, "snapshot", "-c", "one", path)
			io(path, "write -P 3 512k 1M", "write -z 10M 64k", "discard 0 128k")
			testenv.Run(t, img, "snapshot", "-c", "two", path)
			testenv.Run(t, img, "snapshot", "-c", "three", path)
			io(path, "write -P 4 3M 70k")
			testenv.Run(t, img, "snapshot", "-d", "two", path)
			testenv.Run(t, img, "snapshot", "-a", "one", path)
			io(path, "write -P 5 100k 10k")
		}
	}
	subclusters := func(options string) func(string) {
		return func(path string) {
			create(path, options, "16M")
			io(path, "write -P 1 2k 2k", "write -P 2 1M 256k", "write -z 1030k 6k", "write -z 4M 20k", "discard 1100k 64k",
				"write -c -P 3 8M 64k", "write -P 4 15M 1M")
		}
	}
	return map[string]func(path string){
		"plain":                 func(p string) { create(p, "cluster_size=4k", "8M"); io(p, "write 100k 2M", "write -z 50k 100k") },
		"version 2":             func(p string) { create(p, "compat=0.10,cluster_size=512", "3M"); io(p, "write 100k 1M") },
		"preallocated":          func(p string) { create(p, "preallocation=metadata", "8M") },
		"deflate":               compressed("compression_type=zlib"),
		"deflate, small":        compressed("compression_type=zlib,cluster_size=512"),
		"zstd":                  compressed("compression_type=zstd,cluster_size=4k"),
		"snapshots":             snapshots("cluster_size=64k"),
		"snapshots, wide":       snapshots("cluster_size=4k,refcount_bits=64"),
		"snapshots, narrow":     snapshots("cluster_size=4k,refcount_bits=4"),
		"snapshots, version 2":  snapshots("cluster_size=4k,compat=0.10"),
		"extended L2":           subclusters("extended_l2=on"),
		"extended L2, small":    subclusters("extended_l2=on,cluster_size=16k"),
		"extended L2, snapshot": snapshots("extended_l2=on,cluster_size=32k"),
		"resized under a snapshot": func(p string) {
			snapshots("cluster_size=512")(p)
			testenv.Run(t, img, "resize", "-q", p, "40M")
			io(p, "write 38M 100k")
			testenv.Run(t, img, "snapshot", "-c", "large", p)
		},
	}
}

// A verdict is what both checks must agree on.
type verdict struct {
	Corruptions int64 `json:"corruptions"`
	Leaks       int64 `json:"leaks"`
	CheckErrors int64 `json:"check-errors"`
	ImageEnd    int64 `json:"image-end-offset"`
	Total       int64 `json:"total-clusters"`
	Allocated   int64 `json:"allocated-clusters"`
	Fragmented  int64 `json:"fragmented-clusters"`
	Compressed  int64 `json:"compressed-clusters"`
}

// class is the exit code of qemu-img check.
func (v verdict) class() int {
	switch {
	case v.CheckErrors > 0:
		return 1
	case v.Corruptions > 0:
		return 2
	case v.Leaks > 0:
		return 3
	}
	return 0
}

// qemuVerdict is false if qemu-img could not check at all.
func qemuVerdict(t *testing.T, path string) (v verdict, ok bool, r testenv.Result) {
	t.Helper()
	r = testenv.Try(t, testenv.Tool(t, "qemu-img"), "check", "--output=json", "-f", "qcow2", path)
	if json.Unmarshal([]byte(strings.TrimSpace(r.Stdout)), &v) != nil {
		return v, false, r
	}
	return v, true, r
}

func ourVerdict(t *testing.T, path string) (verdict, []string, error) {
	t.Helper()
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
	require.NoError(t, err)
	defer f.Close()
	r, err := qcow2.Check(context.Background(), f, qcow2.CheckOptions{})
	return verdict{r.Corruptions, r.Leaks, r.CheckErrors, r.ImageEnd, r.TotalClusters, r.Allocated, r.Fragmented, r.Compressed}, r.Problems, err
}

// TestCheckAgreesWithQEMU checks whole images: every figure is QEMU's.
func TestCheckAgreesWithQEMU(t *testing.T) {
	for name, create := range checkImages(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			create(path)
			requireSameVerdict(t, path)
			v, _, err := ourVerdict(t, path)
			require.NoError(t, err)
			require.Zero(t, v.class())
		})
	}
}

// TestCheckVMState: the state of a virtual machine is behind the disk's end, in
// the same tables.
func TestCheckVMState(t *testing.T) {
	img, qio, qemu := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io"), testenv.Tool(t, "qemu-system-x86_64")
	path := filepath.Join(t.TempDir(), "image")
	testenv.Run(t, img, "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "2M")
	testenv.Run(t, qio, "-f", "qcow2", "-c", "write 0 100k", path)
	cmd := testenv.Command(t, qemu, "-M", "none", "-nodefaults", "-display", "none",
		"-drive", "if=none,id=d,format=qcow2,file="+path, "-monitor", "stdio")
	cmd.Stdin = strings.NewReader("savevm one\nquit\n")
	require.NoError(t, testenv.Start(t, cmd).Wait(t, time.Minute))
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
	require.NoError(t, err)
	h, err := qcow2.ReadHeader(f)
	require.NoError(t, err)
	list, _, err := qcow2.ReadSnapshots(f, h)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Len(t, list, 1)
	require.NotZero(t, list[0].VMStateSize)
	require.Greater(t, int64(list[0].L1Size), h.L1Entries(h.Size))
	requireSameVerdict(t, path)
}

// requireSameVerdict checks with both.
func requireSameVerdict(t *testing.T, path string) {
	t.Helper()
	theirs, ok, r := qemuVerdict(t, path)
	require.True(t, ok, "%s", r)
	ours, problems, err := ourVerdict(t, path)
	require.NoError(t, err)
	require.Equal(t, theirs, ours, "%s\nours:\n%s", r, strings.Join(problems, "\n"))
}

// TestCheckDamagedAgreesWithQEMU flips one bit of metadata at a time and expects
// the same verdict: clean, leaks (as many), or worse. QEMU stops at some damage
// that we count. The lowest bit is left alone where the zero mark is not allowed:
// the specification says that it is 0, and QEMU's check does not look. Nor does it
// look at counts of clusters behind the file's end.
func TestCheckDamagedAgreesWithQEMU(t *testing.T) {
	_, rng := testenv.Seed(t)
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	for name, create := range checkImages(t) {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "image")
			create(path)
			whole, err := os.ReadFile(path)
			require.NoError(t, err)
			h, words := metadataWords(t, path)
			for range rounds {
				w, bit := words[rng.IntN(len(words))], rng.IntN(64)
				if bit == 0 && (h.Version == 2 || h.ExtendedL2) {
					continue
				}
				b := append([]byte(nil), whole...)
				b[w+7-int64(bit/8)] ^= 1 << (bit % 8)
				require.NoError(t, os.WriteFile(path, b, 0o600))
				requireSameClass(t, path, fmt.Sprintf("damaged: 0x%x at %d, was 0x%x", b[w:w+8], w, whole[w:w+8]))
			}
		})
	}
}

func requireSameClass(t *testing.T, path, what string) {
	t.Helper()
	theirs, ok, r := qemuVerdict(t, path)
	ours, problems, err := ourVerdict(t, path)
	if !ok {
		require.Error(t, err, "%s\n%s", what, r)
		return
	}
	require.NoError(t, err, "%s\n%s", what, r)
	worse := func(v verdict) bool { return v.class() == 1 || v.class() == 2 }
	if worse(theirs) && worse(ours) {
		return
	}
	require.Equal(t, theirs.class(), ours.class(), "%s\n%s\nours: %+v\n%s", what, r, ours, strings.Join(problems, "\n"))
	if ours.class() == 3 {
		require.Equal(t, theirs.Leaks, ours.Leaks, "%s\n%s", what, r)
	}
}

// metadataWords are the offsets of entries that are not zero, of all tables.
func metadataWords(t *testing.T, path string) (*format.Header, []int64) {
	t.Helper()
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
	require.NoError(t, err)
	defer f.Close()
	h, err := qcow2.ReadHeader(f)
	require.NoError(t, err)
	var words []int64
	add := func(off, n int64) []uint64 {
		b := make([]byte, n)
		_, err := f.ReadAt(b, off)
		require.NoError(t, err)
		table := make([]uint64, n/8)
		format.DecodeTable(table, b)
		for i, w := range table {
			if w != 0 {
				words = append(words, off+int64(i)*8)
			}
		}
		return table
	}
	tables := [][]uint64{add(h.L1Offset, int64(h.L1Size)*8)}
	list, _, err := qcow2.ReadSnapshots(f, h)
	require.NoError(t, err)
	for _, s := range list {
		tables = append(tables, add(s.L1Offset, int64(s.L1Size)*8))
	}
	for _, l1 := range tables {
		for _, e := range l1 {
			if off := format.L1Entry(e).Offset(); off != 0 {
				add(off, h.ClusterSize())
			}
		}
	}
	left := h.Clusters(f.Size()) << h.RefcountOrder / 64 // words of counts of clusters that the file has
	for _, e := range add(h.RefcountTableOffset, h.ClusterSize()) {
		if e != 0 {
			add(int64(e), min(left*8, h.ClusterSize()))
		}
		left = max(left-h.ClusterSize()/8, 0)
	}
	return h, words
}
