package qcow2_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

func TestCreateRefused(t *testing.T) {
	long := strings.Repeat("n", format.MaxBackingName)
	for name, c := range map[string]struct {
		o    qcow2.CreateOptions
		want string
	}{
		"extended L2, version 2":      {qcow2.CreateOptions{ExtendedL2: true, Version: 2}, "need compat 1.1"},
		"extended L2, small clusters": {qcow2.CreateOptions{ExtendedL2: true, ClusterSize: 8 << 10}, "need at least 16384"},
		"zstd, version 2":             {qcow2.CreateOptions{CompressionType: "zstd", Version: 2}, "needs compat 1.1"},
		"unknown compression":         {qcow2.CreateOptions{CompressionType: "lz4"}, `"lz4": expected zlib or zstd`},
		"backing file, no format":     {qcow2.CreateOptions{BackingFile: "a"}, "expected both or neither"},
		"format, no backing file":     {qcow2.CreateOptions{BackingFormat: "raw"}, "expected both or neither"},
		"name too long":               {qcow2.CreateOptions{BackingFile: long + "n", BackingFormat: "raw"}, "1024 bytes: expected at most 1023"},
		"name longer than a cluster":  {qcow2.CreateOptions{BackingFile: long, BackingFormat: "raw", ClusterSize: 512}, "do not fit into the first cluster"},
		"NUL in name":                 {qcow2.CreateOptions{BackingFile: "a\x00b", BackingFormat: "raw"}, "no NUL"},
	} {
		c.o.Size = 1 << 20
		d := simdisk.New(0, simdisk.Options{})
		require.ErrorContains(t, qcow2.Create(t.Context(), d, c.o), c.want, name)
		require.Zero(t, d.Size(), name)
	}
}

// TestCreateHeader reads back what the header of each kind of image says: no
// feature bit that the image does not use.
func TestCreateHeader(t *testing.T) {
	for name, c := range map[string]struct {
		o                        qcow2.CreateOptions
		incompatible, compatible uint64
		extensions               []format.ExtensionType
	}{
		"default": {qcow2.CreateOptions{}, 0, 0, []format.ExtensionType{format.ExtFeatureNames}},
		"zlib":    {qcow2.CreateOptions{CompressionType: "zlib"}, 0, 0, []format.ExtensionType{format.ExtFeatureNames}},
		"zstd":    {qcow2.CreateOptions{CompressionType: "zstd"}, format.IncompatCompressionType, 0, []format.ExtensionType{format.ExtFeatureNames}},
		"extended L2, lazy": {
			qcow2.CreateOptions{ExtendedL2: true, LazyRefcounts: true}, format.IncompatExtendedL2, format.CompatLazyRefcounts,
			[]format.ExtensionType{format.ExtFeatureNames},
		},
		"backing file": {
			qcow2.CreateOptions{BackingFile: "base", BackingFormat: "raw"}, 0, 0,
			[]format.ExtensionType{format.ExtBackingFormat, format.ExtFeatureNames, format.ExtReserved, format.ExtRedo},
		},
		"backing file, 512": {
			qcow2.CreateOptions{BackingFile: "base", BackingFormat: "raw", ClusterSize: 512}, 0, 0,
			[]format.ExtensionType{format.ExtBackingFormat, format.ExtReserved, format.ExtRedo},
		},
		"long name, 512": {
			qcow2.CreateOptions{BackingFile: strings.Repeat("n", 300), BackingFormat: "raw", ClusterSize: 512}, 0, 0,
			[]format.ExtensionType{format.ExtBackingFormat, format.ExtRedo},
		},
		"longest name": {
			qcow2.CreateOptions{BackingFile: strings.Repeat("n", 1023), BackingFormat: "qcow2"}, 0, 0,
			[]format.ExtensionType{format.ExtBackingFormat, format.ExtFeatureNames, format.ExtReserved, format.ExtRedo},
		},
		"backing file, version 2": {
			qcow2.CreateOptions{BackingFile: "base", BackingFormat: "qcow2", Version: 2}, 0, 0,
			[]format.ExtensionType{format.ExtBackingFormat, format.ExtReserved},
		},
	} {
		c.o.Size = 5 << 20
		h, err := qcow2.ReadHeader(newDisk(t, c.o))
		require.NoError(t, err, name)
		require.Equal(t, c.incompatible, h.Incompatible, name)
		require.Equal(t, c.compatible, h.Compatible, name)
		require.Equal(t, c.o.BackingFile, h.BackingFile, name)
		require.Equal(t, c.o.BackingFormat, h.BackingFormat(), name)
		require.Equal(t, c.o.ExtendedL2, h.ExtendedL2, name)
		var types []format.ExtensionType
		for _, e := range h.Extensions {
			types = append(types, e.Type)
		}
		require.Equal(t, c.extensions, types, name)
	}
}
