package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// runDir is for what lives as long as the host is up: who manages a volume group, who
// has a volume open, the redo rings of images. All processes of a host must use the
// same, or they do not see each other's locks; so it is no option. Who builds it may
// choose another one, as the tests do: -ldflags "-X main.runDir=DIR".
var runDir = "/run/tidemark"

// redoDir is where the redo rings of images are kept: on a tmpfs that lives as
// long as the host is up, in a directory that is ours alone. "" means that there
// is none; then tables are written before each write completes.
func redoDir() string {
	candidates := []string{filepath.Join(runDir, "redo")} // root's
	if run := os.Getenv("XDG_RUNTIME_DIR"); run != "" {
		candidates = append(candidates, filepath.Join(run, "tidemark", "redo"))
	}
	candidates = append(candidates, fmt.Sprintf("/dev/shm/tidemark-%d", os.Getuid()))
	for _, dir := range candidates {
		if os.MkdirAll(dir, 0o700) == nil && ours(dir) {
			return dir
		}
	}
	return ""
}

// redoDirOf is where in dir the ring of the image in the storage called id is kept; ""
// means that there is no such place. A copy of an image that was open names the same
// ring, and must not find it: the ring is the other one's, who may be using it.
func redoDirOf(dir, id string) string {
	if dir == "" || id == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(dir, fmt.Sprintf("%x", sum[:16]))
}

// ours reports whether dir is a directory that nobody else may change.
func ours(dir string) bool {
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Mode().Perm()&0o077 != 0 {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Getuid()
}
