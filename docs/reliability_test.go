package docs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/mutant"
)

// TestNamedBugs: every test that the table of named bugs names exists, in the package
// that it says.
func TestNamedBugs(t *testing.T) {
	text, err := os.ReadFile("reliability.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "## Named bugs\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	rows := 0
	for line := range strings.Lines(section) {
		if !regexp.MustCompile(`^\| [RB]\d`).MatchString(line) {
			continue
		}
		rows++
		tests := regexp.MustCompile("`([a-z0-9/]+)\\.(Test\\w+)`").FindAllStringSubmatch(line, -1)
		require.NotEmpty(t, tests, line)
		for _, m := range tests {
			require.Contains(t, testsOf(t, filepath.Join("..", m[1])), "\nfunc "+m[2]+"(t *testing.T)", line)
		}
	}
	require.Greater(t, rows, 30)
}

// TestRules: every rule of the engine has a place and a test, and they exist.
func TestRules(t *testing.T) {
	text, err := os.ReadFile("reliability.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "## Rules\n")
	require.True(t, ok)
	section, _, _ = strings.Cut(section, "\n## ")
	rules := 0
	for line := range strings.Lines(section) {
		if !regexp.MustCompile(`^\| \d`).MatchString(line) {
			continue
		}
		rules++
		require.True(t, strings.HasPrefix(line, fmt.Sprintf("| %d | ", rules)), line)
		places := regexp.MustCompile("`([a-z0-9_/]+\\.go):(\\w+)`").FindAllStringSubmatch(line, -1)
		require.NotEmpty(t, places, line)
		for _, m := range places {
			code, err := os.ReadFile(filepath.Join("..", m[1]))
			require.NoError(t, err, line)
			declared := regexp.MustCompile(`(?m)^(func (\(\w+ [^)]+\) )?|type |var |const |\t)` + m[2] + `\b`)
			require.True(t, declared.Match(code), "%s declares no %s", m[1], m[2])
		}
		tests := regexp.MustCompile("`([a-z0-9/]+)\\.(Test\\w+)`").FindAllStringSubmatch(line, -1)
		require.NotEmpty(t, tests, line)
		for _, m := range tests {
			require.Contains(t, testsOf(t, filepath.Join("..", m[1])), "\nfunc "+m[2]+"(t *testing.T)", line)
		}
	}
	require.Equal(t, 19, rules)
}

// TestMutants: the table of mutants has the mutants that there are, with what each does,
// and says of each by which rule it was killed.
func TestMutants(t *testing.T) {
	text, err := os.ReadFile("reliability.md")
	require.NoError(t, err)
	_, section, ok := strings.Cut(string(text), "## Mutants\n")
	require.True(t, ok)
	var rows [][]string
	for line := range strings.Lines(section) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); strings.HasPrefix(line, "| `") {
			require.Len(t, cells, 4, line)
			rows = append(rows, cells)
		}
	}
	const again = "make mutants writes the table"
	all := mutant.Table()
	require.GreaterOrEqual(t, len(all), 40)
	require.Len(t, rows, len(all), again)
	for i, m := range all {
		require.Equal(t, "| `"+m.Name+"`", rows[i][0], again)
		require.Equal(t, m.Breaks, rows[i][1], again)
		require.Equal(t, m.Rule, rows[i][2], again)
		require.Regexp(t, `^[1-6]: .* \|$`, rows[i][3], again)
	}
}

// testsOf is the text of the tests of a package.
func testsOf(t *testing.T, dir string) string {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	require.NoError(t, err)
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		require.NoError(t, err)
		all.Write(b)
	}
	return all.String()
}
