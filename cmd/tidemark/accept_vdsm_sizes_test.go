//go:build linux

package main_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// A snapshot that is asked for while its parent is being extended is as large as that. A
// disk that is smaller than what it is based on, which others have made so, is not extended:
// of a served one that is found when the task cannot go back any more, and then it has
// failed, the metadata say what the disk has, and the image can be deleted.
func TestVDSMSizesOfChains(t *testing.T) {
	img := testenv.Tool(t, "qemu-img")
	h := newVDSMHost(t)
	w := newWorld(t, h, h.newDir("a"), h.newDir("b"))
	w.volume("i", "a", "", "aa", nil)
	extended := w.begin("extendVolumeSize", w.extend())
	made := w.begin("createVolume", w.create("i", "b", "a", nil))
	require.Equal(t, "success", w.await(extended).Result)
	require.Equal(t, "success", w.await(made).Result)
	require.Equal(t, "0/i: a(INTERNAL COW SPARSE 96M: aa) b(LEAF COW SPARSE 96M)=aa", w.shows())

	for _, v := range w.volumes(w.domains[0]) {
		if v.ID == w.id("a") {
			testenv.Run(t, img, "resize", "-q", v.Path, "256M")
		}
	}
	a := w.extendOf("i", "b")
	a["newSize"] = fmt.Sprint(128 * mib)
	s := w.await(w.begin("extendVolumeSize", a))
	require.Contains(t, s.Message, "has 100663296 bytes, and what it is based on has 268435456")
	w.prepare(w.domains[0], w.id("i"))
	s = w.await(w.begin("extendVolumeSize", a))
	require.Contains(t, s.Message, "the backing file has 268435456 bytes, the disk 100663296")
	for _, v := range w.volumes(w.domains[0]) {
		require.Equal(t, fmt.Sprint(96*mib), v.Capacity)
	}
	w.teardown(w.domains[0], w.id("i"))
	w.proc.Kill()
	w.start()
	w.run("deleteImage", w.image("i"))
	require.Empty(t, w.shows())
}
