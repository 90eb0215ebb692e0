package crashtest

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/testenv"
)

// What is judged in an ordinary run, and what goes through qemu-img.
const (
	wantStates   = 125_000
	wantExternal = 3000
	// externalEvery is less than wantStates/wantExternal: the last ones of a script
	// are too few for one more.
	externalEvery = 30
)

// quick is the lab of an ordinary run.
func quick(seed uint64) crashlab.Config {
	return crashlab.Config{
		Limits: crashlab.Limits{All: 12, Random: 40},
		Onward: 6, Again: 40, External: externalEvery, Death: true, PerScript: 800, Seed: seed,
	}
}

// stateDir is where states are exported to: memory, where there is some.
func stateDir(t testing.TB) string {
	if dir, err := os.MkdirTemp("/dev/shm", "crashtest"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

// eachSubject runs f for every row on every storage, with qemu-img as the other
// judge if it is there; only for the one of a name, if that is not "".
func eachSubject(t *testing.T, name string, f func(t *testing.T, s subject)) {
	img, noQEMU := exec.LookPath("qemu-img")
	for _, r := range rows() {
		for _, storage := range slices.Sorted(maps.Keys(storages)) {
			if name != "" && name != r.name+" on a "+storage {
				continue
			}
			t.Run(r.name+" on a "+storage, func(t *testing.T) {
				s := r.prepare(t, storage)
				if noQEMU == nil {
					s.setup.Engine.External = qemuCheck(img)
				}
				f(t, s)
			})
		}
	}
}

// TestCrash cuts the power everywhere: for every kind of image, every single
// request everywhere, some sequences of two, and random ones, of one client and
// of several at once.
func TestCrash(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	seed, rng := testenv.Seed(t)
	total := int64(wantStates)
	if testing.Short() {
		total /= 50
	}
	lab := crashlab.New(quick(seed), stateDir(t))
	subjects, seen := int64(len(rows())*len(storages)), newKinds()
	eachSubject(t, "", func(t *testing.T, s subject) {
		before := lab.Totals()
		seen.add(t, s)
		s.judge(t, lab, rng, total/subjects)
		now := lab.Totals()
		judged := now.Judged - before.Judged
		t.Logf("%d states, %.2f ms each", judged, 1e3*(now.Took-before.Took).Seconds()/float64(judged))
	})
	n := lab.Totals()
	t.Logf("%v", n)
	judgeCoverage(t, lab)
	if _, err := exec.LookPath("qemu-img"); err == nil { // it makes the images of many
		seen.judge(t)
	}
	if !testing.Short() && !t.Failed() {
		require.GreaterOrEqual(t, n.Distinct, int64(100_000))
		require.GreaterOrEqual(t, n.Several*2, n.Distinct)
		if _, err := exec.LookPath("qemu-img"); err == nil {
			require.GreaterOrEqual(t, n.External, int64(wantExternal))
		} else {
			t.Log("missing: qemu-img, as the other judge; on Debian: apt-get install qemu-utils")
		}
	}
}

// judge judges about most states of a subject.
func (s subject) judge(t *testing.T, lab *crashlab.Lab, rng *rand.Rand, most int64) {
	most += lab.Totals().Judged
	enough := func() bool { return t.Failed() || lab.Totals().Judged >= most }
	for _, text := range s.only {
		script, err := crashlab.Parse(text)
		require.NoError(t, err)
		s.try(t, lab, script)
	}
	if s.only != nil {
		return
	}
	singles, single := s.shape.Sequences(1)
	for _, i := range rng.Perm(singles) {
		if !enough() {
			s.try(t, lab, single(i))
		}
	}
	pairs, pair := s.shape.Sequences(2)
	for n := 0; !enough(); n++ {
		switch n % 3 {
		case 0:
			s.try(t, lab, pair(rng.IntN(pairs)))
		case 1:
			s.try(t, lab, s.shape.Random(rng, 4+rng.IntN(14), 1))
		case 2:
			s.several(t, lab, rng)
		}
	}
}

// several is a script of clients whose requests overlap.
func (s subject) several(t *testing.T, lab *crashlab.Lab, rng *rand.Rand) {
	s.setup.Jitter = rand.New(rand.NewPCG(rng.Uint64(), 0))
	s.try(t, lab, s.shape.Random(rng, 4+rng.IntN(10), 2+rng.IntN(3)))
}

// try runs a script and judges it. A failure is reduced and told with the way to
// run it again.
func (s subject) try(t *testing.T, lab *crashlab.Lab, script []crashlab.Request) {
	f := lab.Try(t.Context(), s.setup, script)
	if f == nil {
		return
	}
	t.Logf("before it was reduced: %v", f)
	f = crashlab.Reduce(t.Context(), s.setup, crashlab.Config{Limits: crashlab.Limits{All: 10, Random: 40}, Onward: 4, Again: 20, Death: true}, stateDir(t), f, 80)
	t.Errorf("%v\nagain with\n\tTIDEMARK_ROW=%q TIDEMARK_SCRIPT=%q go test -run TestReplay ./qcow2/crashtest", f, s.setup.Name, crashlab.Format(f.Script))
}

// TestReplay judges one script on one kind of image, both from the environment.
func TestReplay(t *testing.T) {
	name, text := os.Getenv("TIDEMARK_ROW"), os.Getenv("TIDEMARK_SCRIPT")
	if text == "" {
		t.Skip("it needs TIDEMARK_ROW and TIDEMARK_SCRIPT, as a failure prints them")
	}
	script, err := crashlab.Parse(text)
	require.NoError(t, err)
	eachSubject(t, name, func(t *testing.T, s subject) {
		for i := range uint64(5) {
			lab := crashlab.New(crashlab.Config{Limits: crashlab.Exhaustive(), Onward: 2, Again: 4, Death: true, Seed: i}, stateDir(t))
			s.setup.Jitter = rand.New(rand.NewPCG(i, 0))
			if f := lab.Try(t.Context(), s.setup, script); f != nil {
				t.Fatal(fmt.Sprint(f))
			}
			t.Logf("%v", lab.Totals())
		}
	})
}
