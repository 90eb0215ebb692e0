package spm

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The tables as people read them: every cell is thought of, and none changes by
// accident.
func TestStateTables(t *testing.T) {
	var b strings.Builder
	b.WriteString("domain")
	for v := range domainVerbs {
		fmt.Fprintf(&b, "\t%s", v)
	}
	for s := range standings {
		fmt.Fprintf(&b, "\n%s", s)
		for v := range domainVerbs {
			writeCell(t, &b, domainTable[s][v])
		}
	}
	b.WriteString("\n\npool")
	for v := range poolVerbs {
		fmt.Fprintf(&b, "\t%s", v)
	}
	for r := range roles {
		fmt.Fprintf(&b, "\n%s", r)
		for v := range poolVerbs {
			writeCell(t, &b, roleTable[r][v])
		}
	}
	b.WriteString("\n")
	golden := filepath.Join("testdata", "states.golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

func writeCell(t *testing.T, b *strings.Builder, r ruling) {
	t.Helper()
	require.NotEqual(t, unthought, r.act, "after %q", b.String())
	require.Equal(t, r.act == refused, r.code != 0 && r.why != "", "a refusal says why: %q", b.String())
	fmt.Fprintf(b, "\t%s", r)
}

func TestStandingOf(t *testing.T) {
	other := uuid.New()
	for _, c := range []struct {
		claims uuid.UUID
		listed DomainState
		master bool
		want   standing
		state  DomainState
	}{
		{uuid.Nil, "", false, standsAlone, DomainUnattached},
		{uuid.Nil, DomainActive, false, standsAlone, DomainUnattached}, // listed, but it does not claim
		{testPool, "", false, standsClaiming, DomainUnattached},
		{other, DomainActive, false, standsElsewhere, DomainUnattached},
		{testPool, DomainAttached, false, standsAttached, DomainAttached},
		{testPool, DomainActive, false, standsActive, DomainActive},
		{testPool, DomainActive, true, standsMaster, DomainActive},
		{testPool, "", true, standsMaster, DomainActive},
	} {
		got := standingOf(c.claims, testPool, c.listed, c.master)
		require.Equal(t, c.want, got, "%+v", c)
		require.Equal(t, c.state, got.state(), "%+v", c)
	}
}
