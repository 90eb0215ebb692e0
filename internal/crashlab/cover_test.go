package crashlab

import (
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/record"
	"tidemark/internal/simdisk"
)

func TestStepsAreStraddled(t *testing.T) {
	f := record.New(simdisk.New(4096, simdisk.Options{}), record.Options{})
	f.Mark(stepMark + "A1") // nothing is before it
	_, err := f.WriteAt([]byte{1}, 0)
	require.NoError(t, err)
	f.Mark(stepMark + "A2")
	f.Mark("something else")
	require.NoError(t, f.Sync())
	f.Mark(stepMark + "A3") // nothing is behind it
	log := f.Log()
	points := make([]bool, len(log))
	for i, e := range log {
		points[i] = e.Kind == record.Write && !e.Done || e.Kind == record.Sync && e.Done
	}
	l := New(Config{}, t.TempDir())
	l.cover.add(log, points)
	require.Equal(t, []Step{{"A1", 1, 0, 1}, {"A2", 1, 1, 1}, {"A3", 1, 1, 0}}, l.Steps())
	require.Equal(t, []string{"A1", "A3", "A4"}, l.Missing([]string{"A1", "A2", "A3", "A4"}))
}
