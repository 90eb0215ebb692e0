package qcow2_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// TestConcurrent lets many clients write, zero, discard, flush and read at once,
// each in regions of its own that share clusters with its neighbours', and holds
// what each reads against what it wrote.
func TestConcurrent(t *testing.T) {
	const clients, region, rounds = 8, 24, 150 // sectors
	for _, cs := range []int64{512, 4096, 65536} {
		t.Run(fmt.Sprint(cs), func(t *testing.T) {
			seed, _ := testenv.Seed(t)
			ctx := context.Background()
			d := simdisk.New(0, simdisk.Options{Foreign: true, DiscardForeign: true})
			require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 4 << 20, ClusterSize: cs}))
			im, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 256 << 10})
			require.NoError(t, err)
			errs := make([]error, clients)
			var wg sync.WaitGroup
			for c := range clients {
				wg.Go(func() {
					errs[c] = client(ctx, im, testenv.Rand(seed+uint64(c)), c, clients, region, rounds, 0)
				})
			}
			wg.Wait()
			require.NoError(t, errors.Join(errs...))
			require.NoError(t, im.Close())
			requireClean(t, d)
		})
	}
}

// TestSettleConcurrent opens an image whose writer died and uses it at once, in
// the middle of settling: nothing that is in use is given back, and everything
// else is.
func TestSettleConcurrent(t *testing.T) {
	const clients, region = 8, 24
	for range scaled(24) {
		seed, _ := testenv.Seed(t)
		ctx := context.Background()
		d := simdisk.New(0, simdisk.Options{Foreign: true, DiscardForeign: true})
		require.NoError(t, qcow2.Create(ctx, d, qcow2.CreateOptions{Size: 4 << 20, ClusterSize: 4096}))
		im, err := qcow2.Open(ctx, d, qcow2.Options{ReserveBytes: 256 << 10})
		require.NoError(t, err)
		p := make([]byte, 4<<20)
		stamp(p, 1)
		for off := int64(0); off < int64(len(p)); off += 64 << 10 {
			require.NoError(t, im.WriteAt(ctx, p[off:off+64<<10], off, 0))
		}
		left := d.Crash(simdisk.KeepAll)
		require.NoError(t, im.Close())

		im, err = qcow2.Open(ctx, left, qcow2.Options{ReserveBytes: 256 << 10})
		require.NoError(t, err)
		errs := make([]error, clients)
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				errs[c] = client(ctx, im, testenv.Rand(seed+uint64(c)), c, clients, region, 40, 1)
			})
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		<-im.Settled()
		require.NoError(t, im.Close())
		requireClean(t, left)
	}
}

// client owns every clients-th piece of region sectors, which hold the version
// initial.
func client(ctx context.Context, im *qcow2.Image, rng *rand.Rand, number, clients, region, rounds int, initial uint64) error {
	pieces := 4 << 20 / sector / (clients * region)
	versions := make([]uint64, pieces)
	for i := range versions {
		versions[i] = initial
	}
	p := make([]byte, region*sector)
	for i := range rounds {
		piece := rng.IntN(pieces)
		off := int64(piece*clients+number) * int64(region) * sector
		var err error
		switch rng.IntN(8) {
		case 0:
			versions[piece] = 0
			err = im.WriteZeroes(ctx, off, int64(len(p)), qcow2.MayUnmap)
		case 1:
			err = im.Flush(ctx)
		case 2:
			// Only whole clusters are dropped; then the piece is a mix.
			if err = im.Discard(ctx, off, int64(len(p)), 0); err == nil {
				versions[piece] = 0
				err = im.WriteZeroes(ctx, off, int64(len(p)), 0)
			}
		default:
			versions[piece] = uint64(number+1)<<32 | uint64(i)
			stamp(p, versions[piece])
			err = im.WriteAt(ctx, p, off, 0)
		}
		if err != nil {
			return err
		}
		look := rng.IntN(pieces)
		off = int64(look*clients+number) * int64(region) * sector
		if err := im.ReadAt(ctx, p, off, 0); err != nil {
			return err
		}
		v, err := versionOf(p)
		if err != nil || v != versions[look] {
			return fmt.Errorf("client %d, piece %d: version %d; expected %d (%w)", number, look, v, versions[look], err)
		}
	}
	return nil
}
