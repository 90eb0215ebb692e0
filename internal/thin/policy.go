package thin

import "time"

// Sizes of the default policy in bytes.
const (
	DefaultChunk   = 128 << 20
	DefaultFloor   = 128 << 20
	DefaultCeiling = 320 << 20
)

// cushion is how much longer than the last ones an extension may take before its
// writer notices: a sync of the group's metadata now and then waits for what else
// the disks have to do.
const cushion = 300 * time.Millisecond

// A Policy says how much headroom a thin volume has. Headroom is the granted
// size minus the end of what the writer has reserved. With the defaults it is
// between 128 and 256 MiB once an extension has been answered, and for a writer
// of 1 GiB/s at most 448 MiB, so that the granted size is within 512 MiB of what was
// written, with the less than 64 MiB that an engine reserves ahead.
type Policy struct {
	// Chunk is what granted sizes are a multiple of; a size that is limited by
	// the bound or by the end of the pool need not be. Default: 128 MiB.
	Chunk int64
	// Floor and Ceiling limit the low-water mark. Below it the next chunks are
	// asked for. Defaults: 128 MiB, 320 MiB.
	Floor, Ceiling int64
}

// A State is what a decision depends on.
type State struct {
	Size  int64 // granted and adopted, bytes
	End   int64 // the largest need seen, including those that wait
	Want  int64 // how far the writer would like to go; 0: no further than End
	Bound int64 // the size that the volume never exceeds; 0: none
	// Rate is how fast End moves, bytes per second; Latency is how long an
	// extension takes.
	Rate    float64
	Latency time.Duration
	// Short says that the pool granted less than it was asked for a moment
	// ago. The volume then lives with what it has, and asks for no headroom.
	Short bool
}

// A Decision says whether to ask the pool now, whether the writer has overtaken
// the volume and has to wait for the answer, and what size to ask for.
type Decision struct {
	Ask, Wait bool
	Target    int64
}

// Decide chooses. An End beyond the bound is not its subject: such a Grow fails
// before it is counted.
func (p Policy) Decide(s State) Decision {
	p = p.withDefaults()
	wait := s.End > s.Size
	if s.Short {
		return Decision{Ask: wait, Wait: wait, Target: max(s.End, s.Size)}
	}
	target := p.target(s)
	thirsty := wait || s.Size-s.End < p.Low(s.Rate, s.Latency)
	return Decision{Ask: thirsty && target > s.Size, Wait: wait, Target: max(target, s.Size)}
}

// Low is the headroom in bytes below which more is asked for: what the writer
// uses in the time of two extensions and a cushion, between the floor and the
// ceiling.
func (p Policy) Low(rate float64, latency time.Duration) int64 {
	p = p.withDefaults()
	used := rate * (2*latency.Seconds() + cushion.Seconds())
	if used >= float64(p.Ceiling) {
		return max(p.Ceiling, p.Floor)
	}
	return max(int64(used), p.Floor)
}

// target is the size that restores the headroom. What the writer wants beyond
// its end counts as headroom, so it is limited like it.
func (p Policy) target(s State) int64 {
	goal := s.End + p.Low(s.Rate, s.Latency)
	goal = max(goal, min(s.Want, s.End+p.Ceiling))
	size := roundUp(goal, p.Chunk)
	if s.Bound > 0 {
		size = min(size, s.Bound)
	}
	return size
}

func (p Policy) withDefaults() Policy {
	if p.Chunk <= 0 {
		p.Chunk = DefaultChunk
	}
	if p.Floor <= 0 {
		p.Floor = DefaultFloor
	}
	if p.Ceiling <= 0 {
		p.Ceiling = max(DefaultCeiling, p.Floor)
	}
	return p
}

// roundUp returns the smallest multiple of unit that is at least n. Sizes near
// the end of int64 stay what they are.
func roundUp(n, unit int64) int64 {
	if over := n % unit; over != 0 && n <= maxInt64-unit {
		return n + unit - over
	}
	return n
}

const maxInt64 = 1<<63 - 1
