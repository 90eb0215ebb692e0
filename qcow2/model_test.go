package qcow2_test

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// modelVar is the environment variable that holds the name of a file with a case to
// run instead of random ones.
const modelVar = "TIDEMARK_MODEL"

// aliveVar is the environment variable that, set, lets no process die in TestModel:
// then it is one of the tests that a mutant passes (package mutant).
const aliveVar = "TIDEMARK_MODEL_ALIVE"

// modelSize is small, so that clients meet.
const modelSize = 160<<10 + 3*sector

// TestModel: random requests by several clients at once leave what an array of bytes
// would hold: in memory, after the image was closed and opened again, after the death
// of the process, after the disk has become larger, and in the eyes of QEMU. A case
// that fails is reduced and printed; TIDEMARK_MODEL names a file with one to run.
func TestModel(t *testing.T) {
	all := subjectsOf(modelSize)
	if path := os.Getenv(modelVar); path != "" {
		replayModel(t, path, all)
		return
	}
	seed, _ := testenv.Seed(t)
	const sequences = 504
	operations := 0
	for i := range scaled(sequences) {
		s := all[i%len(all)]
		m := s.make(t)
		rng := testenv.Rand(seed + uint64(i))
		c := newModelCase(rng, s)
		if os.Getenv(aliveVar) != "" {
			c.alive()
		}
		require.GreaterOrEqual(t, c.least(), 200, "operations of a sequence")
		operations += c.least()
		if err := c.runIn(t, m); err != nil {
			t.Fatalf("seed %d, sequence %d: %v\nreduced; to run it again put it in a file and name that in %s:\n%s",
				seed, i, err, modelVar, reduce(c, func(c modelCase) bool { return c.runIn(t, s.make(t)) != nil }))
		}
		if i%40 == 0 {
			m.judge(t, m.disk)
		}
	}
	t.Logf("at least %d operations done", operations)
}

// alive lets the case close the image where its process would die.
func (c *modelCase) alive() {
	for i, o := range c.ops {
		if o.verb == "kill" {
			c.ops[i] = modelOp{verb: "reopen"}
		}
	}
}

// runIn runs the case in a directory that it removes. m has the disk and the content
// in the end.
func (c modelCase) runIn(t *testing.T, m *made) error {
	dir, err := os.MkdirTemp(t.TempDir(), "")
	require.NoError(t, err)
	defer os.RemoveAll(dir) //nolint:errcheck // it is in the test's
	return c.run(t, m, dir)
}

func replayModel(t *testing.T, path string, all []subject) {
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	c, err := parseModelCase(string(text))
	require.NoError(t, err)
	i := slices.IndexFunc(all, func(s subject) bool { return s.name == c.subject })
	require.GreaterOrEqual(t, i, 0, "subject %q", c.subject)
	for range 100 { // what happens at once does not happen every time
		require.NoError(t, c.runIn(t, all[i].make(t)))
	}
}

// reduceTime bounds how long a case is reduced.
const reduceTime = 30 * time.Second

// reduce makes a case smaller as long as it fails: without some of its phases, then
// without some of its clients, then without some of its operations.
func reduce(c modelCase, fails func(modelCase) bool) modelCase {
	deadline := time.Now().Add(reduceTime)
	try := func(smaller []modelOp) bool {
		s := c
		s.ops = smaller
		for range 6 { // what happens at once does not happen every time
			if len(smaller) == len(c.ops) || time.Now().After(deadline) {
				return false
			}
			if fails(s) {
				c = s
				return true
			}
		}
		return false
	}
	for again := true; again; {
		again = false
		for _, p := range slices.Backward(phasesOf(c.ops)) {
			again = try(slices.Delete(slices.Clone(c.ops), p[0], p[1])) || again
		}
		for client := range 8 {
			again = try(slices.DeleteFunc(slices.Clone(c.ops), func(o modelOp) bool { return o.client == client && !o.endsPhase() })) || again
		}
		for n := len(c.ops) / 2; n > 0; n /= 2 {
			for from := 0; from < len(c.ops); from += n {
				again = try(withoutSome(c.ops, from, n)) || again
			}
		}
	}
	return c
}

// phasesOf is where phases begin and end.
func phasesOf(ops []modelOp) (phases [][2]int) {
	from := 0
	for i, o := range ops {
		if o.endsPhase() || i == len(ops)-1 {
			phases = append(phases, [2]int{from, i + 1})
			from = i + 1
		}
	}
	return phases
}

// withoutSome leaves out n operations from one on. The ends of phases stay: clients
// of two phases may touch the same bytes.
func withoutSome(ops []modelOp, from, n int) []modelOp {
	var left []modelOp
	for i, o := range ops {
		if i < from || i >= from+n || o.endsPhase() {
			left = append(left, o)
		}
	}
	return left
}

func readRing(dir string) map[string][]byte {
	files := map[string][]byte{}
	entries, _ := os.ReadDir(dir) // there is none without a ring
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(dir, e.Name())); err == nil { // or it was just removed
			files[e.Name()] = b
		}
	}
	return files
}

func sameFiles(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

func copyDir(t *testing.T, dir string) string {
	to, err := os.MkdirTemp(t.TempDir(), "")
	require.NoError(t, err)
	for name, b := range readRing(dir) {
		require.NoError(t, os.WriteFile(filepath.Join(to, name), b, 0o600))
	}
	return to
}

// TestReduce: what a case needs to fail stays, and little else.
func TestReduce(t *testing.T) {
	_, rng := testenv.Seed(t)
	c := newModelCase(rng, subjectsOf(modelSize)[0])
	again, err := parseModelCase(c.String())
	require.NoError(t, err)
	require.Equal(t, c, again)
	needs := func(c modelCase) bool {
		zero := slices.IndexFunc(c.ops, func(o modelOp) bool { return o.verb == "zero" })
		return zero >= 0 && slices.ContainsFunc(c.ops[zero:], func(o modelOp) bool { return o.verb == "read" })
	}
	require.True(t, needs(c))
	r := reduce(c, needs)
	require.True(t, needs(r))
	require.LessOrEqual(t, len(r.ops), 4, "%s", r)
}
