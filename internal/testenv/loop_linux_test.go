package testenv_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

func TestLoopEndsWithItsTest(t *testing.T) {
	var path, file string
	t.Run("inner", func(t *testing.T) {
		d := testenv.Loop(t, 1<<20)
		path, file = d.Path, d.File
		require.NoError(t, os.WriteFile(path, []byte("on the disk"), 0))
		d.Grow(t, 2<<20)
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		end, err := f.Seek(0, 2)
		require.NoError(t, err)
		require.EqualValues(t, 2<<20, end)
	})
	if path == "" {
		t.Skip("no loop devices")
	}
	below, _ := os.ReadFile("/sys/block/" + path[len("/dev/"):] + "/loop/backing_file") // of another test, which has it by now, or nothing
	require.NotContains(t, string(below), file)
}
