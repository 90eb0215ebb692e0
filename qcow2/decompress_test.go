package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/qcow2/format"
)

func deflated(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, flate.BestSpeed)
	require.NoError(t, err)
	_, err = w.Write(p)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func zstded(t testing.TB, p []byte, o ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, append(o, zstd.WithEncoderConcurrency(1))...)
	require.NoError(t, err)
	defer w.Close()
	return w.EncodeAll(p, nil)
}

// text is compressible and differs everywhere.
func text(n int) []byte {
	var b []byte
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "line %d of a cluster\n", i)
	}
	return b[:n]
}

func TestDecompress(t *testing.T) {
	skippable := append(binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, 5), "12345"...)
	for bits := format.MinClusterBits; bits <= format.MaxClusterBits; bits++ {
		want := text(1 << bits)
		half := len(want) / 2
		for name, c := range map[string]struct {
			compression uint8
			src         []byte
		}{
			"deflate":           {compressionDeflate, deflated(t, want)},
			"zstd":              {compressionZstd, zstded(t, want)},
			"zstd with no sum":  {compressionZstd, zstded(t, want, zstd.WithEncoderCRC(false))},
			"zstd, two frames":  {compressionZstd, append(zstded(t, want[:half]), zstded(t, want[half:])...)},
			"zstd, one skipped": {compressionZstd, append(bytes.Clone(skippable), zstded(t, want)...)},
			"zstd, one empty":   {compressionZstd, append(zstded(t, nil, zstd.WithZeroFrames(true)), zstded(t, want)...)},
		} {
			for behind, tail := range map[string][]byte{
				"nothing": nil, "zeroes": make([]byte, 100), "garbage": bytes.Repeat([]byte{0xa5}, 300),
				"the next cluster": c.src,
			} {
				got := bytes.Repeat([]byte{0xee}, len(want)+1)
				require.NoError(t, decompress(got[:len(want)], append(bytes.Clone(c.src), tail...), c.compression), "%s, then %s, 2^%d", name, behind, bits)
				require.True(t, bytes.Equal(want, got[:len(want)]), "%s, then %s, 2^%d", name, behind, bits)
				require.Equal(t, byte(0xee), got[len(want)], "behind the cluster")
			}
		}
	}
}

func TestDecompressRefused(t *testing.T) {
	want := text(4096)
	random := make([]byte, len(want))
	fillRandom(random)
	sum := zstded(t, want)
	sum[len(sum)-1] ^= 1
	for name, c := range map[string]struct {
		compression uint8
		src         []byte
		says        string
	}{
		"deflate, short":            {compressionDeflate, deflated(t, want[:4095]), "4095 bytes from .*the stream ends"},
		"deflate, long":             {compressionDeflate, deflated(t, append(bytes.Clone(want), 1)), "the stream goes on"},
		"deflate, cut off":          {compressionDeflate, deflated(t, want)[:200], "bytes from 200, then: the stream ends"},
		"deflate, nothing":          {compressionDeflate, nil, "0 bytes from 0"},
		"deflate, garbage":          {compressionDeflate, bytes.Repeat([]byte{0xff}, 512), "corrupt input before offset"},
		"zstd, short":               {compressionZstd, zstded(t, want[:4095]), "4095 bytes from .*the stream ends"},
		"zstd, long":                {compressionZstd, zstded(t, append(bytes.Clone(want), 1)), "the stream goes on"},
		"zstd, long, size not told": {compressionZstd, streamed(t, append(bytes.Clone(want), want...)), "the stream goes on|bigger than"},
		"zstd, cut off":             {compressionZstd, zstded(t, want)[:20], "frame at 0: unexpected EOF"},
		"zstd, random, cut off":     {compressionZstd, zstded(t, random)[:2000], "unexpected EOF"},
		"zstd, nothing":             {compressionZstd, nil, "0 bytes from 0"},
		"zstd, garbage":             {compressionZstd, bytes.Repeat([]byte{0xff}, 512), "frame at 0"},
		"zstd, checksum":            {compressionZstd, sum, "(?i)crc|checksum"},
		"zstd, second frame bad":    {compressionZstd, append(zstded(t, want[:1000]), 1, 2, 3, 4, 5, 6, 7, 8, 9), "1000 bytes .*frame at"},
		"deflate taken for zstd":    {compressionZstd, deflated(t, want), "frame at 0"},
	} {
		err := decompress(make([]byte, len(want)), c.src, c.compression)
		var corrupt *format.CorruptError
		require.ErrorAs(t, err, &corrupt, name)
		require.Regexp(t, c.says, err.Error(), name)
	}
	var unsupported *format.UnsupportedError
	require.ErrorAs(t, decompress(make([]byte, 512), nil, 2), &unsupported)
}

// streamed is a frame that does not tell its content's size.
func streamed(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	require.NoError(t, err)
	for len(p) > 0 {
		n := min(len(p), 1000)
		_, err := w.Write(p[:n])
		require.NoError(t, err)
		require.NoError(t, w.Flush())
		p = p[n:]
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

func fillRandom(p []byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

// TestDecompressMemory lets a frame claim a window and a content of 64 MiB for
// a cluster of 64 KiB.
func TestDecompressMemory(t *testing.T) {
	// Magic; content size of 8 bytes, no single segment; window 2^26.
	bomb := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xc0, 16 << 3, 0, 0, 0, 4, 0, 0, 0, 0}
	told := append(bytes.Clone(bomb), 0x03, 0x00, 0x10, 0) // last block, 128 KiB of one byte
	untold := append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0, 16 << 3}, bytes.Repeat([]byte{0x02, 0x00, 0x10, 0}, 500)...)
	untold[len(untold)-4] |= 1
	dst := make([]byte, 64<<10)
	for _, src := range [][]byte{told, untold} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.ErrorContains(t, decompress(dst, src, compressionZstd), "the stream goes on")
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(4<<20))
	}
}

func TestDecompressConcurrently(t *testing.T) {
	want := text(64 << 10)
	streams := map[uint8][]byte{compressionDeflate: deflated(t, want), compressionZstd: zstded(t, want)}
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for i := range 8 {
		wg.Go(func() {
			dst := make([]byte, len(want))
			for range 20 {
				compression := uint8(i % 2)
				if err := decompress(dst, streams[compression], compression); err != nil || !bytes.Equal(dst, want) {
					errs <- fmt.Errorf("type %d: %w", compression, err)
					return
				}
				clear(dst)
			}
		})
	}
	wg.Wait()
	require.Empty(t, errs)
}

// TestDecompressQEMU decompresses every compressed cluster of images that
// qemu-img made, in every cluster size, with a last cluster that is incomplete.
func TestDecompressQEMU(t *testing.T) {
	img := testenv.Tool(t, "qemu-img")
	dir := t.TempDir()
	raw, path := filepath.Join(dir, "raw"), filepath.Join(dir, "image")
	content := text(5<<20 + 1536)
	fillRandom(content[1<<20 : 1<<20+300<<10])
	clear(content[2<<20 : 3<<20])
	require.NoError(t, os.WriteFile(raw, content, 0o600))
	for compression, name := range []string{"zlib", "zstd"} {
		for bits := format.MinClusterBits; bits <= format.MaxClusterBits; bits++ {
			testenv.Run(t, img, "convert", "-c", "-O", "qcow2", "-f", "raw",
				"-o", fmt.Sprintf("compression_type=%s,cluster_size=%d", name, 1<<bits), raw, path)
			file, err := os.ReadFile(path)
			require.NoError(t, err)
			n := 0
			walkCompressed(t, file, func(h *format.Header, off int64, src []byte) {
				require.Equal(t, uint8(compression), h.CompressionType)
				want := make([]byte, h.ClusterSize())
				copy(want, content[off:])
				got := make([]byte, h.ClusterSize())
				require.NoError(t, decompress(got, src, h.CompressionType), "%s 2^%d at %d", name, bits, off)
				require.True(t, bytes.Equal(want, got), "%s 2^%d at %d", name, bits, off)
				n++
			})
			require.Greater(t, n, 1<<(21-bits), "compressed clusters, %s 2^%d", name, bits)
		}
	}
}

// walkCompressed calls f with the guest offset and the sectors of each compressed
// cluster of an image.
func walkCompressed(t *testing.T, file []byte, f func(h *format.Header, off int64, src []byte)) {
	t.Helper()
	h, err := format.DecodeHeader(file[:min(len(file), 1<<format.MaxClusterBits)])
	require.NoError(t, err)
	l1 := make([]format.L1Entry, h.L1Size)
	format.DecodeTable(l1, file[h.L1Offset:])
	pairs := make([]format.L2Pair, h.L2Entries())
	for i, e := range l1 {
		if e.Offset() == 0 {
			continue
		}
		h.DecodeL2(pairs, file[e.Offset():])
		for k, p := range pairs {
			if p.Entry.Kind(h.Geometry) != format.Compressed {
				continue
			}
			at, n := p.Entry.CompressedRange(h.Geometry)
			f(h, int64(i)*h.L2Coverage()+int64(k)*h.ClusterSize(), file[at:min(at+n, int64(len(file)))])
		}
	}
}

func FuzzDecompress(f *testing.F) {
	want := text(2048)
	f.Add(deflated(f, want), uint8(compressionDeflate))
	f.Add(zstded(f, want), uint8(compressionZstd))
	f.Add(streamed(f, want), uint8(compressionZstd))
	f.Add(append(zstded(f, want[:1000]), zstded(f, want[1000:])...), uint8(compressionZstd))
	f.Fuzz(func(t *testing.T, src []byte, compression uint8) {
		buf := bytes.Repeat([]byte{0xee}, 2048+256)
		if decompress(buf[:2048], src, compression%2) == nil {
			again := make([]byte, 2048)
			if err := decompress(again, src, compression%2); err != nil || !bytes.Equal(again, buf[:2048]) {
				t.Fatalf("another result the second time: %v", err)
			}
		}
		if !bytes.Equal(buf[2048:], bytes.Repeat([]byte{0xee}, 256)) {
			t.Fatal("wrote behind the cluster")
		}
	})
}
