package record_test

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
)

func TestFile(t *testing.T) {
	blocktest.TestFile(t, func(_ *testing.T, size int64) block.File {
		return record.New(simdisk.New(size, simdisk.Options{}), record.Options{Reads: true})
	})
}

// TestLogIsWhatHappened: every operation twice, when it was submitted and when it
// returned, with marks where they were set.
func TestLogIsWhatHappened(t *testing.T) {
	boom := errors.New("boom")
	below := faultfile.New(simdisk.New(4096, simdisk.Options{}), faultfile.Fault{At: 3, Err: boom})
	f := record.New(below, record.Options{})
	p := []byte("bytes")
	_, err := f.WriteAt(p, 7)
	require.NoError(t, err)
	p[0] = 'x' // the log has its own copy
	require.Equal(t, 2, f.Mark("told"))
	_, err = f.Grow(t.Context(), 5000, 6000)
	require.NoError(t, err)
	require.ErrorIs(t, f.Sync(), boom)
	_, err = f.ReadAt(p, 0) // not asked for
	require.NoError(t, err)
	log := f.Log()
	require.ErrorIs(t, log[6].Err, boom)
	log[6].Err = nil
	require.Equal(t, record.Log{
		{ID: 1, Kind: record.Write, Off: 7, Len: 5, Data: []byte("bytes")},
		{ID: 1, Kind: record.Write, Off: 7, Len: 5, Done: true},
		{ID: 2, Kind: record.Mark, Done: true, Label: "told"},
		{ID: 3, Kind: record.Grow, Off: 5000, Len: 6000},
		{ID: 3, Kind: record.Grow, Off: 5000, Len: 6000, Size: 6000, Done: true},
		{ID: 4, Kind: record.Sync},
		{ID: 4, Kind: record.Sync, Done: true},
	}, log)
}
