package crashtest

import (
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// kinds are the kinds of images that were judged.
type kinds struct {
	clusters, refcounts, files map[int]bool
	extended                   map[bool]bool
}

func newKinds() kinds {
	return kinds{map[int]bool{}, map[int]bool{}, map[int]bool{}, map[bool]bool{}}
}

// add looks at the image of a subject.
func (k kinds) add(t *testing.T, s subject) {
	h, err := qcow2.ReadHeader(simdisk.NewDisk(s.setup.Start, s.setup.Options))
	require.NoError(t, err)
	k.clusters[int(h.ClusterSize())] = true
	k.refcounts[1<<h.RefcountOrder] = true
	k.files[s.files] = true
	k.extended[h.ExtendedL2] = true
}

// judge prints what there was, and fails if something is missing that must be.
func (k kinds) judge(t *testing.T) {
	sorted := func(m map[int]bool) []int { return slices.Sorted(maps.Keys(m)) }
	t.Logf("clusters of %d bytes; reference counts of %d bits; chains of %d files; extended L2 entries: %v",
		sorted(k.clusters), sorted(k.refcounts), sorted(k.files), k.extended)
	require.Subset(t, sorted(k.clusters), []int{512, 1 << 10, 2 << 10, 4 << 10, 16 << 10, 32 << 10, 64 << 10})
	require.Subset(t, sorted(k.refcounts), []int{1, 16, 64})
	require.Subset(t, sorted(k.files), []int{1, 2, 3, 4})
	require.Equal(t, map[bool]bool{false: true, true: true}, k.extended)
}
