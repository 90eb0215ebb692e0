package qcow2_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSyncsAreOneAtATime: no code of an open image syncs its file but syncUnless, which
// lets nobody believe a Sync beside one that has failed (rule 13). What races there is
// two system calls, so the text is looked at.
func TestSyncsAreOneAtATime(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var found []string
	for _, path := range files {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		within := ""
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "func ") {
				within = strings.TrimSpace(line)
			}
			if strings.Contains(line, "im.file.Sync()") {
				found = append(found, within)
			}
		}
	}
	for _, f := range found {
		require.Contains(t, f, "syncUnless(", "it syncs past syncUnless")
	}
	require.NotEmpty(t, found)
}
