package qcow2_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/simdisk"
	"tidemark/qcow2"
)

// A sweep is a subject as a process left it that died in the middle of its work:
// what every scenario with a fault begins with.
type sweep struct {
	m    *made
	ring bool
	file simdisk.State
	redo map[string][]byte // the files of the ring's directory
	// What may be found after a power cut, and after another death of a process.
	power, death *history
	// leaks are what nobody had listed as reserved: counts that were to be lowered.
	leaks int64
}

// sweepSize is small, so that a scenario takes about a millisecond.
const sweepSize = 96<<10 + 3*sector

func (s *sweep) options(dir string) qcow2.Options {
	o := qcow2.Options{ReserveBytes: 4 << 10, CacheBytes: 8 << 10, RedoSlots: 64, CommitInterval: -1}
	if s.ring {
		o.RedoDir = dir
	}
	return o
}

func newSweep(t *testing.T, m *made, ring bool) *sweep {
	s := &sweep{m: m, ring: ring}
	dir := t.TempDir()
	im := m.open(t, m.disk, s.options(dir))
	c := newGuest(im, newHistory(m.content), newHistory(m.content), 0)
	c.write(3, 40, 0)
	c.flush()
	c.write(20, 9, 0)
	c.zero(50, 30, qcow2.MayUnmap)
	c.discard(90, 40)
	c.write(130, 20, 0)
	im.WaitIdle()
	require.Empty(t, c.errs)
	s.file, s.redo, s.power, s.death = m.disk.State(), readFiles(t, dir), c.power, c.death
	require.NoError(t, im.Close())

	d := s.newDisk()
	again := filepath.Join(t.TempDir(), "again")
	writeFiles(t, again, s.redo)
	im = m.open(t, d, s.options(again))
	<-im.Settled()
	require.NoError(t, im.Close())
	s.leaks, _ = leaksOf(t, d)
	return s
}

func leaksOf(t *testing.T, d *simdisk.Disk) (int64, []string) {
	res, err := qcow2.Check(context.Background(), d, qcow2.CheckOptions{})
	require.NoError(t, err)
	return res.Leaks, res.Problems
}

func readFiles(t *testing.T, dir string) map[string][]byte {
	files := map[string][]byte{}
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name()))
		require.NoError(t, err)
	}
	return files
}

func writeFiles(t *testing.T, dir string, files map[string][]byte) {
	require.NoError(t, os.RemoveAll(dir))
	require.NoError(t, os.Mkdir(dir, 0o700))
	for name, b := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o600))
	}
}

// A guest does one request at a time, with the patience of a second, and keeps
// account of what may be on the disk.
type guest struct {
	im           *qcow2.Image
	power, death *history
	version      uint64
	errs         []error
}

func newGuest(im *qcow2.Image, power, death *history, version uint64) *guest {
	return &guest{im: im, power: power, death: death, version: version}
}

func (c *guest) do(request func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := request(ctx)
	if err != nil {
		c.errs = append(c.errs, err)
	}
	return err
}

// note keeps account of a request for n sectors from first that has ended.
func (c *guest) note(first, n int64, version uint64, err error, f qcow2.Flags) {
	c.power.add(first, n, version, err == nil)
	c.death.add(first, n, version, err == nil)
	c.death.certain(first, n)
	if err == nil && f.Has(qcow2.FUA) {
		c.power.certain(first, n)
	}
}

func (c *guest) write(first, n int64, f qcow2.Flags) {
	c.version++
	p := make([]byte, n*sector)
	stamp(p, c.version)
	err := c.do(func(ctx context.Context) error {
		if f == 0 {
			if err := c.im.WriteAt(ctx, p, first*sector, block.NoWait); !errors.Is(err, block.ErrWouldBlock) {
				return err
			}
		}
		return c.im.WriteAt(ctx, p, first*sector, f)
	})
	c.note(first, n, c.version, err, f)
}

func (c *guest) zero(first, n int64, f qcow2.Flags) {
	err := c.do(func(ctx context.Context) error { return c.im.WriteZeroes(ctx, first*sector, n*sector, f) })
	c.note(first, n, zeroVersion, err, f)
}

// discard leaves zeroes or what was there; reading says which.
func (c *guest) discard(first, n int64) {
	err := c.do(func(ctx context.Context) error { return c.im.Discard(ctx, first*sector, n*sector, 0) })
	c.note(first, n, zeroVersion, errors.New("it is a hint"), 0)
	if err != nil {
		return
	}
	p := make([]byte, sector)
	for s := first; s < first+n; s++ {
		if c.do(func(ctx context.Context) error { return c.im.ReadAt(ctx, p, s*sector, 0) }) != nil {
			continue
		}
		if c.power.is(p, int(s), zeroVersion) {
			c.note(s, 1, zeroVersion, nil, 0)
		}
	}
}

func (c *guest) read(first, n int64) {
	_ = c.do(func(ctx context.Context) error { return c.im.ReadAt(ctx, make([]byte, n*sector), first*sector, 0) })
}

func (c *guest) flush() {
	if c.do(c.im.Flush) == nil {
		c.power.allCertain()
	}
}

// grow makes the disk n sectors larger, with an L1 table that moves if that is many.
func (c *guest) grow(n int64) bool {
	size := c.im.Info().Size + n*sector
	err := c.do(func(ctx context.Context) error { return c.im.Grow(ctx, size) })
	if errors.Is(err, block.ErrNoSpace) { // it waits for a larger file only
		c.errs = c.errs[:len(c.errs)-1]
	}
	c.power.extend(size)
	c.death.extend(size)
	return err == nil
}

// work is what the scenarios do: every kind of request on every kind of content. A
// disk that is fixed does not become larger.
func (c *guest) work(fixed bool) {
	c.write(5, 3, 0)
	c.read(0, 100)
	c.write(60, 25, qcow2.FUA)
	c.zero(24, 9, 0)
	c.write(100, 60, 0)
	c.flush()
	c.discard(96, 32)
	c.zero(40, 40, qcow2.MayUnmap)
	if !fixed && c.grow(64) {
		c.write(sweepSize/sector+2, 50, 0)
	}
	c.flush()
	c.write(96, 20, 0)
	c.write(2, 2, qcow2.FUA)
	c.write(44, 8, 0)
}
