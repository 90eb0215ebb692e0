package crashtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/crashlab"
	"tidemark/internal/steps"
)

// stepLine is a step in the engine's comments: "//	R1  choose clusters".
var stepLine = regexp.MustCompile(`(?m)^//\t([A-Z][0-9]+)  `)

// listedSteps are the steps that the engine's comments list. I1, I2 ... are
// invariants, not steps.
func listedSteps(t *testing.T) (list []string) {
	files, err := filepath.Glob(filepath.Join("..", "*.go"))
	require.NoError(t, err)
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, m := range stepLine.FindAllSubmatch(text, -1) {
			if step := string(m[1]); step[0] != 'I' {
				list = append(list, step)
			}
		}
	}
	slices.Sort(list)
	require.NotEmpty(t, list)
	return slices.Compact(list)
}

// judgeCoverage prints, for every step of the write order, how often it was done
// and cut before and behind, and fails if one that is listed never was.
func judgeCoverage(t *testing.T, lab *crashlab.Lab) {
	if !steps.Enabled {
		t.Log("the steps of the write order are not watched: that needs the build tag crashlab")
		return
	}
	for _, s := range lab.Steps() {
		t.Log(s)
	}
	listed := listedSteps(t)
	if missing := lab.Missing(listed); len(missing) > 0 && !testing.Short() && !t.Failed() {
		t.Errorf("never cut before and behind: %v, of the steps that the engine lists: %v", missing, listed)
	}
	for _, s := range lab.Steps() {
		require.Contains(t, listed, s.Name, "the engine says that it has done a step that its comments do not list")
	}
}
