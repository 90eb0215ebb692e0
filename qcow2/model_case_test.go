package qcow2_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// A modelCase is a sequence of requests by several clients at once: what TestModel
// makes from a seed, runs, reduces when it fails, and reads back as a replay. Its
// text is a line for the case and one for each operation:
//
//	subject "snapshots" ring true reserve 4096 commit 1 later false
//	3 write 70000+512 9
//	0 kill 40+0 0
//
// An operation is its client, what it does, where, and a number from which its data
// are made. Clients of one phase touch no byte of each other; they share clusters,
// sub-clusters and sectors. Phases end with a reopen or a kill.
type modelCase struct {
	subject string
	ring    bool
	reserve int64
	commit  int  // commits by itself every so many milliseconds, 0: never
	later   bool // the file begins writes, and they are begun
	ops     []modelOp
}

type modelOp struct {
	client int
	verb   string
	off, n int64
	data   uint64
}

// verbs and how often they are chosen among a hundred.
var verbs = []struct {
	name  string
	often int
}{
	{"write", 30}, {"now", 14}, {"fua", 4}, {"zero", 7}, {"zerofua", 1}, {"unmap", 8}, {"discard", 10},
	{"read", 14}, {"extents", 3}, {"flush", 5}, {"evict", 4},
}

// Operations that end a phase: reopen closes the image; of kill, off is how many
// operations of the phase have ended when the process dies.
func (o modelOp) endsPhase() bool { return o.verb == "reopen" || o.verb == "kill" }

func (o modelOp) String() string {
	return fmt.Sprintf("%d %s %d+%d %d", o.client, o.verb, o.off, o.n, o.data)
}

func (c modelCase) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "subject %q ring %v reserve %d commit %d later %v\n", c.subject, c.ring, c.reserve, c.commit, c.later)
	for _, o := range c.ops {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

func parseModelCase(text string) (c modelCase, err error) {
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "":
			continue
		case strings.HasPrefix(line, "subject"):
			_, err = fmt.Sscanf(line, "subject %q ring %t reserve %d commit %d later %t", &c.subject, &c.ring, &c.reserve, &c.commit, &c.later)
		default:
			var o modelOp
			_, err = fmt.Sscanf(line, "%d %s %d+%d %d", &o.client, &o.verb, &o.off, &o.n, &o.data)
			c.ops = append(c.ops, o)
		}
		if err != nil {
			return c, fmt.Errorf("line %d, %q: %w", n, line, err)
		}
	}
	return c, lines.Err()
}

// least is how many operations are done for certain: of a phase in which the process
// dies, as many as it waits for.
func (c modelCase) least() (n int) {
	for _, p := range phasesOf(c.ops) {
		done, end := p[1]-p[0], c.ops[p[1]-1]
		if end.endsPhase() {
			done--
		}
		if end.verb == "kill" && end.off > 0 {
			done = min(done, int(end.off))
		}
		n += done
	}
	return n
}

// newModelCase makes a case of one to eight clients and at least 200 operations that
// are done.
func newModelCase(rng *rand.Rand, s subject) modelCase {
	c := modelCase{subject: s.name, ring: rng.IntN(2) == 0, reserve: 4096 << rng.IntN(5), commit: []int{0, 1, 5000}[rng.IntN(3)], later: rng.IntN(3) == 0}
	clients, size := 1+rng.IntN(8), s.size
	for c.least() < 200 {
		from := len(c.ops)
		stripes := cutStripes(rng, size, clients)
		for range 40 + rng.IntN(60) {
			client := rng.IntN(clients)
			if len(stripes[client]) > 0 {
				c.ops = append(c.ops, newModelOp(rng, client, stripes[client]))
			}
		}
		if grown := sector * rng.Int64N(64); !s.fixed() && rng.IntN(2) == 0 {
			at := from + rng.IntN(len(c.ops)-from+1)
			c.ops = slices.Insert(c.ops, at, modelOp{client: rng.IntN(clients), verb: "grow", off: size, n: grown})
			size += grown
		}
		end := modelOp{verb: "reopen"}
		if rng.IntN(3) > 0 {
			end = modelOp{verb: "kill", off: rng.Int64N(int64(len(c.ops) - from + 1))}
		}
		c.ops = append(c.ops, end)
	}
	return c
}

// cutStripes deals the disk out to clients, in pieces of any length, so that every
// cluster has several owners.
func cutStripes(rng *rand.Rand, size int64, clients int) [][][2]int64 {
	stripes := make([][][2]int64, clients)
	most := int64(200) << rng.IntN(9)
	for at := int64(0); at < size; {
		n := min(1+rng.Int64N(most), size-at)
		if rng.IntN(3) == 0 {
			n = min((n+sector)&^(sector-1), size-at)
		}
		c := rng.IntN(clients)
		stripes[c] = append(stripes[c], [2]int64{at, n})
		at += n
	}
	return stripes
}

func newModelOp(rng *rand.Rand, client int, stripes [][2]int64) modelOp {
	o := modelOp{client: client, data: rng.Uint64() >> 40}
	roll := rng.IntN(100)
	for _, v := range verbs {
		if o.verb = v.name; roll < v.often {
			break
		}
		roll -= v.often
	}
	s := stripes[rng.IntN(len(stripes))]
	o.off, o.n = s[0], s[1]
	if rng.IntN(3) > 0 { // a part of it
		in := rng.Int64N(s[1])
		o.off, o.n = s[0]+in, 1+rng.Int64N(s[1]-in)
	}
	if o.verb == "now" { // whole pages
		const page = 4096
		first, end := (o.off+page-1)&^(page-1), (o.off+o.n)&^(page-1)
		if o.verb = "write"; first < end {
			o.verb, o.off, o.n = "now", first, end-first
		}
	}
	return o
}
