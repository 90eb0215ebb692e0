package main

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// redoDir is where the redo rings of images are kept: on a tmpfs that lives as
// long as the host is up, in a directory that is ours alone. "" means that there
// is none; then tables are written before each write completes.
func redoDir() string {
	var candidates []string
	if os.Getuid() == 0 {
		candidates = append(candidates, "/run/tidemark/redo")
	}
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

// ours reports whether dir is a directory that nobody else may change.
func ours(dir string) bool {
	st, err := os.Lstat(dir)
	if err != nil || !st.IsDir() || st.Mode().Perm()&0o077 != 0 {
		return false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return ok && int(sys.Uid) == os.Getuid()
}
