package guest

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"tidemark/internal/testenv"
	"tidemark/internal/testenv/guest/wire"
)

// Options say what a guest has.
type Options struct {
	// Modules of the kernel, beside those for its disks.
	Modules []string
	// Programs of the host, found in PATH; each lies at the same path in the guest.
	Programs []string
	// Files of the host, by their path in the guest.
	Files map[string]string
	// Memory in MiB. Default: 512.
	Memory int
	// Args are more arguments of QEMU: disks and networks.
	Args []string
	// Deadline is when the guest is killed. Default: five minutes.
	Deadline time.Duration
}

// A Guest is one that runs.
type Guest struct {
	t       testing.TB
	proc    *testenv.Process
	conn    net.Conn
	replies chan wire.Reply // closed when the guest has ended
	began   time.Time
}

// Start boots a guest and returns when it does what it is asked for. A host that
// has no QEMU or no kernel for it skips the test.
func Start(t testing.TB, o Options) *Guest {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		testenv.Missing(t, "a host of the architecture amd64, whose programs the guest runs; this is %s", runtime.GOARCH)
	}
	qemu, k := testenv.Tool(t, "qemu-system-x86_64"), findKernel(t)
	o = o.withDefaults()
	dir, err := os.MkdirTemp("", "guest-") // a short path, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	makeInitramfs(t, filepath.Join(dir, "initramfs"), k, o)
	l, err := net.Listen("unix", filepath.Join(dir, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	cmd := testenv.Command(t, qemu, append([]string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,accel=tcg", "-cpu", "max", // max has RDRAND; without it the guest waits for entropy
		"-m", strconv.Itoa(o.Memory),
		"-kernel", k.image, "-initrd", filepath.Join(dir, "initramfs"),
		"-append", "console=ttyS0 panic=-1 quiet",
		"-serial", "stdio",
		"-chardev", "socket,id=agent,path=" + filepath.Join(dir, "agent"), "-serial", "chardev:agent",
	}, o.Args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	g := &Guest{t: t, replies: make(chan wire.Reply), began: time.Now()}
	g.proc = testenv.Start(t, cmd)
	kill := time.AfterFunc(o.Deadline, g.proc.Kill)
	t.Cleanup(func() { kill.Stop() })
	g.accept(l)
	g.await("boot", nil)
	return g
}

func (o Options) withDefaults() Options {
	o.Modules = append([]string{"virtio_pci", "virtio_blk"}, o.Modules...)
	if o.Memory == 0 {
		o.Memory = 512
	}
	if o.Deadline == 0 {
		o.Deadline = 5 * time.Minute
	}
	return o
}

// accept takes QEMU's connection, and reads it until it ends.
func (g *Guest) accept(l net.Listener) {
	g.t.Helper()
	go func() {
		<-g.proc.Done()
		_ = l.Close() // nobody will connect any more
	}()
	var err error
	if g.conn, err = l.Accept(); err != nil {
		g.t.Fatalf("QEMU has ended before it connected (%v)\n%s", err, g.proc.Output())
	}
	g.t.Cleanup(func() { _ = g.conn.Close() })
	go func() {
		defer close(g.replies)
		in := json.NewDecoder(bufio.NewReader(g.conn))
		for {
			var r wire.Reply
			if in.Decode(&r) != nil {
				return
			}
			select {
			case g.replies <- r:
			case <-g.proc.Done():
				return
			}
		}
	}()
}

// Run runs a program in the guest to its end and returns its output. A program
// that fails fails the test.
func (g *Guest) Run(program string, args ...string) string {
	g.t.Helper()
	return g.Do(wire.Run, append([]string{program}, args...)...)
}

// Start starts a program that goes on beside what is asked for next, and returns
// its process number.
func (g *Guest) Start(program string, args ...string) string {
	g.t.Helper()
	return g.Do(wire.Start, append([]string{program}, args...)...)
}

// Stop asks a program that was started to end, with SIGTERM, and waits for it. It
// must say that all is well.
func (g *Guest) Stop(pid string) {
	g.t.Helper()
	g.Do(wire.Stop, pid, strconv.Itoa(int(syscall.SIGTERM)))
}

// Try runs a program that may fail, and returns its output and what went wrong.
func (g *Guest) Try(program string, args ...string) (output, failed string) {
	g.t.Helper()
	g.ask(wire.Run, append([]string{program}, args...))
	r := g.answer(program, nil)
	return r.Output, r.Error
}

// Do asks the agent for one thing and returns its output.
func (g *Guest) Do(op string, args ...string) string {
	g.t.Helper()
	return g.Watch(nil, op, args...)
}

// Fill writes a tree of files below a directory of the guest. watch, which may be
// nil, is told how many are written, and the guest goes on meanwhile.
func (g *Guest) Fill(dir string, tree wire.Tree, watch func(files int)) {
	g.t.Helper()
	b, err := json.Marshal(tree)
	if err != nil {
		g.t.Fatal(err)
	}
	g.Watch(watch, wire.Fill, dir, string(b))
}

// Remove removes a file or directory of the guest.
func (g *Guest) Remove(path string) {
	g.t.Helper()
	g.Do(wire.Remove, path)
}

// Watch is Do with somebody who is told how far it is.
func (g *Guest) Watch(watch func(int), op string, args ...string) string {
	g.t.Helper()
	g.ask(op, args)
	return g.await(strings.Join(append([]string{op}, args[:min(len(args), 2)]...), " "), watch)
}

func (g *Guest) ask(op string, args []string) {
	g.t.Helper()
	if err := json.NewEncoder(g.conn).Encode(wire.Request{Op: op, Args: args}); err != nil {
		g.t.Fatalf("ask the guest for %s: %v\n%s", op, err, g.proc.Output())
	}
}

// await is the output of what was asked for, which must have succeeded.
func (g *Guest) await(what string, watch func(int)) string {
	g.t.Helper()
	began := time.Now()
	r := g.answer(what, watch)
	if r.Error != "" {
		g.t.Fatalf("guest: %s: %s\n%s\n--- console\n%s", what, r.Error, r.Output, g.proc.Output())
	}
	g.t.Logf("guest: %s: %v", what, time.Since(began).Round(10*time.Millisecond))
	return r.Output
}

// answer waits for the end of what was asked for.
func (g *Guest) answer(what string, watch func(int)) wire.Reply {
	g.t.Helper()
	for r := range g.replies {
		if r.Done {
			return r
		}
		if watch != nil {
			watch(r.Progress)
		}
	}
	g.t.Fatalf("guest: %s: it ended, or its deadline was over, after %v\n--- console\n%s",
		what, time.Since(g.began).Round(time.Second), g.proc.Output())
	return wire.Reply{}
}

// PowerOff switches the guest off and waits until it is.
func (g *Guest) PowerOff() {
	g.t.Helper()
	g.ask(wire.PowerOff, nil)
	if err := g.proc.Wait(g.t, 30*time.Second); err != nil {
		g.t.Fatalf("QEMU at the end of the guest: %v\n%s", err, g.proc.Output())
	}
}

// Console is what the kernel and the guest's programs have printed.
func (g *Guest) Console() string { return g.proc.Output() }
