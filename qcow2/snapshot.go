package qcow2

import (
	"fmt"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// snapshotWindow is how much of the snapshot table is read at a time; it must
// hold the longest entry.
const snapshotWindow = 2 * format.MaxSnapshotBytes

// ReadSnapshots reads the snapshot table of the image in f, and returns its size
// in bytes too. What the entries refer to is not looked at. Memory is bounded by
// the limits of the table.
func ReadSnapshots(f block.File, h *format.Header) ([]format.Snapshot, int64, error) {
	var list []format.Snapshot
	var window []byte // from at
	at := h.SnapshotsOffset
	for i := range h.Snapshots {
		if len(window) < format.MaxSnapshotBytes {
			window = make([]byte, max(min(snapshotWindow, f.Size()-at), 0))
			if _, err := readFull(f, window, at); err != nil {
				return nil, 0, fmt.Errorf("read snapshot table: %w", err)
			}
		}
		s, n, err := format.DecodeSnapshot(window, at)
		if err != nil {
			return nil, 0, fmt.Errorf("snapshot %d of %d: %w", i+1, h.Snapshots, err)
		}
		list = append(list, s)
		at += int64(n)
		window = window[min(n, len(window)):] // the last entry's padding may be missing
		if at-h.SnapshotsOffset > format.MaxSnapshotTableBytes {
			return nil, 0, &format.CorruptError{
				What: "snapshot table", Off: h.SnapshotsOffset,
				Want: fmt.Sprintf("at most %d bytes", format.MaxSnapshotTableBytes),
				Got:  fmt.Sprintf("more, after %d of %d entries", i+1, h.Snapshots),
			}
		}
	}
	return list, at - h.SnapshotsOffset, nil
}
