package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTestingGuide: the files, tests and variables that testing.md names exist.
func TestTestingGuide(t *testing.T) {
	b, err := os.ReadFile("testing.md")
	require.NoError(t, err)
	text := string(b)
	files := regexp.MustCompile(`\b(?:qcow2|internal)/[a-z0-9_/]+\.go\b`).FindAllString(text, -1)
	require.Greater(t, len(files), 8)
	for _, path := range files {
		require.FileExists(t, filepath.Join("..", path))
	}
	tests := testsOf(t, "../qcow2") + testsOf(t, "../qcow2/crashtest") + testsOf(t, "../internal/testenv")
	seed, err := os.ReadFile("../internal/testenv/seed.go")
	require.NoError(t, err)
	mutants, err := os.ReadFile("../internal/mutant/mutant.go")
	require.NoError(t, err)
	for _, name := range regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`).FindAllString(text, -1) {
		require.Contains(t, tests, "\nfunc "+name+"(", name)
	}
	for _, name := range regexp.MustCompile(`\bTIDEMARK_\w+`).FindAllString(text, -1) {
		require.Contains(t, tests+string(seed)+string(mutants), `"`+name+`"`, name)
	}
	makefile, err := os.ReadFile("../Makefile")
	require.NoError(t, err)
	for _, m := range regexp.MustCompile("`make (\\w+)").FindAllStringSubmatch(text, -1) {
		require.True(t, strings.Contains(string(makefile), "\n"+m[1]+": "), "make %s", m[1])
	}
}
