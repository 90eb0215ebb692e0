package crashtest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/mutant"
	"tidemark/internal/testenv"
)

// mutantsVar says which mutants go through the tests that cut no power too: "all",
// "lab" for none, or the names of those that are judged at all. Without it two do that
// are chosen at random.
const mutantsVar = "TIDEMARK_MUTANTS"

// What a mutant may take: a plain test that hangs, or a lab that finds nothing.
const (
	plainLimit = 4 * time.Minute
	labLimit   = time.Minute
)

// A verdict is what became of a mutant.
type verdict struct {
	mutant.Mutant
	plain string // what the tests without power cuts say: "pass", "not run", or what went wrong
	rule  int    // of the oracle, that killed it; 0: none did
	how   string // after how many states, in what time, by what; or what the lab did instead
}

// TestMutants lets the lab judge engines with a mistake each. Every one must be
// killed by a rule of the oracle, not by a panic or a hang, and by one of the
// scripts that are listed for it. An engine without a mistake must survive all of
// them.
func TestMutants(t *testing.T) {
	if mutant.Enabled {
		t.Skip("this is the binary with the mutants; the one without runs it")
	}
	testenv.Need(t, "long")
	testenv.Tool(t, "qemu-img") // makes the images of many
	seed, rng := testenv.Seed(t)
	list, plain := chooseMutants(t, rng)
	dir := t.TempDir()
	lab := buildTests(t, dir, "lab.test", ".")
	right := runLab(t, lab, mutant.Mutant{}, seed)
	require.Equal(t, survived, right.how, "the engine without a mistake: rule %d", right.rule)
	for i, m := range list {
		list[i] = runLab(t, lab, m.Mutant, seed)
		if v := list[i]; v.rule == 0 {
			t.Errorf("%s survived: %s\nit does this: %s; that breaks %s", v.Name, v.how, v.Breaks, v.Rule)
		} else if !strings.HasSuffix(v.how, listedScript) {
			// Which states are judged is chosen at random. It is dead all the same;
			// the table is written from a run in which all scripts hit.
			missed := t.Logf
			if *update {
				missed = t.Errorf
			}
			missed("%s was not killed by a script that is listed for it, but by rule %d %s: list that script too", v.Name, v.rule, v.how)
		}
	}
	if len(plain) > 0 {
		runPlainTests(t, buildTests(t, dir, "plain.test", ".."), list, plain)
	}
	for _, v := range list {
		t.Logf("%-32s %-8s rule %d %s", v.Name, v.plain, v.rule, v.how)
	}
	t.Log(countRules(list))
	if *update && !t.Failed() && len(plain) == len(mutant.Table()) {
		writeReport(t, list)
	}
}

// chooseMutants are the mutants that the environment says, and which of them, by
// their numbers, go through the tests that cut no power.
func chooseMutants(t *testing.T, rng *rand.Rand) (list []verdict, plain []int) {
	for _, m := range mutant.Table() {
		list = append(list, verdict{Mutant: m, plain: "not run"})
	}
	switch want := os.Getenv(mutantsVar); want {
	case "":
		return list, rng.Perm(len(list))[:2]
	case "all":
	case "lab":
		return list, nil
	default:
		list = nil
		for name := range strings.SplitSeq(want, ",") {
			m, ok := mutant.Find(name)
			require.True(t, ok, "%s: %q is not listed", mutantsVar, name)
			list = append(list, verdict{Mutant: m})
		}
	}
	for i := range list {
		plain = append(plain, i)
	}
	return list, plain
}

// buildTests builds the tests of a package with the mutants in them.
func buildTests(t *testing.T, dir, name, pkg string) string {
	path := filepath.Join(dir, name)
	testenv.TryFor(t, 10*time.Minute, testenv.Tool(t, "go"), "test", "-c", "-tags", "mutants", "-o", path, pkg)
	_, err := os.Stat(path)
	require.NoError(t, err)
	return path
}

// cutting is what a test says that cuts the power, makes the storage fail, or watches
// the order in which it is written to, as one who may cut the power does.
var cutting = regexp.MustCompile(`copyWatch|syncCounter|\.Crash\(|FailSync|faultfile\.|\.Evict\(|newCrasher|testenv\.Command|exec\.Command`)

// plainTests are the engine's tests that cut no power and let nothing fail.
func plainTests(t *testing.T) (run string) {
	files, err := filepath.Glob(filepath.Join("..", "*_test.go"))
	require.NoError(t, err)
	var names []string
	for _, path := range files {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		if cutting.Match(text) {
			continue
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(text, -1) {
			names = append(names, string(m[1]))
		}
	}
	require.Greater(t, len(names), 20, "the engine's plain tests")
	return "^(" + strings.Join(names, "|") + ")$"
}

// runPlainTests runs the tests that cut no power with some of the mutants, several at
// once. Every mutant must pass them, the second time if they are disturbed the first.
func runPlainTests(t *testing.T, binary string, list []verdict, which []int) {
	tests := plainTests(t)
	next := make(chan int)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for i := range next {
				v := &list[i]
				if v.plain = runPlain(t, binary, v.Mutant, tests); v.plain != "pass" {
					t.Logf("%s, once more: %s", v.Name, v.plain)
					v.plain = runPlain(t, binary, v.Mutant, tests)
				}
				if v.plain != "pass" {
					t.Errorf("%s does not pass the tests that cut no power: %s", v.Name, v.plain)
				}
			}
		})
	}
	for _, i := range which {
		next <- i
	}
	close(next)
	wg.Wait()
}

func runPlain(t *testing.T, binary string, m mutant.Mutant, tests string) string {
	out, err := runMutant(t, plainLimit, binary, "..", m, []string{"TIDEMARK_MODEL_ALIVE=1"}, "-test.short", "-test.run", tests)
	switch {
	case err == nil:
		return "pass"
	case errors.Is(err, context.DeadlineExceeded):
		return "hangs"
	}
	return "fails: " + lastLines(out, 12)
}

// What TestMutantLab says.
const (
	listedScript = "by its script"
	survived     = "survived"
)

var killedLine = regexp.MustCompile(`MUTANT KILLED by rule (\d) (.*)`)

// runLab says which rule killed a mutant, or what the lab did instead.
func runLab(t *testing.T, binary string, m mutant.Mutant, seed uint64) verdict {
	v := verdict{Mutant: m, plain: "not run"}
	env := []string{fmt.Sprint(testenv.SeedVar, "=", seed), labVar + "=" + labLimit.String()}
	out, err := runMutant(t, labLimit+time.Minute, binary, ".", m, env, "-test.run", "^TestMutantLab$", "-test.v")
	if k := killedLine.FindStringSubmatch(out); k != nil {
		v.rule, _ = strconv.Atoi(k[1]) // a digit
		v.how = k[2]
		return v
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		v.how = "the lab hangs"
	case strings.Contains(out, "panic:") || strings.Contains(out, "fatal error:"):
		v.how = "it panics: " + lastLines(out, 30)
	case err != nil:
		v.how = "the lab fails: " + lastLines(out, 12)
	case m.Name != "" && strings.Contains(out, "MUTANT NEVER REACHED"):
		v.how = "never reached"
	default:
		v.how = survived
	}
	return v
}

func runMutant(t *testing.T, limit time.Duration, binary, dir string, m mutant.Mutant, env []string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir = dir
	cmd.Env = append(append(os.Environ(), mutant.Var+"="+m.Name), env...)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return string(out), err
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
