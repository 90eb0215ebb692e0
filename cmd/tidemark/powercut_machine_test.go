package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/simdisk"
	"tidemark/spm"
)

var errNoPower = errors.New("there is no power")

// A machine has simulated disks, one for each volume of a pool in a directory, and is
// itself what serves an image. Its power can be cut: then everything fails at once.
type machine struct {
	host  *spm.Host // of the pool
	onCut func()    // called when the power is cut, and nothing is in progress

	mu    sync.RWMutex // held shared by who does something with a disk
	off   bool
	ctx   context.Context // ends with the power
	fail  context.CancelFunc
	disks map[string]*simdisk.Disk // by the volumes' paths

	steps atomic.Int64 // changes of disks, and syncs
	cutAt atomic.Int64 // the one before which the power is cut

	serving sync.Mutex // guards served
	served  *served    // nil: nothing is
}

func newMachine() *machine {
	m := &machine{disks: map[string]*simdisk.Disk{}, onCut: func() {}}
	m.ctx, m.fail = context.WithCancel(context.Background())
	return m
}

// step cuts the power if it is time for it.
func (m *machine) step() {
	if n := m.steps.Add(1); n == m.cutAt.Load() {
		m.cut()
	}
}

// cut cuts the power, if there is any.
func (m *machine) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.off {
		m.off = true
		m.onCut()
		m.fail()
	}
}

func (m *machine) power() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return !m.off
}

// do does something with a disk.
func (m *machine) do(what func() error) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.off {
		return errNoPower
	}
	return what()
}

// disk is a volume's. It begins with what the pool has made in its file.
func (m *machine) disk(path string) (*simdisk.Disk, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.off:
		return nil, errNoPower
	case m.disks[path] == nil:
		d, err := newVolumeDisk(path)
		if err != nil {
			return nil, err
		}
		m.disks[path] = d
	}
	return m.disks[path], nil
}

func newVolumeDisk(path string) (*simdisk.Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	begin, err := io.ReadAll(io.LimitReader(f, folderBegin))
	if err != nil {
		return nil, err
	}
	d := simdisk.New(info.Size(), simdisk.Options{Foreign: true, DiscardForeign: true})
	if _, err := d.WriteAt(begin, 0); err != nil {
		return nil, err
	}
	return d, d.Sync()
}

// open is a volumeOpener.
func (m *machine) open(_ context.Context, h *spm.VolumeHandle, a volumeAccess) (block.File, *hostfile.File, error) {
	d, err := m.disk(h.Path())
	if err != nil {
		return nil, nil, err
	}
	return &cable{m: m, d: d, readOnly: a.readOnly}, nil, nil
}

// serve opens a volume with what is below it.
func (m *machine) serve(ctx context.Context, leaf string) (*served, error) {
	d, err := openDisk(ctx, diskSpec{Image: leaf, Pool: m.host, Exchanged: true, Opener: m.open})
	if err != nil {
		return nil, err
	}
	return newServed(d), nil
}

// A cable is a disk that somebody has open.
type cable struct {
	m        *machine
	d        *simdisk.Disk
	readOnly bool
}

// change does something that is a step.
func (c *cable) change(what func() error) error {
	if c.readOnly {
		return block.ErrReadOnly
	}
	c.m.step()
	return c.m.do(what)
}

func (c *cable) ReadAt(p []byte, off int64) (n int, err error) {
	var short error // io.EOF is no reason to stop
	err = c.m.do(func() error {
		if n, short = c.d.ReadAt(p, off); errors.Is(short, io.EOF) {
			return nil
		}
		return short
	})
	return n, cmp.Or(err, short)
}

func (c *cable) ReadNow([]byte, int64) bool { return false }

func (c *cable) WriteLater([]byte, int64, block.Later) bool { return false }

func (c *cable) WriteAt(p []byte, off int64) (n int, err error) {
	err = c.change(func() error { n, err = c.d.WriteAt(p, off); return err })
	return n, err
}

func (c *cable) WriteAtSync(p []byte, off int64) (n int, err error) {
	err = c.change(func() error { n, err = c.d.WriteAtSync(p, off); return err })
	return n, err
}

func (c *cable) WriteZeroes(off, n int64) error {
	return c.change(func() error { return c.d.WriteZeroes(off, n) })
}

func (c *cable) Discard(off, n int64) error {
	return c.change(func() error { return c.d.Discard(off, n) })
}

func (c *cable) WriteBack(int64, int64) {}

func (c *cable) Grow(ctx context.Context, need, want int64) (size int64, err error) {
	err = c.change(func() error { size, err = c.d.Grow(ctx, need, want); return err })
	return size, err
}

func (c *cable) Shrink(ctx context.Context, from, to int64) error {
	return c.change(func() error { return c.d.Shrink(ctx, from, to) })
}

func (c *cable) Size() int64 { return c.d.Size() }

func (c *cable) Sync() error { return c.change(c.d.Sync) }

func (c *cable) Info() block.FileInfo {
	i := c.d.Info()
	i.ReadOnly = c.readOnly
	return i
}

func (c *cable) Close() error { return nil }

// The machine is the servers of the pool's images, as a process with a control socket
// is.
var _ spm.ImageServers = (*machine)(nil)

func (m *machine) server() (*served, error) {
	m.serving.Lock()
	defer m.serving.Unlock()
	if m.served == nil {
		return nil, fs.ErrNotExist
	}
	return m.served, m.do(func() error { return nil })
}

func (m *machine) Start(ctx context.Context, v spm.Serve) (spm.Server, error) {
	s, err := m.serve(ctx, v.Leaf)
	if err != nil {
		return spm.Server{}, err
	}
	m.serving.Lock()
	m.served = s
	m.serving.Unlock()
	return m.Find(ctx, v.Image)
}

func (m *machine) Find(_ context.Context, image string) (spm.Server, error) {
	s, err := m.server()
	if err != nil {
		return spm.Server{}, err
	}
	e := s.describe(nbdExport{})
	return serverOf(image, "", "", controlState{PID: os.Getpid(), Exports: []controlExport{e}})
}

func (m *machine) Adopt(context.Context, string) error { return nil }

func (m *machine) Stop(context.Context, string) error { return errors.New("not here") }

func (m *machine) Snapshot(ctx context.Context, _, leaf string) error {
	return m.ask(func(s *served) error { return s.Snapshot(ctx, leaf) })
}

func (m *machine) MergeStart(ctx context.Context, _, leaf string) error {
	return m.ask(func(s *served) error { return s.MergeStart(ctx, leaf) })
}

func (m *machine) MergePivot(ctx context.Context, _, leaf string) error {
	return m.ask(func(s *served) error { return s.MergePivot(ctx, leaf) })
}

func (m *machine) MergeCancel(ctx context.Context, _, leaf string) error {
	return m.ask(func(s *served) error { return s.MergeCancel(ctx, leaf) })
}

func (m *machine) Resize(context.Context, string, int64) error { return errors.New("not here") }

// ask lets what serves the image do something. Without power nobody waits for it.
func (m *machine) ask(what func(*served) error) error {
	s, err := m.server()
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- what(s) }()
	select {
	case err := <-done:
		return err
	case <-m.ctx.Done():
		return errNoPower
	}
}
