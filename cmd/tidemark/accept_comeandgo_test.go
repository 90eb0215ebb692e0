//go:build linux

package main_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// A snapshot is made and merged again, 1,000 times. What the image has been granted, and
// what is in it, is then as before. Every tenth time the image is served meanwhile, and
// written anew: every hundredth time all that it has, for which the snapshot is extended.
func TestSnapshotsComeAndGo(t *testing.T) {
	workspace(t)
	t.Setenv("TMPDIR", testRunDir()) // in memory: otherwise most of the time goes into syncs
	const times = 1000
	h := newVDSMHost(t)
	m := &crowdClient{crowd: newCrowd(h, 1, 2, h.newDir("domain")), rng: testenv.Rand(0)}
	domain := m.domains[0]
	require.NoError(t, m.create())
	i := m.has[0]
	require.NoError(t, m.prepare(i))
	require.NoError(t, m.fillLeaf(i, 0, crowdBlocks))
	require.NoError(t, m.teardown(i))

	before := h.domainSize(domain, "granted")
	volume := h.volumes(domain)[0]
	began := time.Now()
	for n := range times {
		if n%10 == 0 {
			require.NoError(t, m.prepare(i))
		}
		require.NoError(t, m.snapshot(i))
		switch {
		case n%100 == 0:
			require.NoError(t, m.fillLeaf(i, n, crowdBlocks))
		case n%10 == 0:
			require.NoError(t, m.fillLeaf(i, n, crowdBlocks-1))
		}
		require.NoError(t, m.merge(i))
		require.NoError(t, m.teardown(i))
	}
	t.Logf("%d snapshots made and merged in %v", times, time.Since(began).Round(time.Millisecond))
	require.Equal(t, before, h.domainSize(domain, "granted"), "granted, of the domain")
	after := h.volumes(domain)[0]
	require.Equal(t, volume.Granted, after.Granted)
	require.Equal(t, volume.ID, after.ID)
	m.requireModel(m.has)
	m.requireContent(m.has)
}
