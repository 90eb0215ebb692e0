package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// deathVar is the environment variable with the directory in which a test plans the
// death of the pool manager. There is none in a program that is not built for that:
// -ldflags "-X main.deathVar=NAME".
var deathVar string

// plannedDeath is told of the points of tasks (see task.Options). While the directory
// has a file plan, with a number in it, that is counted down; at 0 the point's name is
// left in the file died, and the process kills itself, or another one whose number the
// plan has behind the first.
func plannedDeath() func(point string) {
	if deathVar == "" || os.Getenv(deathVar) == "" {
		return nil
	}
	dir := os.Getenv(deathVar)
	plan := filepath.Join(dir, "plan")
	var mu sync.Mutex // one point at a time
	return func(point string) {
		mu.Lock()
		defer mu.Unlock()
		text, err := os.ReadFile(plan)
		if err != nil {
			return
		}
		left, victim := 0, os.Getpid()
		if n, err := fmt.Sscan(string(text), &left, &victim); n == 0 {
			panic(err)
		}
		if left > 0 {
			if err := os.WriteFile(plan, fmt.Append(nil, left-1, victim), 0o600); err != nil {
				panic(err)
			}
			return
		}
		if err := os.WriteFile(plan, []byte(point), 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(plan, filepath.Join(dir, "died")); err != nil {
			panic(err)
		}
		_ = syscall.Kill(victim, syscall.SIGKILL)
		if victim == os.Getpid() {
			select {}
		}
	}
}

// plannedStop is told by a worker how far its job is, in bytes. While the directory of
// deathVar has a file stop with so many bytes in it, the worker leaves its number in the
// file stopped, and stops: whoever has planned that looks around and kills it.
func plannedStop() func(done int64) {
	if deathVar == "" || os.Getenv(deathVar) == "" {
		return nil
	}
	dir := os.Getenv(deathVar)
	plan := filepath.Join(dir, "stop")
	var mu sync.Mutex // one at a time
	return func(done int64) {
		mu.Lock()
		defer mu.Unlock()
		text, err := os.ReadFile(plan)
		if err != nil {
			return
		}
		at := int64(0)
		if _, err := fmt.Sscan(string(text), &at); err != nil {
			panic(err)
		}
		if done < at {
			return
		}
		if err := os.WriteFile(plan, fmt.Append(nil, os.Getpid()), 0o600); err != nil {
			panic(err)
		}
		if err := os.Rename(plan, filepath.Join(dir, "stopped")); err != nil {
			panic(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
	}
}
