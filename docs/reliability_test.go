package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
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
