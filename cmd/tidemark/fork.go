package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// forkedVar tells a process that it is to go to the background when it is ready,
// and that readyFD is where to say so.
const (
	forkedVar = "TIDEMARK_FORKED"
	readyFD   = 3 // the first of exec.Cmd.ExtraFiles
	readyWord = "ready\n"
)

// isForked reports whether this process was started by fork.
func isForked() bool { return os.Getenv(forkedVar) != "" }

// fork runs this command line again, in a session of its own, and returns when
// that process is ready, as --fork of qemu-nbd does; Go cannot duplicate a process.
// Until then it shares our standard error, afterwards it has none. If it ends
// before, it has said why.
func fork() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("--fork: %w", err)
	}
	defer r.Close() //nolint:errcheck // only read
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), forkedVar+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return fmt.Errorf("--fork: %w", err)
	}
	said, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("--fork: wait until process %d is ready: %w", cmd.Process.Pid, err)
	}
	if strings.HasSuffix(string(said), readyWord) {
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{code: exit.ExitCode()} // it has told why
	}
	return fmt.Errorf("--fork: the process in the background ended before it was ready (%w)", err)
}

// forkReady tells the process that started this one with fork that it may go, and
// lets go of its terminal.
func forkReady() error {
	if !isForked() {
		return nil
	}
	if err := os.Unsetenv(forkedVar); err != nil {
		return err
	}
	ready := os.NewFile(readyFD, "ready")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("--fork: %w", err)
	}
	defer null.Close() //nolint:errcheck // nothing is kept
	if err := unix.Dup3(int(null.Fd()), int(os.Stderr.Fd()), 0); err != nil {
		return fmt.Errorf("--fork: close the standard error: %w", err)
	}
	_, err = ready.WriteString(readyWord)
	return errors.Join(err, ready.Close())
}
