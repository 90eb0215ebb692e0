package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ownLog is where the times of lvm's commands are noted, beside the link to this
// program that is called lvm: a line for each, in nanoseconds.
const ownLog = "times"

// timeLVM is this program where lvm is expected: it runs lvm, and notes how long that
// took.
func timeLVM() int {
	path, err := exec.LookPath("lvm") // of the manager's choice, without our directory
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	c := exec.Command(path, os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	began := time.Now()
	err = c.Run()
	took := time.Since(began)
	f, ferr := os.OpenFile(filepath.Join(filepath.Dir(os.Args[0]), ownLog), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if ferr == nil {
		_, ferr = fmt.Fprintf(f, "%d\n", took.Nanoseconds())
		_ = f.Close()
	}
	if ferr != nil {
		fmt.Fprintln(os.Stderr, ferr)
		return 126
	}
	if err != nil && c.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 127
	}
	return c.ProcessState.ExitCode()
}

// An lvmTime is what lvm has taken for some operations.
type lvmTime struct {
	commands, operations int
	took                 time.Duration
}

// in adds it to a cell.
func (t lvmTime) in(c cell) cell {
	if t.commands > 0 {
		c.LVMCommands = float64(t.commands) / float64(t.operations)
		c.LVM = millis(t.took / time.Duration(t.operations))
	}
	return c
}

// lvmSince adds what was noted since it was called last, for a number of operations.
// Without a log there is nothing.
func (s *site) lvmSince(t lvmTime, operations int) (lvmTime, error) {
	if s.own == "" {
		return t, nil
	}
	path := filepath.Join(s.own, ownLog)
	text, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return t, nil
	}
	if err != nil {
		return t, err
	}
	for line := range strings.Lines(string(text[s.read:])) {
		var ns int64
		if _, err := fmt.Sscan(line, &ns); err != nil {
			return t, fmt.Errorf("%s: %q: %w", path, line, err)
		}
		t.commands++
		t.took += time.Duration(ns)
	}
	t.operations += operations
	s.read = len(text)
	return t, nil
}

// linkLVM makes a directory with a program as lvm: this one, if none is named.
func linkLVM(work, program string) (string, error) {
	dir, err := os.MkdirTemp(work, "lvm-")
	if err == nil && program == "" {
		program, err = os.Executable()
	}
	if err != nil {
		return "", err
	}
	return dir, os.Symlink(program, filepath.Join(dir, "lvm"))
}
