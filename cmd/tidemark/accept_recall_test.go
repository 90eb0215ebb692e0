//go:build linux

package main_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// recallLimit is how soon a write that waits has what idle disks do not use: they
// have to be idle for 5 s.
const recallLimit = 15 * time.Second

// A hungry disk gets the headroom of those that are idle, which keep what they have
// written and grow again; on a volume group through real extents.
func TestHeadroomIsRecalled(t *testing.T) {
	for name, make := range map[string]func(t *testing.T) (p *testPool, check func()){
		"directory": func(t *testing.T) (*testPool, func()) {
			p := newPool(t, filepath.Join(workspace(t), "pool"), gib)
			return p, p.requireSum
		},
		"group": func(t *testing.T) (*testPool, func()) {
			workspace(t)
			g := newGroupPool(t, 1, 1408*mib) // 10 extents, two of which are the pool's own
			return g.testPool, func() { g.requireAgrees(t) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, check := make(t)
			var idle []*server
			for _, n := range []string{"a", "b"} {
				p.create(n, 4*gib)
				s := serve(t, t.TempDir(), "--spm", p.socket, n)
				idle = append(idle, s)
				c := s.dial()
				fill(t, c, 1, 0, 16*mib)
				require.NoError(t, c.Flush(t.Context()))
				testenv.Eventually(t, startLimit, n+" has its headroom", func() bool { return p.volume(n).Granted == 2*chunk })
			}
			p.create("hungry", 4*gib)
			s := serve(t, t.TempDir(), "--spm", p.socket, "--patience", "60s", "hungry")
			c := s.dial()
			size := p.info().Capacity - 2*chunk - 32*mib // but one chunk of each of the others
			began, slowest := time.Now(), time.Duration(0)
			for at := int64(0); at < size; at += mib {
				write := time.Now()
				require.NoError(t, c.WriteAt(t.Context(), patterned(2, at, mib), at, 0), "at %d MiB", at/mib)
				slowest = max(slowest, time.Since(write))
			}
			t.Logf("%d MiB in %v, the slowest write took %v; a has %d MiB, b %d MiB, hungry %d MiB", size/mib, time.Since(began),
				slowest, p.volume("a").Granted/mib, p.volume("b").Granted/mib, p.volume("hungry").Granted/mib)
			require.Less(t, slowest, recallLimit)
			require.LessOrEqual(t, p.volume("a").Granted+p.volume("b").Granted, int64(2*chunk))
			check()

			// Space is there again, and who gave it back gets it.
			s.stop()
			ok(t, "volume", "remove", "--spm", p.socket, "hungry")
			for _, s := range idle {
				c := s.dial()
				fill(t, c, 3, 64*mib, 200*mib)
				requirePattern(t, c, 1, 0, 16*mib)
				requirePattern(t, c, 3, 64*mib, 200*mib)
				s.stop()
				require.NotContains(t, s.proc.Output(), "ALARM")
				require.NotContains(t, s.proc.Output(), "level=ERROR")
			}
			check()
		})
	}
}
