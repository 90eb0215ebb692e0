package crashtest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/mutant"
	"tidemark/internal/testenv"
)

var update = flag.Bool("update", false, "write the table of mutants into docs/reliability.md")

// mutantsVar says which mutants are judged: "all", "lab" for all but only by the lab,
// or names. Without it a few are, and only by the lab.
const mutantsVar = "TIDEMARK_MUTANTS"

// What a mutant may take: a plain test that hangs, or a lab that finds nothing.
const (
	plainLimit = 4 * time.Minute
	labLimit   = 90 * time.Second
)

// A verdict is what became of a mutant.
type verdict struct {
	mutant.Mutant
	plain string // what the tests without power cuts say: "pass", or what went wrong
	lab   string // what the lab says: "rule 2", or why it did not find it
	after string // after how many states, in what time
}

func (v verdict) killed() bool { return strings.HasPrefix(v.lab, "rule ") }

// TestMutants lets the lab judge engines with a mistake each. Every one must be
// killed by a rule of the oracle, not by a panic or a hang.
func TestMutants(t *testing.T) {
	if mutant.Enabled {
		t.Skip("this is the binary with the mutants; the one without runs it")
	}
	seed, rng := testenv.Seed(t)
	chosen := chooseMutants(t, rng)
	dir := t.TempDir()
	lab := buildTests(t, dir, "lab.test", ".")
	var plain string
	if which := os.Getenv(mutantsVar); which != "" && which != "lab" {
		plain = buildTests(t, dir, "plain.test", "..")
	}
	found, after := runLab(t, lab, mutant.Mutant{}, seed)
	require.Equal(t, "never reached", found, "the engine without a mistake: %s", after)
	var list []verdict
	for _, m := range chosen {
		v := verdict{Mutant: m, plain: "not run"}
		if plain != "" {
			v.plain = runPlain(t, plain, m)
			if v.plain != "pass" {
				t.Errorf("%s does not even pass the tests that cut no power: %s", m.Name, v.plain)
				v.plain = "found"
			}
		}
		v.lab, v.after = runLab(t, lab, m, seed)
		t.Logf("%-32s %-8s %-10s %s", m.Name, v.plain, v.lab, v.after)
		if !v.killed() {
			t.Errorf("%s survived: %s (it %s; that breaks %s)", m.Name, v.lab, m.Breaks, m.Rule)
		}
		list = append(list, v)
	}
	if *update && len(list) == len(mutant.Table()) {
		writeReport(t, list)
	}
}

// chooseMutants are those that the environment says, or a few.
func chooseMutants(t *testing.T, rng *rand.Rand) []mutant.Mutant {
	all := mutant.Table()
	switch want := os.Getenv(mutantsVar); want {
	case "":
		testenv.Need(t, "long")
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		return all[:min(3, len(all))]
	case "all", "lab":
		return all
	default:
		var list []mutant.Mutant
		for name := range strings.SplitSeq(want, ",") {
			m, ok := mutant.Find(name)
			require.True(t, ok, "%s: %q is not listed", mutantsVar, name)
			list = append(list, m)
		}
		return list
	}
}

// buildTests builds the tests of a package with the mutants in them.
func buildTests(t *testing.T, dir, name, pkg string) string {
	path := filepath.Join(dir, name)
	testenv.TryFor(t, 10*time.Minute, testenv.Tool(t, "go"), "test", "-c", "-tags", "mutants", "-o", path, pkg)
	_, err := os.Stat(path)
	require.NoError(t, err)
	return path
}

// cutting is what a test says that cuts the power, or makes the storage fail.
var cutting = regexp.MustCompile(`\.Crash\(|FailSync|faultfile\.|\.Evict\(|newCrasher|testenv\.Command|exec\.Command`)

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

func runPlain(t *testing.T, binary string, m mutant.Mutant) string {
	out, err := runMutant(t, plainLimit, binary, "..", m, nil, "-test.short", "-test.run", plainTests(t))
	switch {
	case err == nil:
		return "pass"
	case errors.Is(err, context.DeadlineExceeded):
		return "hangs"
	}
	return "fail: " + lastLines(out, 12)
}

var killedLine = regexp.MustCompile(`MUTANT KILLED by rule (\d) (.*)`)

// runLab returns which rule killed a mutant, or what the lab did instead.
func runLab(t *testing.T, binary string, m mutant.Mutant, seed uint64) (lab, after string) {
	env := []string{fmt.Sprint(testenv.SeedVar, "=", seed), labVar + "=" + labLimit.String()}
	out, err := runMutant(t, labLimit+time.Minute, binary, ".", m, env, "-test.run", "^TestMutantLab$", "-test.v")
	if k := killedLine.FindStringSubmatch(out); k != nil {
		return "rule " + k[1], k[2]
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "hung", ""
	case strings.Contains(out, "panic:") || strings.Contains(out, "fatal error:"):
		return "panicked: " + lastLines(out, 30), ""
	case strings.Contains(out, "MUTANT NEVER REACHED"):
		return "never reached", ""
	case err == nil:
		return "not found", ""
	}
	return "failed: " + lastLines(out, 12), ""
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

const (
	tableBegin = "<!-- mutants: written by make mutants -->"
	tableEnd   = "<!-- end of mutants -->"
)

// writeReport writes the table of mutants into docs/reliability.md.
func writeReport(t *testing.T, list []verdict) {
	path := filepath.Join("..", "..", "docs", "reliability.md")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	before, rest, ok := strings.Cut(string(text), tableBegin)
	require.True(t, ok, "%s: expected a line %q", path, tableBegin)
	_, behind, ok := strings.Cut(rest, tableEnd)
	require.True(t, ok, "%s: expected a line %q", path, tableEnd)
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n\n| mutant | what it does instead | breaks | killed by |\n|---|---|---|---|\n", before, tableBegin)
	for _, v := range list {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", v.Name, v.Breaks, v.Rule, v.lab)
	}
	rules := map[string]int{}
	for _, v := range list {
		rules[v.lab]++
	}
	var parts []string
	for _, r := range slices.Sorted(func(yield func(string) bool) {
		for r := range rules {
			if !yield(r) {
				return
			}
		}
	}) {
		parts = append(parts, fmt.Sprintf("%d by %s", rules[r], r))
	}
	fmt.Fprintf(&b, "\n%d mutants: %s.\n\n%s%s", len(list), strings.Join(parts, ", "), tableEnd, behind)
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
}
