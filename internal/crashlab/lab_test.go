package crashlab

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
)

var toyShape = Shape{Size: 40, Cluster: 4, Table: 16}

func toySetup(t *testing.T, mistake string) Setup {
	o := simdisk.Options{Foreign: true, DiscardForeign: true}
	d := simdisk.New(0, o)
	require.NoError(t, toyCreate(d, toyShape.Size))
	return Setup{Engine: toy{mistake}.engine(), Options: o, Start: d.State()}
}

func toyConfig(seed uint64) Config {
	return Config{Limits: Limits{All: 6, Random: 20}, Onward: 3, Again: 5, External: 4, Death: true, Seed: seed}
}

// find runs random scripts on a toy until one fails.
func find(t *testing.T, setup Setup, scripts int) (lab *Lab, f *Failure) {
	seed, rng := testenv.Seed(t)
	lab = New(toyConfig(seed), t.TempDir())
	for i := range scripts {
		setup.Jitter = nil
		if i%2 == 1 {
			setup.Jitter = rng
		}
		if f := lab.Try(t.Context(), setup, toyShape.Random(rng, 12, 1+i%2*2)); f != nil {
			return lab, f
		}
	}
	return lab, nil
}

func TestRightEngineIsRight(t *testing.T) {
	lab, f := find(t, toySetup(t, ""), 12)
	require.Nil(t, f, "%v", f)
	n := lab.Totals()
	t.Logf("%v", n)
	require.Greater(t, n.Distinct, int64(500))
	for _, count := range []int64{n.Several, n.Again, n.Onward, n.Deaths} {
		require.Positive(t, count)
	}
}

// TestEveryMistakeIsFound: by the rule that it breaks, and with a script of a few
// requests.
func TestEveryMistakeIsFound(t *testing.T) {
	for _, mistake := range slices.Sorted(maps.Keys(toyMistakes)) {
		t.Run(mistake, func(t *testing.T) {
			setup := toySetup(t, mistake)
			if mistake == "the check says leaks for none" {
				setup.Engine.External = func(ctx context.Context, path string) (Finding, error) {
					d, err := simdisk.Import(path, simdisk.Options{})
					if err != nil {
						return Finding{}, err
					}
					return toy{}.check(ctx, d, false)
				}
			}
			_, f := find(t, setup, 100_000) // some take a hundred on the average
			require.NotNil(t, f)
			require.Contains(t, toyMistakes[mistake], f.Oracle, "%v", f)
			short := Reduce(t.Context(), setup, toyConfig(0), t.TempDir(), f, 60)
			for tries := 0; tries < 5 && len(short.Script) > 6; tries++ { // clients run as they like
				short = Reduce(t.Context(), setup, toyConfig(0), t.TempDir(), short, 60)
			}
			require.LessOrEqual(t, len(short.Script), len(f.Script))
			require.Equal(t, f.Oracle, short.Oracle)
			require.LessOrEqual(t, len(short.Script), 6, "%v", short)
			again, err := Parse(Format(short.Script))
			require.NoError(t, err)
			require.Equal(t, short.Script, again)
		})
	}
}

// TestJudgingIsRepeatable: the same script and seed find the same failure.
func TestJudgingIsRepeatable(t *testing.T) {
	script, err := Parse("write 3+2; flush; write 9+4; write 1+2")
	require.NoError(t, err)
	setup := toySetup(t, "fresh space is zeroed too late")
	var first *Failure
	for range 5 {
		rec, err := Run(t.Context(), setup, script)
		require.NoError(t, err)
		f := New(toyConfig(1), t.TempDir()).Judge(t.Context(), rec)
		require.NotNil(t, f)
		if first == nil {
			first = f
		}
		require.Equal(t, first.Error(), f.Error())
	}
}

// TestOrdinaryMistake: what is wrong without any power cut is said as such.
func TestOrdinaryMistake(t *testing.T) {
	setup := toySetup(t, "a write goes to the next sector")
	script, err := Parse("write 39+1; write 30+1")
	require.NoError(t, err)
	_, err = Run(t.Context(), setup, script)
	require.ErrorContains(t, err, "without any power cut")
	require.ErrorContains(t, err, "oracle 2")
}

// TestFailedWrite: an engine that forgets it is found.
func TestFailedWrite(t *testing.T) {
	script, err := Parse("write 0+1; failwrite 1; write 5+1; write 5+1; flush; evict; write 6+1; flush")
	require.NoError(t, err)
	for mistake, rule := range map[string]int{"": 0, "going on after a failed write": 2} {
		f := New(toyConfig(1), t.TempDir()).Try(t.Context(), toySetup(t, mistake), script)
		if rule == 0 {
			require.Nil(t, f, "%v", f)
			continue
		}
		require.NotNil(t, f)
		require.Equal(t, rule, f.Oracle, "%v", f)
	}
}
