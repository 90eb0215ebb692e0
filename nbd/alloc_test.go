//go:build unix && !race

package nbd

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// From the bytes of a request in the socket to those of its reply nothing is
// allocated: not for what runs inline, nor for a flush or a read in the off-load.
// (Under the race detector sync.Pool drops what it is given, so not there.)
func TestNoAllocationPerRequest(t *testing.T) {
	const span, each = 1 << 20, 200
	for _, kind := range []string{"socket", "polled"} {
		for _, row := range []struct {
			name  string
			h     requestHeader
			depth int
			late  bool // the Device would have to wait
		}{
			{"overwrite", requestHeader{cmd: cmdWrite, length: 4096}, 1, false},
			{"overwrite, several at a time", requestHeader{cmd: cmdWrite, length: 4096}, 32, false},
			{"overwrite of 64 KiB", requestHeader{cmd: cmdWrite, length: 64 << 10}, 4, false},
			{"overwrite with FUA", requestHeader{cmd: cmdWrite, flags: cmdFlagFUA, length: 4096}, 1, false},
			{"zeroes", requestHeader{cmd: cmdWriteZeroes, length: 4096}, 8, false},
			{"read", requestHeader{cmd: cmdRead, length: 4096}, 1, false},
			{"read, several at a time", requestHeader{cmd: cmdRead, length: 4096}, 32, false},
			{"read that would block", requestHeader{cmd: cmdRead, length: 4096}, 8, true},
			{"large read", requestHeader{cmd: cmdRead, length: 256 << 10}, 2, false},
			{"flush", requestHeader{cmd: cmdFlush}, 1, false},
			{"flush, several at a time", requestHeader{cmd: cmdFlush}, 8, false},
		} {
			t.Run(kind+"/"+row.name, func(t *testing.T) {
				d := newBenchDevice(t, "memory", span).(*benchMemory)
				d.late = row.late
				ts := serveOver(t, kind, NewServer(Options{}), Export{Device: d})
				l := newLoad(t, ts.address, row.h, span, row.depth)
				require.NoError(t, l.run(10*each))
				n := testing.AllocsPerRun(10, func() {
					if err := l.run(each); err != nil {
						t.Error(err)
					}
				})
				require.Less(t, n, float64(each)/10, "allocations in %d requests", each)
			})
		}
	}
}
