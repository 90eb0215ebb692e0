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

// allocated is what the file system has allocated for a file, in bytes; 0 for
// one that is not there.
func allocated(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0
	}
	return s.Blocks * 512
}

// hostFreeLocked is what the host's file system could carry beyond what is
// granted: what it has left, less what was promised to volumes and they have not
// used yet.
func (m *Manager) hostFreeLocked() (int64, error) {
	free, err := m.o.HostFree(m.dir)
	if err != nil {
		return 0, err
	}
	for _, v := range m.volumes {
		if owed := v.size - allocated(v.path); owed > 0 {
			free -= owed
		}
	}
	return max(free, 0), nil
}

// freeLocked is what can be granted now. A host that cannot be asked has
// nothing; the next look may find more.
func (m *Manager) freeLocked() int64 {
	free := m.capacity - m.granted
	if free <= 0 {
		return 0
	}
	host, err := m.hostFreeLocked()
	if err != nil {
		m.o.Log.Error("cannot read the free space of the file system", "dir", m.dir, "error", err)
		return 0
	}
	return min(free, host)
}

// reserveLocked takes bytes from the pool for v, before its file is touched.
func (m *Manager) reserveLocked(v *volume, size int64) {
	m.granted += size - v.size
	v.size = size
}

// wakeLocked lets every waiting request look again.
func (m *Manager) wakeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}
