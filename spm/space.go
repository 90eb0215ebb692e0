package spm

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// statfsFree is what the file system has left for us, in bytes.
func statfsFree(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Frsize, nil
}

// statfsTotal is how large the file system is, in bytes.
func statfsTotal(dir string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, err
	}
	return int64(s.Blocks) * s.Frsize, nil
}

// allocated is what the file system has allocated for a file, in bytes; 0 for
// one that is not there.
func allocated(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return s.Blocks * 512
}

// freeLocked is what can be granted now. A host that cannot be asked has
// nothing; the next look may find more.
func (m *Manager) freeLocked() int64 {
	free := m.capacity - m.granted
	if free <= 0 {
		return 0
	}
	host, err := m.store.carry(m.volumes)
	if err != nil {
		m.o.Log.Error("cannot read the free space of the file system", "dir", m.store.name(), "error", err)
		return 0
	}
	return min(free, host)
}

// reserveLocked takes bytes from the pool for v, before its file is touched.
func (m *Manager) reserveLocked(v *volume, size int64) {
	if size == v.size {
		return
	}
	m.granted += size - v.size
	v.size = size
	v.changes++
	m.judgeLocked()
}

// wakeLocked lets every waiting request look again.
func (m *Manager) wakeLocked() {
	m.judgeLocked()
	close(m.changed)
	m.changed = make(chan struct{})
}
