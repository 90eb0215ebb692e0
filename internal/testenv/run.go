package testenv

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// runTimeout ends a child that hangs. Nothing that a test waits for takes so
// long on a machine that works.
const runTimeout = 60 * time.Second

// Command returns a command that is killed, with every process of its group,
// when the test ends. The caller sets it up and starts it.
func Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	return command(t.Context(), name, args...)
}

func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	ownGroup(cmd)
	cmd.Cancel = func() error { return killGroup(cmd) }
	cmd.WaitDelay = 5 * time.Second // a grandchild that left the group may keep the pipes open
	return cmd
}

// Run runs a program to its end and returns its standard output. A program that
// fails or takes longer than a minute fails the test with its standard error.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := Try(t, name, args...)
	if r.Err != nil {
		t.Fatalf("%s", r)
	}
	return r.Stdout
}

// A Result is what became of a program.
type Result struct {
	Command        string
	Stdout, Stderr string
	ExitCode       int   // -1: it did not start, or a signal ended it
	Err            error // nil for exit code 0
}

// String says what was run and how it ended.
func (r Result) String() string {
	how := "succeeded"
	if r.Err != nil {
		how = "failed: " + r.Err.Error()
	}
	return r.Command + "\n" + how + "\n--- stdout\n" + tail(r.Stdout) + "--- stderr\n" + tail(r.Stderr)
}

// Try runs a program to its end and returns how it ended.
func Try(t testing.TB, name string, args ...string) Result {
	t.Helper()
	return TryFor(t, runTimeout, name, args...)
}

// TryFor is Try with another limit than a minute.
func TryFor(t testing.TB, limit time.Duration, name string, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), limit, errors.New("it ran longer than "+limit.String()))
	defer cancel()
	cmd := command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	code := -1
	if cmd.ProcessState != nil {
		code = cmd.ProcessState.ExitCode()
	}
	return Result{
		Command: strings.Join(append([]string{name}, args...), " "),
		Stdout:  stdout.String(), Stderr: stderr.String(), ExitCode: code, Err: err,
	}
}

// A Process is a program that runs beside the test.
type Process struct {
	Cmd    *exec.Cmd
	output syncBuffer
	done   chan struct{}
	err    error // valid after done
}

// Start starts a command made by Command. Whatever happens, it and its process
// group are gone when the test ends; if the test failed, its output is logged.
func Start(t testing.TB, cmd *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Cmd: cmd, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = &p.output
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &p.output
	}
	ownGroup(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", strings.Join(cmd.Args, " "), err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s\n%s", strings.Join(cmd.Args, " "), tail(p.Output()))
		}
	})
	return p
}

// Kill sends SIGKILL to the process group and waits for the process.
func (p *Process) Kill() {
	_ = killGroup(p.Cmd) // gone already: good
	<-p.done
}

// Signal sends a signal to the process alone.
func (p *Process) Signal(sig os.Signal) error { return p.Cmd.Process.Signal(sig) }

// Wait waits until the process has ended by itself and returns how; a process
// that takes longer than limit fails the test.
func (p *Process) Wait(t testing.TB, limit time.Duration) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		t.Fatalf("%s: still running after %v\n%s", strings.Join(p.Cmd.Args, " "), limit, tail(p.Output()))
		return nil
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Output is what it wrote so far to the standard output and standard error
// that the caller did not set.
func (p *Process) Output() string { return p.output.String() }

// Eventually polls cond until it is true: for the state of another process,
// which no channel can tell. In-process tests use channels or testing/synctest.
func Eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// tail keeps the end of long output, where the reason usually stands.
func tail(s string) string {
	const keep = 8 << 10
	if len(s) > keep {
		s = "[...]" + s[len(s)-keep:]
	}
	if s != "" && !strings.HasSuffix(s, "\n") {
		s += "\n"
	}
	return s
}

// syncBuffer is a buffer that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
