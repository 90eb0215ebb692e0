package simdisk

import (
	"fmt"
	"io"
	"os"
	"slices"
)

// Crash returns the disk that a crash at this moment leaves, open again: what is
// durable, and of the pending operations the sectors that keep wants. The disk
// itself goes on undisturbed, also when it is closed, so that many crashes of
// one moment can be looked at.
func (d *Disk) Crash(keep Keep) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	im := d.durable.clone()
	for _, op := range d.pending {
		op.applyTo(&im, keep)
	}
	return &Disk{opts: d.opts, size: d.size, durable: im, current: im.clone()}
}

// FailSync makes the next Sync or WriteAtSync fail with err. Of what is pending
// then, only the sectors that keep wants become durable (nil: none); the rest is
// lost, whatever later syncs say.
func (d *Disk) FailSync(err error, keep Keep) {
	if keep == nil {
		keep = DropAll
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = &failure{err, keep}
}

// Evict drops the simulated host's cache: what a failed sync lost now reads as
// the disk has it.
func (d *Disk) Evict() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.current = d.durable.clone()
	for _, op := range d.pending {
		op.applyTo(&d.current, KeepAll)
	}
}

// SetMaxSize changes Options.MaxSize.
func (d *Disk) SetMaxSize(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.opts.MaxSize = n
}

// Syncs is how many times Sync was called.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// Export writes what reads return to a sparse file of the host, for programs
// that judge it from outside.
func (d *Disk) Export(path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = d.exportLocked(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (d *Disk) exportLocked(f *os.File) error {
	if err := f.Truncate(d.size); err != nil {
		return err
	}
	write := func(i int64) error {
		p := d.current.page(i)
		_, err := f.WriteAt(p[:max(min(d.size-i*pageSize, pageSize), 0)], i*pageSize)
		return err
	}
	for i := range d.current.pages {
		if err := write(i); err != nil {
			return err
		}
	}
	for _, s := range d.current.foreign {
		for i := s.off / pageSize; i*pageSize < s.end; i++ {
			if err := write(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// Import returns a disk with the content of a file, durable.
func Import(path string, o Options) (*Disk, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	d := New(st.Size(), o)
	for i := int64(0); i*pageSize < st.Size(); i++ {
		p := new(page)
		if _, err := f.ReadAt(p[:], i*pageSize); err != nil && err != io.EOF {
			return nil, fmt.Errorf("import: %w", err)
		}
		if *p != *zeroPage {
			d.durable.set(i, p)
		}
	}
	d.current = d.durable.clone()
	return d, nil
}

// Equal reports whether two disks read the same.
func Equal(a, b *Disk) bool {
	x, y := a.Crash(KeepAll), b.Crash(KeepAll) // copies: no two locks at once
	if x.size != y.size {
		return false
	}
	pages := slices.Collect(func(yield func(int64) bool) {
		for _, im := range []image{x.current, y.current} {
			for i := range im.pages {
				if !yield(i) {
					return
				}
			}
			for _, s := range im.foreign {
				for i := s.off / pageSize; i*pageSize < s.end; i++ {
					if !yield(i) {
						return
					}
				}
			}
		}
	})
	for _, i := range pages {
		if *x.current.page(i) != *y.current.page(i) {
			return false
		}
	}
	return true
}
