package crashtest

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table of mutants into docs/reliability.md")

// broken says what is wrong when a rule of the oracle is broken (package crashlab).
var broken = [...]string{
	1: "the image does not open by itself, or a check calls it corrupt",
	2: "a sector is neither its last durable version nor a later one",
	3: "another tenant's bytes are read",
	4: "a snapshot or a backing file is not what it was",
	5: "a host cluster has two owners, or the image passes its bound",
	6: "recovering twice, or being cut while recovering, is not as good as once",
}

// countRules says how many mutants each rule has killed.
func countRules(list []verdict) string {
	count := map[int]int{}
	for _, v := range list {
		count[v.rule]++
	}
	var parts []string
	for rule := 1; rule < len(broken); rule++ {
		if count[rule] > 0 {
			parts = append(parts, fmt.Sprintf("%d by rule %d", count[rule], rule))
		}
	}
	return fmt.Sprintf("%d mutants: %s killed", len(list), strings.Join(parts, ", "))
}

const (
	tableBegin = "<!-- mutants: written by make mutants -->\n"
	tableEnd   = "<!-- end of mutants -->\n"
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
	fmt.Fprintf(&b, "%s%s\n| mutant | what it does instead | what that breaks | killed by rule |\n|---|---|---|---|\n", before, tableBegin)
	for _, v := range list {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %d: %s |\n", v.Name, v.Breaks, v.Rule, v.rule, broken[v.rule])
	}
	fmt.Fprintf(&b, "\n%s.\n\n%s%s", countRules(list), tableEnd, behind)
	require.NoError(t, os.WriteFile(path, []byte(b.String()), 0o644))
}
