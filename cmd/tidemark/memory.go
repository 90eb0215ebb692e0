package main

import (
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
)

// A memoryBudget is how the memory of this process is shared out. Its zero value
// leaves everything as it is.
type memoryBudget struct {
	limit int64 // what the process may take, bytes; 0: no limit
}

// Shares of the limit. The rest is for goroutines, requests that wait, and the
// page cache that the kernel counts as ours.
const (
	collectShare  = 3.0 / 4 // from there on the collector works harder
	requestsShare = 1.0 / 4
	cachesShare   = 1.0 / 8
	cacheMin      = 1 << 20
)

// respectMemory finds out what the process may take (systemd's MemoryMax=), and
// lets the runtime keep to it, unless GOMEMLIMIT says otherwise.
func respectMemory(log *slog.Logger) memoryBudget {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return memoryBudget{}
	}
	b := memoryBudget{limit: memoryLimit(os.DirFS("/sys/fs/cgroup"), string(self))}
	if b.limit == 0 {
		return b
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(float64(b.limit) * collectShare))
	}
	log.Debug("memory is limited", "bytes", b.limit)
	return b
}

// requests is what the requests in progress may take together; 0: as usual.
func (b memoryBudget) requests() int64 { return int64(float64(b.limit) * requestsShare) }

// cache is what each of the two caches of each of n images may take; 0: as usual.
func (b memoryBudget) cache(n int) int64 {
	if b.limit == 0 {
		return 0
	}
	return max(int64(float64(b.limit)*cachesShare)/int64(2*max(n, 1)), cacheMin)
}

// cgroupFiles are where the memory limit of a control group is, by the name of
// its hierarchy's controller: version 2, where there is none, and version 1.
var cgroupFiles = map[string]struct{ dir, file string }{
	"":       {"", "memory.max"},
	"memory": {"memory", "memory.limit_in_bytes"},
}

// memoryLimit is the smallest limit of the process's control groups and of those
// that they are in, 0 if there is none. self is /proc/self/cgroup, sys is
// /sys/fs/cgroup.
func memoryLimit(sys fs.FS, self string) int64 {
	least := int64(math.MaxInt64)
	for line := range strings.Lines(self) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // number, controllers, path
		if len(f) != 3 {
			continue
		}
		where, ok := cgroupFiles[f[1]]
		if !ok {
			continue
		}
		for dir := path.Clean("/" + f[2]); ; dir = path.Dir(dir) {
			least = min(least, limitIn(sys, strings.TrimPrefix(path.Join(where.dir, dir, where.file), "/")))
			if dir == "/" {
				break
			}
		}
	}
	if least >= noLimit {
		return 0
	}
	return least
}

// noLimit is more than any machine has; version 1 writes a number like that where
// version 2 writes max.
const noLimit = 1 << 50

func limitIn(sys fs.FS, name string) int64 {
	text, err := fs.ReadFile(sys, name)
	if err != nil {
		return math.MaxInt64
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil || n <= 0 {
		return math.MaxInt64
	}
	return n
}
