package qcow2_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// What the clients of a laterLoad share.
const (
	loadClients  = 8
	loadClusters = 24 // those behind them are the discarder's
	loadBlock    = 4096
	loadBlocks   = loadClusters * cluster / loadBlock
	loadSize     = 64 << 20
	// untouched is what a block holds before it is written, as a version: zeroes, or
	// what fullBacking has.
	untouched = 0x5a5a5a5a5a5a5a5a
)

// A laterLoad is clients that write blocks of their own at once, most of them with
// writes that are begun, beside one that discards clusters under such writes.
type laterLoad struct {
	t       *testing.T
	im      *qcow2.Image
	stop    atomic.Bool
	writes  atomic.Int64
	moments chan struct{} // told now and then in the middle of it

	mu sync.Mutex // guards what follows
	// Of each block, the version that was submitted last, the one that was
	// acknowledged last, and the one that a flush or FUA has covered.
	submitted, ended, durable [loadBlocks]int64
	begun, again              int // writes: that the image has begun, and that it has not ended
}

// A fickleDisk begins most writes, and ends some of those with a part of them done.
type fickleDisk struct {
	block.File
	asked atomic.Int64
}

func (d *fickleDisk) WriteLater(p []byte, off int64, to block.Later) bool {
	switch n := d.asked.Add(1); {
	case n%13 == 0:
		return false
	case n%11 == 0:
		go func() {
			_, _ = d.WriteAt(p[:sector], off) // it fails in any case
			to.Ended(false)
		}()
		return true
	}
	return d.File.WriteLater(p, off, to)
}

// TestCrashBesideBegunWrites cuts the power, or lets the host lose nothing, while many
// writes that were begun are on their way: what a flush or FUA has covered is there, and
// nothing that nobody has written.
func TestCrashBesideBegunWrites(t *testing.T) {
	seed, _ := testenv.Seed(t)
	for i := range uint64(max(scaled(4), 1)) {
		for _, c := range []struct{ ring, extended, backed bool }{
			{ring: true}, {}, {ring: true, backed: true}, {ring: true, extended: true, backed: true},
		} {
			t.Run(fmt.Sprintf("%d, %+v", i, c), func(t *testing.T) {
				co, o := qcow2.CreateOptions{Size: loadSize, ExtendedL2: c.extended}, qcow2.Options{ReserveBytes: 4 * cluster}
				if c.backed {
					co.BackingFile, co.BackingFormat = "base", "raw"
					o.Backing = fullBacking{size: loadSize}
				}
				if c.ring {
					o.RedoDir = t.TempDir()
				}
				crashBesideBegunWrites(t, seed+i, co, o)
			})
		}
	}
}

func crashBesideBegunWrites(t *testing.T, seed uint64, co qcow2.CreateOptions, o qcow2.Options) {
	d := simdisk.New(0, simdisk.Options{Foreign: true, DiscardForeign: true})
	require.NoError(t, qcow2.Create(t.Context(), d, co))
	im, err := qcow2.Open(t.Context(), &fickleDisk{File: simdisk.Later(restless(d))}, o)
	require.NoError(t, err)
	l := &laterLoad{t: t, im: im, moments: make(chan struct{}, 1)}
	var wg sync.WaitGroup
	for c := range int64(loadClients) {
		wg.Go(func() { l.client(c, rand.New(rand.NewPCG(seed, uint64(c)))) })
	}
	wg.Go(func() { l.discarder(rand.New(rand.NewPCG(seed, loadClients))) })
	go func() { wg.Wait(); close(l.moments) }()
	t.Cleanup(l.end)
	half := simdisk.KeepRandom(testenv.Rand(seed), 0.5)
	for i := range 12 {
		if _, ok := <-l.moments; !ok {
			break
		}
		least := l.versions(&l.durable)
		left := d.Crash([]simdisk.Keep{simdisk.DropAll, simdisk.KeepAll, half}[i%3])
		l.judge(left, o.Backing, least, l.versions(&l.submitted))
		res, err := qcow2.Check(t.Context(), left, qcow2.CheckOptions{})
		require.NoError(t, err)
		require.Zero(t, res.Corruptions+res.CheckErrors, "%q", res.Problems)
	}
	l.end()
	require.NoError(t, im.Close())
	l.judge(d.Crash(simdisk.DropAll), o.Backing, l.ended, l.ended)
	t.Logf("%d writes, %d of them begun, %d of those done again", l.writes.Load(), l.begun, l.again)
	require.Positive(t, l.begun)
	require.Positive(t, l.again)
}

// end waits until the clients and the discarder have ended.
func (l *laterLoad) end() {
	l.stop.Store(true)
	for more := true; more; {
		_, more = <-l.moments
	}
}

func (l *laterLoad) versions(of *[loadBlocks]int64) [loadBlocks]int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return *of
}

// judge requires that each sector of a block has one of its versions from least to most.
func (l *laterLoad) judge(left *simdisk.Disk, below block.Device, least, most [loadBlocks]int64) {
	t := l.t
	im, err := qcow2.Open(t.Context(), left, qcow2.Options{ReadOnly: true, Backing: below})
	require.NoError(t, err)
	p := make([]byte, loadBlocks*loadBlock)
	require.NoError(t, im.ReadAt(t.Context(), p, 0, 0))
	for i := 0; i < len(p); i += sector {
		b := i / loadBlock
		v, err := versionOf(p[i : i+sector])
		require.NoError(t, err, "block %d", b)
		if v == untouched {
			v = 0
		}
		require.True(t, v == 0 || v>>32 == uint64(b), "block %d has the version %#x of another one", b, v)
		v &= 1<<32 - 1
		require.True(t, int64(v) >= least[b] && int64(v) <= most[b], "block %d has version %d, expected one from %d to %d", b, v, least[b], most[b])
	}
	require.NoError(t, im.Close())
}

// client writes its blocks until the load is stopped.
func (l *laterLoad) client(number int64, rng *rand.Rand) {
	for v := int64(1); !l.stop.Load(); v++ {
		b := rng.Int64N(loadBlocks/loadClients)*loadClients + number
		if err := l.write(rng, b, v); err != nil {
			l.t.Errorf("client %d, version %d: %v", number, v, err)
			l.stop.Store(true)
		}
		if l.writes.Add(1)%97 == 0 {
			select {
			case l.moments <- struct{}{}:
			default:
			}
		}
	}
}

// write writes a version of a block, and now and then reads it, or flushes.
func (l *laterLoad) write(rng *rand.Rand, b, v int64) error {
	ctx, p, off := context.Background(), make([]byte, loadBlock), b*loadBlock
	stamp(p, uint64(b<<32|v))
	l.mu.Lock()
	l.submitted[b] = v
	l.mu.Unlock()
	fua := rng.IntN(10) == 0
	var err error
	switch {
	case fua:
		err = l.im.WriteAt(ctx, p, off, block.FUA)
	case rng.IntN(4) == 0:
		err = l.im.WriteAt(ctx, p, off, 0)
	default:
		err = l.writeLater(ctx, p, off)
	}
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.ended[b] = v
	if fua {
		l.durable[b] = v
	}
	l.mu.Unlock()
	if got := make([]byte, loadBlock); rng.IntN(20) == 0 {
		if err := l.im.ReadAt(ctx, got, off, 0); err != nil || !bytes.Equal(p, got) {
			return fmt.Errorf("read behind the write: % x (%w)", got[:16], err)
		}
	}
	if rng.IntN(30) == 0 {
		return l.flush(ctx)
	}
	return nil
}

// writeLater is writeLater that counts.
func (l *laterLoad) writeLater(ctx context.Context, p []byte, off int64) error {
	to := make(told, 1)
	begun := l.im.WriteLater(p, off, to)
	if begun && <-to {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.begun++
		return nil
	}
	if begun {
		l.mu.Lock()
		l.begun, l.again = l.begun+1, l.again+1
		l.mu.Unlock()
	}
	return l.im.WriteAt(ctx, p, off, 0)
}

func (l *laterLoad) flush(ctx context.Context) error {
	covered := l.versions(&l.ended)
	if err := l.im.Flush(ctx); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for b, v := range covered {
		l.durable[b] = max(l.durable[b], v)
	}
	return nil
}

// discarder discards, or zeroes, clusters that writes are on their way to: their host
// clusters are nobody else's before those have ended.
func (l *laterLoad) discarder(rng *rand.Rand) {
	ctx, p := context.Background(), bytes.Repeat([]byte{0xee}, loadBlock)
	for !l.stop.Load() {
		off := (loadClusters + rng.Int64N(32)) * cluster
		to, begun := make(told, 3), 0
		for i := range int64(cap(to)) {
			if l.im.WriteLater(p, off+i*loadBlock, to) {
				begun++
			}
		}
		var err error
		if begun == 0 {
			err = l.im.WriteAt(ctx, p, off, 0)
		}
		if err == nil && rng.IntN(2) == 0 {
			err = l.im.Discard(ctx, off, cluster, 0)
		} else if err == nil {
			err = l.im.WriteZeroes(ctx, off, cluster, block.MayUnmap)
		}
		if err == nil && rng.IntN(3) == 0 {
			err = l.flush(ctx)
		}
		for range begun {
			<-to
		}
		if err != nil {
			l.t.Errorf("discard at %d: %v", off, err)
			return
		}
	}
}
