package main

import (
	"fmt"
	"strings"
	"testing"
)

// A ran is what became of a command line.
type ran struct {
	args           []string
	code           int
	stdout, stderr string
}

func (r ran) String() string {
	return fmt.Sprintf("tidemark %s: exit code %d\nstdout: %s\nstderr: %s", strings.Join(r.args, " "), r.code, r.stdout, r.stderr)
}

// cli runs a command line in this process.
func cli(t testing.TB, args ...string) ran {
	t.Helper()
	code, stdout, stderr := inProcess(t, args...)
	return ran{args, code, stdout, stderr}
}
