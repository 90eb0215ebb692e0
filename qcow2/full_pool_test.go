package qcow2_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// poolOf is a pool that is full with an image.
func poolOf(d *simdisk.Disk) *pool {
	return &pool{Disk: simdisk.NewDisk(d.State(), simdisk.Options{Foreign: true, DiscardForeign: true}), limit: d.Size(), more: make(chan struct{})}
}

// fillUp writes clusters of cs bytes from off on, until the pool has no space for one,
// and returns where that was.
func (m *made) fillUp(t *testing.T, im *qcow2.Image, off, cs int64) int64 {
	t.Helper()
	for ; off < m.size; off += cs {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		p := bytes.Repeat([]byte{byte(off / cs), 0xf1}, int(cs/2))
		err := im.WriteAt(ctx, p, off, 0)
		cancel()
		if err != nil {
			require.ErrorIs(t, err, block.ErrNoSpace)
			return off
		}
		copy(m.content[off:], p)
	}
	t.Fatal("the pool has not become full")
	return 0
}

// TestHeldWritesHoldUpNobody (design review 4.1): writes wait for space, more than a
// client has slots, of every kind that needs some. Whatever else is asked for beside
// them, in the clusters and under the table that they wait with, completes at once: a
// read, an overwrite, a discard, zeroing, a flush; and what the discard frees ends the
// wait of some.
func TestHeldWritesHoldUpNobody(t *testing.T) {
	const cs = 4096
	for _, s := range []subject{
		{name: "held", size: 2 << 20, options: "cluster_size=4k", script: []string{"write -P 1 0 64k"}},
		{name: "held, backing", size: 2 << 20, options: "cluster_size=4k", backing: 2 << 20},
	} {
		t.Run(s.name, func(t *testing.T) {
			m, dir := s.make(t), t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				p := poolOf(m.disk)
				p.raise(400 << 10)
				im := m.open(t, p, qcow2.Options{CommitInterval: -1, RedoDir: dir})
				m.put(t, im, bytes.Repeat([]byte{4}, 16*cs), 0)
				used := m.fillUp(t, im, 64<<10, cs)
				held := make(chan error, 16)
				for i := range int64(16) {
					b := bytes.Repeat([]byte{byte(i + 1)}, sector) // a part of a cluster: copied over backing data
					copy(m.content[used+i*cs:], b)
					go func() { held <- im.WriteAt(ctx, b, used+i*cs, 0) }()
				}
				synctest.Wait()
				require.Equal(t, 1, p.waiting())
				began := time.Now()
				got := make([]byte, m.size-used-16*cs)
				require.NoError(t, im.ReadAt(ctx, got, used+16*cs, 0))
				requireRead(t, im, m.content[:64<<10], 0)
				m.put(t, im, bytes.Repeat([]byte{5}, cs), 0)
				require.NoError(t, im.WriteAt(ctx, m.content[:cs], 0, qcow2.FUA))
				require.NoError(t, im.WriteZeroes(ctx, cs, cs, 0))
				clear(m.content[cs : 2*cs])
				require.NoError(t, im.WriteZeroes(ctx, 2*cs, cs, qcow2.MayUnmap))
				clear(m.content[2*cs : 3*cs])
				require.NoError(t, im.Flush(ctx))
				_, err := im.AppendExtents(ctx, nil, 0, m.size)
				require.NoError(t, err)
				require.NoError(t, im.Discard(ctx, 4*cs, 10*cs, 0))
				clear(m.content[4*cs : 14*cs])
				synctest.Wait() // nothing else is needed: not even a flush
				require.GreaterOrEqual(t, len(held), 8, "what was discarded is space")
				require.Equal(t, began, time.Now())
				p.raise(1 << 20)
				for range 16 {
					require.NoError(t, <-held)
				}
				require.Equal(t, began, time.Now())
				got = make([]byte, m.size)
				require.NoError(t, im.ReadAt(ctx, got, 0, 0))
				requireSame(t, m.content, got, "the disk")
				require.NoError(t, im.Close())
				m.disk = p.Disk
			})
			m.judge(t, m.disk)
		})
	}
}

// TestLastSpaceOfThePoolIsUsable (design review 4.4): a reservation would like 64 MiB
// and the pool has 12; all of them can be written.
func TestLastSpaceOfThePoolIsUsable(t *testing.T) {
	for _, left := range []int64{12 << 20, 1 << 20, 3 << 16, 1 << 16} {
		t.Run(fmt.Sprint(left), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const cs = 1 << 16
				p := newPool(1 << 40)
				require.NoError(t, qcow2.Create(t.Context(), p, qcow2.CreateOptions{Size: 256 << 20}))
				im, err := qcow2.Open(t.Context(), p, qcow2.Options{CommitInterval: -1})
				require.NoError(t, err)
				require.NoError(t, im.WriteAt(t.Context(), []byte{1}, 0, 0))
				synctest.Wait()
				reserved := im.Stats().Reserved
				p.mu.Lock()
				p.limit = p.Size() + left
				p.mu.Unlock()
				m := &made{subject: subject{size: 256 << 20}, content: make([]byte, 256<<20)}
				used := m.fillUp(t, im, cs, cs)
				// All but what is kept for tables.
				require.GreaterOrEqual(t, used-cs, reserved+left-3*cs)
				require.NoError(t, im.Close())
			})
		})
	}
}

// TestDiscardOverBackingInAFullPool (design review 4.5): freeing needs allocation. A
// discard over backing data needs a zero mark in an L2 table that a snapshot shares,
// or that does not exist, and the pool has no space for a table. It completes at once
// all the same, and the disk reads what it read or zeroes; and what needs no table
// frees space for a write that is held.
func TestDiscardOverBackingInAFullPool(t *testing.T) {
	const cs, table = 1 << 10, 128 << 10
	m := subject{name: "shared tables over backing", size: 1 << 20, options: "cluster_size=1k", backing: 1 << 20,
		script: []string{"write -P 1 0 20k", "write -P 2 128k 20k"}}.make(t)
	m.snapshot(t, "last")
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		p := poolOf(m.disk)
		p.raise(p.Size() + 64*cs)
		im := m.open(t, p, qcow2.Options{CommitInterval: -1, RedoDir: dir})
		m.put(t, im, bytes.Repeat([]byte{3}, 10*cs), 0) // its own, in a copy of the first table
		used := m.fillUp(t, im, 20*cs, cs)
		require.Less(t, used, int64(table))
		held := make(chan error, 1)
		b := bytes.Repeat([]byte{7}, cs)
		go func() { held <- im.WriteAt(ctx, b, used, 0) }()
		synctest.Wait()
		began := time.Now()
		for _, off := range []int64{table + cs, table + 60*cs, 3 * table} { // data, no data, no table
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			require.NoError(t, im.Discard(short, off, cs, 0))
			got := make([]byte, cs)
			require.NoError(t, im.ReadAt(ctx, got, off, 0))
			if !bytes.Equal(got, m.content[off:off+cs]) {
				require.Equal(t, make([]byte, cs), got)
			}
			copy(m.content[off:], got)
		}
		require.NoError(t, im.Flush(ctx))
		require.Equal(t, began, time.Now())
		require.Empty(t, held, "nothing is free yet")
		require.NoError(t, im.Discard(ctx, 0, 5*cs, 0))
		clear(m.content[:5*cs])
		require.NoError(t, <-held)
		copy(m.content[used:], b)
		require.Equal(t, began, time.Now())
		require.NoError(t, im.Close())
		m.disk = p.Disk
	})
	m.judge(t, m.disk)
}

// TestZeroingOverBackingInAFullPool (design review 4.5, rule 18): the emergency reserve
// for metadata. Zeroing needs tables for its marks, one that a snapshot shares and one
// that does not exist, and has them when data finds no space.
func TestZeroingOverBackingInAFullPool(t *testing.T) {
	const cs, table = 1 << 10, 128 << 10
	m := subject{name: "shared tables over backing, zeroed", size: 1 << 20, options: "cluster_size=1k", backing: 1 << 20,
		script: []string{"write -P 1 0 20k", "write -P 2 128k 20k"}}.make(t)
	m.snapshot(t, "last")
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := poolOf(m.disk)
		p.raise(p.Size() + 64*cs)
		im := m.open(t, p, qcow2.Options{CommitInterval: -1, RedoDir: dir})
		m.put(t, im, bytes.Repeat([]byte{3}, 10*cs), 0)
		m.fillUp(t, im, 20*cs, cs)
		for _, off := range []int64{table + cs, 3 * table} { // a shared table, none
			short, cancel := context.WithTimeout(t.Context(), time.Second)
			err := im.WriteZeroes(short, off, cs, qcow2.MayUnmap)
			cancel()
			require.NoError(t, err, "at %d", off)
		}
		require.NoError(t, im.Close())
	})
}
