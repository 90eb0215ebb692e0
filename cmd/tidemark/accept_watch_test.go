//go:build linux

package main_test

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"tidemark/internal/testenv"
)

// imageState runs qemu-img check and returns its exit code: 0 clean, 2
// corrupt, 3 leaks.
func imageState(t testing.TB, path string) testenv.Result {
	t.Helper()
	return testenv.Try(t, testenv.Tool(t, "qemu-img"), "check", "-f", "qcow2", path)
}

func requireClean(t testing.TB, path string) {
	t.Helper()
	r := imageState(t, path)
	require.Zero(t, r.ExitCode, "%s", r)
}

func fileLength(t testing.TB, path string) int64 {
	t.Helper()
	st, err := os.Stat(path)
	require.NoError(t, err)
	return st.Size()
}

// dataBytes counts what the file system says is data in the file.
func dataBytes(f *os.File) (total int64, err error) {
	for off := int64(0); ; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return total, nil
		}
		if err != nil {
			return 0, err
		}
		if off, err = unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE); err != nil {
			return 0, err
		}
		total += off - data
	}
}

// every calls do again and again, with a pause in between, until the function
// that it returns is called; do's first error ends it and is returned there.
func every(t testing.TB, pause time.Duration, do func() error) (stop func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		ticker := time.NewTicker(pause)
		defer ticker.Stop()
		for {
			if err := do(); err != nil {
				result <- err
				return
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
				result <- nil
				return
			}
		}
	}()
	stop = sync.OnceValue(func() error {
		cancel()
		return <-result
	})
	t.Cleanup(func() { _ = stop() })
	return stop
}

// A lengthLog records how the length of a file changes.
type lengthLog struct {
	path string
	// changed gets a value, if there is room, whenever the file has grown.
	changed chan int64

	mu    sync.Mutex // guards steps
	steps []int64    // the first length, then each different one
}

// watchLength looks at the length of a file every pause.
func watchLength(t testing.TB, path string, pause time.Duration) (l *lengthLog, stop func() error) {
	l = &lengthLog{path: path, changed: make(chan int64, 1)}
	return l, every(t, pause, l.look)
}

func (l *lengthLog) look() error {
	st, err := os.Stat(l.path)
	if err != nil {
		return err
	}
	n := st.Size()
	l.mu.Lock()
	defer l.mu.Unlock()
	last := len(l.steps) - 1
	if last >= 0 && l.steps[last] == n {
		return nil
	}
	l.steps = append(l.steps, n)
	if last >= 0 {
		select {
		case l.changed <- n:
		default:
		}
	}
	return nil
}

// Lengths returns what was seen so far.
func (l *lengthLog) Lengths() []int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]int64(nil), l.steps...)
}

// requireGrowth requires that lengths only rise, by whole chunks or to the
// bound.
func requireGrowth(t testing.TB, lengths []int64, bound int64) {
	t.Helper()
	for i, n := range lengths {
		if i > 0 {
			require.Greater(t, n, lengths[i-1], "lengths %v", lengths)
		}
		require.LessOrEqual(t, n, bound, "lengths %v", lengths)
		require.True(t, n%chunk == 0 || n == bound, "length %d is no multiple of %d and not the bound %d", n, chunk, bound)
	}
}
