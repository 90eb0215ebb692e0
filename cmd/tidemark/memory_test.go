package main

import (
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

// The limit is the smallest one above the process, in either version of control
// groups.
func TestMemoryLimit(t *testing.T) {
	file := func(s string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(s)} }
	sys := fstest.MapFS{
		"memory.max":                              file("max\n"),
		"system.slice/memory.max":                 file("1073741824\n"),
		"system.slice/nbd.service/memory.max":     file("268435456\n"),
		"system.slice/other.service/memory.max":   file("max\n"),
		"memory/box/memory.limit_in_bytes":        file("536870912\n"),
		"memory/memory.limit_in_bytes":            file("9223372036854771712\n"),
		"system.slice/strange.service/memory.max": file("much\n"),
	}
	for self, want := range map[string]int64{
		"":                                   0,
		"no line\n":                          0,
		"0::/\n":                             0,
		"0::/gone/a\n":                       0,
		"0::/system.slice/nbd.service\n":     256 << 20,
		"0::/system.slice/other.service\n":   1 << 30,
		"0::/system.slice/strange.service\n": 1 << 30,
		"4:memory:/box/inner\n0::/\n":        512 << 20,
		"4:memory:/\n1:cpu:/box\n":           0,
		"4:memory:/box\n0::/system.slice/nbd.service\n":       256 << 20,
		"0::/../system.slice/nbd.service/../nbd.service/x:\n": 256 << 20,
	} {
		require.Equal(t, want, memoryLimit(sys, self), self)
	}
}

func TestMemoryBudget(t *testing.T) {
	var none memoryBudget
	require.Zero(t, none.requests())
	require.Zero(t, none.cache(3))
	b := memoryBudget{limit: 256 << 20}
	require.EqualValues(t, 64<<20, b.requests())
	require.EqualValues(t, 16<<20, b.cache(1))
	require.EqualValues(t, 4<<20, b.cache(4))
	require.EqualValues(t, 1<<20, b.cache(1000))
}
