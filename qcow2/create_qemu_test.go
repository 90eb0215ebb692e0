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

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestCreateForQEMU: QEMU understands what was created as it was meant, uses it,
// and both find it clean.
func TestCreateForQEMU(t *testing.T) {
	img, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	dir := t.TempDir()
	base := filepath.Join(dir, "base")
	require.NoError(t, os.WriteFile(base, []byte(strings.Repeat("b", 3<<20)), 0o600))
	for i, o := range []qcow2.CreateOptions{
		{Size: 5 << 20, BackingFile: "base", BackingFormat: "raw"},
		{Size: 5 << 20, BackingFile: base, BackingFormat: "raw", ClusterSize: 512},
		{Size: 5 << 20, BackingFile: "base", BackingFormat: "raw", Version: 2, ClusterSize: 4096},
		{Size: 5<<20 + 512, BackingFile: "base", BackingFormat: "raw", ExtendedL2: true, CompressionType: "zstd"},
		{Size: 700 << 20, ExtendedL2: true, ClusterSize: 16 << 10, RefcountBits: 64},
		{Size: 5 << 20, ExtendedL2: true, ClusterSize: 2 << 20, RefcountBits: 1},
		{Size: 5 << 20, CompressionType: "zstd", ClusterSize: 1024},
	} {
		path := filepath.Join(dir, fmt.Sprint(i))
		f, err := hostfile.Create(path, 0, hostfile.CreateOptions{})
		require.NoError(t, err)
		require.NoError(t, qcow2.Create(context.Background(), f, o))
		require.NoError(t, f.Close())
		requireSameVerdict(t, path)

		var info struct {
			Size    int64  `json:"virtual-size"`
			Backing string `json:"backing-filename"`
			Format  string `json:"backing-filename-format"`
			Special struct {
				Data struct {
					ExtendedL2  bool   `json:"extended-l2"`
					Compression string `json:"compression-type"`
				}
			} `json:"format-specific"`
		}
		require.NoError(t, json.Unmarshal([]byte(testenv.Run(t, img, "info", "--output=json", "-f", "qcow2", path)), &info))
		require.Equal(t, o.Size, info.Size)
		require.Equal(t, o.BackingFile, info.Backing)
		require.Equal(t, o.BackingFormat, info.Format)
		require.Equal(t, o.ExtendedL2, info.Special.Data.ExtendedL2)
		require.Equal(t, o.CompressionType == "zstd", info.Special.Data.Compression == "zstd")

		testenv.Run(t, qio, "-f", "qcow2", "-c", "write -P 1 10k 70k", "-c", "write -c -P 2 2M 2M", "-c", "write -z 1M 3k", path)
		expect := 0
		if o.BackingFile != "" {
			expect = 'b'
		}
		testenv.Run(t, qio, "-f", "qcow2", "-c", "read -P 1 10k 70k", "-c", "read -P 2 2M 2M", "-c", "read -P 0 1M 3k",
			"-c", fmt.Sprintf("read -P %d 0 10k", expect), "-c", fmt.Sprintf("read -P %d 80k 100k", expect), "-c", "read -P 0 4M 1M", path)
		requireSameVerdict(t, path)
	}
}
