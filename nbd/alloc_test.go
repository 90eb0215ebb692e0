//go:build unix && !race

package nbd

import (
	"bytes"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// From the bytes of a request in the socket to those of its reply nothing is
// allocated: not for what runs inline, nor for a flush or a read in the off-load,
// nor for a write that the Device begins. What the runtime does now and then, and a pool
// that the collector has emptied, allocate more, so the least of a few times counts.
// (Under the race detector sync.Pool drops what it is given, so not there.)
func TestNoAllocationPerRequest(t *testing.T) {
	// AllocsPerRun does that too, and when the number of processors changes all pools are
	// lost: they would be filled again while it counts.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const span, each = 1 << 20, 200
	for _, kind := range []string{"socket", "polled"} {
		for _, row := range []struct {
			name  string
			h     requestHeader
			depth int
			late  bool // the Device would have to wait
			most  int  // allocations in so many requests
		}{
			{"overwrite", requestHeader{cmd: cmdWrite, length: 4096}, 1, false, 0},
			{"overwrite, several at a time", requestHeader{cmd: cmdWrite, length: 4096}, 32, false, 0},
			{"overwrite of 64 KiB", requestHeader{cmd: cmdWrite, length: 64 << 10}, 4, false, 0},
			{"overwrite with FUA", requestHeader{cmd: cmdWrite, flags: cmdFlagFUA, length: 4096}, 1, false, 0},
			{"zeroes", requestHeader{cmd: cmdWriteZeroes, length: 4096}, 8, false, 0},
			{"read", requestHeader{cmd: cmdRead, length: 4096}, 1, false, 0},
			{"read, several at a time", requestHeader{cmd: cmdRead, length: 4096}, 32, false, 0},
			{"read that would block", requestHeader{cmd: cmdRead, length: 4096}, 8, true, 0},
			{"large read", requestHeader{cmd: cmdRead, length: 256 << 10}, 2, false, 0},
			// One that nothing else is in progress beside is not begun but off-loaded, which
			// takes four allocations: that comes to pass now and then.
			{"overwrite that would block, several at a time", requestHeader{cmd: cmdWrite, length: 4096}, 32, true, 8},
			{"flush", requestHeader{cmd: cmdFlush}, 1, false, 0},
			{"flush, several at a time", requestHeader{cmd: cmdFlush}, 8, false, 0},
		} {
			t.Run(kind+"/"+row.name, func(t *testing.T) {
				d := newBenchDevice(t, "memory", span).(*benchMemory)
				d.late = row.late
				ts := serveOver(t, kind, NewServer(Options{}), Export{Device: d})
				l := newLoad(t, ts.address, row.h, span, row.depth)
				require.NoError(t, l.run(10*each))
				least := float64(each)
				for i := 0; i < 5 && least > float64(row.most); i++ {
					least = min(least, testing.AllocsPerRun(10, func() {
						if err := l.run(each); err != nil {
							t.Error(err)
						}
					}))
				}
				require.LessOrEqual(t, least, float64(row.most), "allocations in %d requests", each)
			})
		}
	}
}

// A request that was given to the Device as a Hold is not used again: the Device
// may be late with its End. All others are.
func TestRequestsAreUsedAgain(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	srv := NewServer(Options{})
	s := newSession(srv, nil, nil, srv.opts.Logger, terms{})
	for c := range commandRules {
		require.True(t, s.budget.tryAcquire(0))
		rq := srv.takeRequest()
		rq.s, rq.header.cmd = s, command(c)
		if mayWait(command(c)) {
			rq.space = newSpaceContext(s.ctx, time.Now(), 0)
		}
		s.release(rq)
		again, _ := srv.requests.Get().(*request)
		require.Equal(t, !mayWait(command(c)), again == rq, "command %d", c)
	}
}

// What a connection keeps while it waits does not depend on what it has done.
func TestIdleMemory(t *testing.T) {
	const n, limit = 1000, 40 << 10 // bytes for each, with the client's socket
	d := newMemDevice(1 << 20)
	ts := serve(t, Options{MaxConnections: n}, Export{Device: d})
	write := requestHeader{cmd: cmdWrite, length: inlineBytesMax}
	writes := bytes.Repeat(append(write.append(nil), make([]byte, inlineBytesMax)...), 4) // batchBytes and more
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC() // what the pools had
	runtime.ReadMemStats(&before)
	var rs []*raw
	for range n {
		r := ts.transmission(t, false)
		r.send(writes)
		for range 4 {
			r.expect(write, 0)
		}
		r.ask(requestHeader{cmd: cmdRead, length: 4096}, nil, 0)
		rs = append(rs, r)
	}
	goroutines := runtime.NumGoroutine()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	per := (int64(after.HeapAlloc+after.StackInuse) - int64(before.HeapAlloc+before.StackInuse)) / n
	t.Logf("%d bytes for each idle connection", per)
	require.Less(t, per, int64(limit))
	require.Less(t, goroutines, n+100, "one for each")
	for _, r := range rs {
		r.ask(requestHeader{cmd: cmdFlush}, nil, 0)
	}
}
