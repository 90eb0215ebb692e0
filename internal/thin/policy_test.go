package thin

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const mib = 1 << 20

func TestPolicyDecide(t *testing.T) {
	tests := []struct {
		name string
		s    State
		want Decision
	}{
		{"nothing known, nothing used: the floor is restored",
			State{Size: 0}, Decision{Ask: true, Target: 128 * mib}},
		{"one chunk, a header used: the next chunk",
			State{Size: 128 * mib, End: 1}, Decision{Ask: true, Target: 256 * mib}},
		{"exactly the floor left: content",
			State{Size: 256 * mib, End: 128 * mib}, Decision{Target: 256 * mib}},
		{"one byte less than the floor left",
			State{Size: 256 * mib, End: 128*mib + 1}, Decision{Ask: true, Target: 384 * mib}},
		{"overtaken: wait, and restore the headroom at once",
			State{Size: 128 * mib, End: 130 * mib}, Decision{Ask: true, Wait: true, Target: 384 * mib}},
		{"a need that equals the size does not wait",
			State{Size: 128 * mib, End: 128 * mib}, Decision{Ask: true, Target: 256 * mib}},
		{"fast writer, slow pool: twice what is used meanwhile, and the cushion",
			State{Size: 1024 * mib, End: 850 * mib, Rate: 400 * mib, Latency: 100 * time.Millisecond}, // low 200
			Decision{Ask: true, Target: 1152 * mib}},
		{"fast writer, fast pool: the cushion",
			State{Size: 1024 * mib, End: 800 * mib, Rate: 1000 * mib}, // low 300
			Decision{Ask: true, Target: 1152 * mib}},
		{"a writer that needs less than the floor: the floor",
			State{Size: 1024 * mib, End: 850 * mib, Rate: 200 * mib, Latency: 100 * time.Millisecond}, // used 100
			Decision{Target: 1024 * mib}},
		{"very slow pool: the ceiling",
			State{Size: 1024 * mib, End: 800 * mib, Rate: 1024 * mib, Latency: time.Hour},
			Decision{Ask: true, Target: 1152 * mib}}, // 800+320 rounded up
		{"the bound limits the target and need not be a chunk",
			State{Size: 256 * mib, End: 200 * mib, Bound: 300*mib + 7}, Decision{Ask: true, Target: 300*mib + 7}},
		{"at the bound there is nothing to ask for",
			State{Size: 300 * mib, End: 300 * mib, Bound: 300 * mib}, Decision{Target: 300 * mib}},
		{"short: no headroom is asked for",
			State{Size: 256 * mib, End: 255 * mib, Short: true}, Decision{Target: 256 * mib}},
		{"short and overtaken: the need and no more",
			State{Size: 256 * mib, End: 257 * mib, Short: true}, Decision{Ask: true, Wait: true, Target: 257 * mib}},
		{"what the writer wants counts as headroom",
			State{Size: 128 * mib, End: 129 * mib, Want: 300 * mib}, Decision{Ask: true, Wait: true, Target: 384 * mib}},
		{"and is limited like it",
			State{Size: 128 * mib, End: 129 * mib, Want: 1 << 40}, Decision{Ask: true, Wait: true, Target: 512 * mib}},
		{"near the end of the numbers nothing overflows",
			State{Size: 128 * mib, End: 1<<62 + 1, Bound: 1<<62 + 2}, Decision{Ask: true, Wait: true, Target: 1<<62 + 2}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, Policy{}.Decide(tt.s))
		})
	}
}

// The promise of the walking skeleton: whatever the rate and latency, the
// granted size is within 512 MiB of the end, and always covers it.
func TestPolicyHeadroomLimits(t *testing.T) {
	for _, rate := range []float64{0, 1e6, 1e9, 1e12} {
		for _, latency := range []time.Duration{0, time.Millisecond, 300 * time.Millisecond, time.Minute} {
			for _, want := range []int64{0, 64 * mib, 1 << 40} {
				size := int64(128 * mib)
				for end := int64(0); end < 4<<30; end += 37*mib + 4096 {
					d := Policy{}.Decide(State{Size: size, End: end, Want: end + want, Rate: rate, Latency: latency})
					if d.Ask {
						size = d.Target
						require.Zero(t, size%DefaultChunk)
					}
					where := fmt.Sprintf("end %d, rate %g, latency %v, want %d", end, rate, latency, want)
					require.GreaterOrEqual(t, size-end, int64(DefaultFloor), where)
					require.LessOrEqual(t, size-end, int64(512*mib), where)
				}
			}
		}
	}
}

func TestPolicyOfItsOwn(t *testing.T) {
	p := Policy{Chunk: 10, Floor: 20, Ceiling: 40}
	require.Equal(t, Decision{Ask: true, Target: 60}, p.Decide(State{Size: 50, End: 35}))
	require.Equal(t, int64(40), p.Low(1000, time.Second))
	require.Equal(t, int64(34), p.Low(15, time.Second))
}

func TestRateMeter(t *testing.T) {
	var m rateMeter
	now := time.Unix(1000, 0)
	require.Zero(t, m.now(now))
	m.note(now, 0)
	for range 40 { // 100 bytes per 100 ms
		now = now.Add(100 * time.Millisecond)
		m.note(now, m.end+int64(now.Sub(m.at)/time.Millisecond))
	}
	require.InDelta(t, 1000, m.now(now), 50)
	require.Zero(t, m.now(now.Add(3*time.Second)), "a writer that stopped has no rate")
}

func TestLatencyMeter(t *testing.T) {
	var m latencyMeter
	require.Zero(t, m.expected())
	for i := 1; i <= 100; i++ {
		m.note(time.Duration(i))
	}
	median, longest := m.medianMax()
	require.EqualValues(t, 100, m.last())
	require.EqualValues(t, 100, longest)
	require.EqualValues(t, 69, median) // of 37 … 100
}
