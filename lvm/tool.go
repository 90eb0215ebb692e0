package lvm

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultLockDir is where LVM keeps the locks of its groups, so that the
// commands of an administrator and ours exclude each other.
const DefaultLockDir = "/run/lock/lvm"

// ToolOptions say how commands are run. Devices and Dir are required.
type ToolOptions struct {
	// Devices are the only devices that commands look at.
	Devices []string
	// Dir is a directory for the lvm.conf of the commands; it is made when it
	// is not there.
	Dir string
	// LockDir is LVM's directory of locks. Default: DefaultLockDir.
	LockDir string

	// Run runs lvm with args, and returns its standard output. Its error is an
	// *Error if the command ran and failed. Default: a process.
	Run func(ctx context.Context, args []string) (stdout []byte, err error)
	// Flush makes what was written to a device durable. Default: fsync.
	Flush func(device string) error
}

// A Tool runs the commands of LVM on a set of devices.
type Tool struct{ o ToolOptions }

// NewTool finds lvm and writes its configuration.
func NewTool(o ToolOptions) (*Tool, error) {
	if len(o.Devices) == 0 {
		return nil, errors.New("lvm: which devices? expected at least one that a group lies on")
	}
	for _, d := range o.Devices {
		if !filepath.IsAbs(d) || strings.Contains(d, ",") {
			return nil, fmt.Errorf("lvm: device %q: expected an absolute path without a comma", d)
		}
	}
	o.LockDir = cmp.Or(o.LockDir, DefaultLockDir)
	if strings.ContainsAny(o.LockDir, "\"\\\n") {
		return nil, fmt.Errorf("lvm: lock directory %q contains a quote, a backslash or a line end", o.LockDir)
	}
	if o.Run == nil {
		if err := configure(o); err != nil {
			return nil, fmt.Errorf("lvm: %w", err)
		}
		p, err := newProcess(o.Dir)
		if err != nil {
			return nil, err
		}
		o.Run = p.run
	}
	if o.Flush == nil {
		o.Flush = flushDevice
	}
	return &Tool{o}, nil
}

// configure writes the configuration, whole or not at all.
func configure(o ToolOptions) error {
	if !filepath.IsAbs(o.Dir) {
		return fmt.Errorf("directory of its configuration is %q, expected an absolute path", o.Dir)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	_, err := os.Stat("/run/udev/control")
	path := filepath.Join(o.Dir, "lvm.conf")
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, []byte(configText(o.LockDir, err == nil)), 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// metadata runs a command that changes or reads metadata and leaves
// device-mapper alone, on hosts that have it too.
func (t *Tool) metadata(ctx context.Context, verb string, args ...string) ([]byte, error) {
	return t.run(ctx, verb, append([]string{"--driverloaded", "n"}, args...))
}

// activation runs a command that speaks to device-mapper.
func (t *Tool) activation(ctx context.Context, verb string, args ...string) error {
	_, err := t.run(ctx, verb, args)
	return err
}

func (t *Tool) run(ctx context.Context, verb string, args []string) ([]byte, error) {
	return t.o.Run(ctx, append([]string{verb, "--devices", strings.Join(t.o.Devices, ",")}, args...))
}

// An Error is a command that ran and failed.
type Error struct {
	Args   []string // without the program's name
	Status int      // the exit status; -1 if a signal ended it
	Stderr string
	err    error
}

func (e *Error) Error() string {
	how := fmt.Sprintf("exit status %d", e.Status)
	if e.Status < 0 && e.err != nil {
		how = e.err.Error()
	}
	s := "lvm " + strings.Join(e.Args, " ") + ": " + how
	if why := e.reason(); why != "" {
		s += ": " + why
	}
	return s
}

// Unwrap returns why a signal ended the command: its context, for example.
func (e *Error) Unwrap() error { return e.err }

// reason is what the command said, without its warnings: two of them come with
// every command, whatever happens.
func (e *Error) reason() string {
	var kept []string
	for line := range strings.Lines(e.Stderr) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "WARNING:") {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "; ")
}

// A process runs lvm as a child.
type process struct {
	path string
	env  []string
}

// killAfter is how long a command may take to end after it was asked to.
const killAfter = 5 * time.Second

func newProcess(dir string) (*process, error) {
	path, err := exec.LookPath("lvm")
	if err != nil {
		// The path of a service or a user may lack the directories of root's.
		for _, p := range []string{"/usr/sbin/lvm", "/sbin/lvm"} {
			if _, serr := os.Stat(p); serr == nil {
				path, err = p, nil
				break
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the program lvm is not installed (Debian: apt-get install lvm2): %w", err)
	}
	return &process{path: path, env: []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/nonexistent",
		"LVM_SYSTEM_DIR=" + dir, "LVM_SUPPRESS_FD_WARNINGS=1",
	}}, nil
}

func (p *process) run(ctx context.Context, args []string) ([]byte, error) {
	// The death signal is that of the thread which forked: the thread must live
	// as long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var stdout, stderr bytes.Buffer
	c := exec.CommandContext(ctx, p.path, args...)
	c.Env, c.Stdout, c.Stderr = p.env, &stdout, &stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = killAfter
	err := c.Run()
	if err == nil {
		return stdout.Bytes(), nil
	}
	if c.ProcessState == nil {
		return nil, fmt.Errorf("lvm %s: %w", strings.Join(args, " "), err)
	}
	e := &Error{Args: args, Status: c.ProcessState.ExitCode(), Stderr: stderr.String()}
	if e.Status < 0 || ctx.Err() != nil {
		e.err = cmp.Or(context.Cause(ctx), err)
	}
	return nil, e
}

// flushDevice makes what was written to a device durable, past the cache of a
// file below it and the one of a disk.
func flushDevice(device string) error {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
