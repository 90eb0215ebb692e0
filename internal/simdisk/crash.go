package simdisk

// Crash returns the disk that a crash at this moment leaves, open again: what is
// durable, and of the pending operations the sectors that keep wants. The disk
// itself goes on undisturbed, also when it is closed, so that many crashes of
// one moment can be looked at.
func (d *Disk) Crash(keep Keep) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := NewDisk(d.m.Crash(d.m.pending, keep), d.m.opts)
	c.maxSize = d.maxSize
	return c
}

// State returns what reads return.
func (d *Disk) State() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.m.Current()
}

// FailSync makes the next Sync or WriteAtSync fail with err. What is pending then
// may be lost, whatever later syncs say: Keep decides, as for what is pending.
func (d *Disk) FailSync(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failure = err
}

// Evict drops the simulated host's cache: what a failed sync has dropped is lost
// now, and reads as the disk has it.
func (d *Disk) Evict() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.m.Evict()
}

// SetMaxSize changes Options.MaxSize.
func (d *Disk) SetMaxSize(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.maxSize = n
}

// Syncs is how many times Sync was called.
func (d *Disk) Syncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.syncs
}

// Export writes what reads return to a sparse file of the host, for programs
// that judge it from outside.
func (d *Disk) Export(path string) error { return d.State().Export(path) }

// Import returns a disk with the content of a file, durable.
func Import(path string, o Options) (*Disk, error) {
	s, err := ImportState(path)
	if err != nil {
		return nil, err
	}
	return NewDisk(s, o), nil
}

// Equal reports whether two disks read the same.
func Equal(a, b *Disk) bool { return a.State().Hash() == b.State().Hash() }
