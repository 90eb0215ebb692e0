// Command agent is the first and only program of a test's guest: it is what the
// kernel starts as /init. It makes the file systems of the kernel appear, loads
// the modules that lie in /modules in the order of their names, and then does
// what the test asks for over the second serial port (package wire), until it is
// asked to power off. It knows nothing of what is tested.
//
// It is linked statically, so that a guest needs nothing but it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"tidemark/internal/testenv/guest/wire"
)

// port is the serial port on which the test speaks. The first one is the console.
const port = "/dev/ttyS1"

func main() {
	// A first program that ends is a panic of the kernel, which ends the guest.
	fmt.Println("agent:", serve())
}

// serve returns only what went wrong.
func serve() error {
	if err := prepare(); err != nil {
		return err
	}
	line, err := openPort()
	if err != nil {
		return err
	}
	a := &agent{out: json.NewEncoder(line), started: map[string]*exec.Cmd{}}
	if err := a.out.Encode(wire.Reply{Done: true}); err != nil {
		return err
	}
	in := bufio.NewReader(line)
	for {
		b, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("read a request: %w", err)
		}
		var r wire.Request
		if err := json.Unmarshal(b, &r); err != nil {
			return fmt.Errorf("request %q: %w", b, err)
		}
		if err := a.out.Encode(a.do(r)); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// prepare makes of a bare kernel what programs expect.
func prepare() error {
	for _, m := range []struct{ kind, dir string }{
		{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/dev/shm"}, {"tmpfs", "/run"}, {"tmpfs", "/tmp"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, dir := range []string{"/run/lock/lvm", "/mnt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for name, value := range map[string]string{"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/tmp"} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}
	return loadModules("/modules")
}

func loadModules(dir string) error {
	files, err := filepath.Glob(dir + "/*.ko") // sorted
	if err != nil {
		return err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close() // only read
		if err != nil {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// openPort opens the port for bytes as they are.
func openPort() (*os.File, error) {
	f, err := os.OpenFile(port, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	// As cfmakeraw(3) does, with blocking reads of what there is.
	raw := unix.Termios{Cflag: unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200}
	raw.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, &raw); err != nil {
		return nil, fmt.Errorf("make %s raw: %w", port, err)
	}
	return f, nil
}

// An agent does what it is asked for.
type agent struct {
	out     *json.Encoder
	started map[string]*exec.Cmd // by process number, those that were not stopped
}

// do does one thing and says how it ended.
func (a *agent) do(r wire.Request) wire.Reply {
	op, known := map[string]struct {
		least int // arguments
		do    func([]string) (string, error)
	}{
		wire.Run:        {1, run},
		wire.Start:      {1, a.start},
		wire.Stop:       {2, a.stop},
		wire.Await:      {1, await},
		wire.Fill:       {2, a.fill},
		wire.Remove:     {1, remove},
		wire.Network:    {1, network},
		wire.Connect:    {5, connect},
		wire.Disconnect: {1, disconnect},
		wire.PowerOff:   {0, powerOff},
	}[r.Op]
	if !known || len(r.Args) < op.least {
		return wire.Reply{Done: true, Error: fmt.Sprintf("%q with %d arguments: not known, or too few", r.Op, len(r.Args))}
	}
	output, err := op.do(r.Args)
	reply := wire.Reply{Done: true, Output: output}
	if err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// tell says how far a request is.
func (a *agent) tell(progress int) error { return a.out.Encode(wire.Reply{Progress: progress}) }

func powerOff([]string) (string, error) {
	unix.Sync()
	return "", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
