package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// An arm is a server with its options.
type arm struct {
	name string
	qemu bool
	raw  bool // it serves a raw file, without a format
	bare bool // nobody serves that file: the client writes it itself
	at   place
	args func(b bed) []string
}

// A bed is where a server finds its image and puts its socket, or its file.
type bed struct {
	image, backing, socket string
	part                   part  // on LVM: QEMU's
	pool                   *pool // on LVM: ours
}

// allArms are the servers, whether they are here or not.
func allArms(tidemark string) []arm {
	return []arm{
		{name: "tidemark", args: func(b bed) []string {
			args := []string{tidemark, "nbd", "-f", "qcow2", "-t", "-e", "8", "-k", b.socket}
			if b.backing != "" {
				args = append(args, "--backing", "raw:"+b.backing)
			}
			return append(args, b.image)
		}},
		qemuNBD("threads"), qemuNBD("io_uring"),
		{name: "qemu-storage-daemon", qemu: true, args: func(b bed) []string {
			return []string{"qemu-storage-daemon",
				"--blockdev", "driver=file,node-name=f,filename=" + b.image + ",discard=unmap,aio=io_uring",
				"--blockdev", "driver=qcow2,node-name=q,file=f,discard=unmap",
				"--nbd-server", "addr.type=unix,addr.path=" + b.socket + ",max-connections=8",
				"--export", "type=nbd,id=e,node-name=q,name=,writable=on"}
		}},
		nbdkitFile(1), nbdkitFile(4), nbdkitFile(16), pwriteFile,
		{name: ours + ", mount", at: mounted, args: func(b bed) []string {
			return []string{tidemark, "mount", b.image, b.socket}
		}},
		{name: "qemu-storage-daemon, fuse", qemu: true, at: mounted, args: func(b bed) []string {
			return []string{"qemu-storage-daemon",
				"--blockdev", "driver=file,node-name=f,filename=" + b.image + ",discard=unmap,aio=io_uring",
				"--blockdev", "driver=qcow2,node-name=q,file=f,discard=unmap",
				"--export", "type=fuse,id=e,node-name=q,mountpoint=" + b.socket + ",writable=on"}
		}},
		{name: ours + ", LVM", at: onLVM, args: func(b bed) []string {
			spm := "SPM"
			if b.pool != nil {
				spm = b.pool.socket
			}
			return []string{tidemark, "nbd", "-t", "-e", "8", "-k", b.socket, "--spm", spm, "disk"}
		}},
		qemuLVM("native"), qemuLVM("io_uring"), qemuLVM("threads"),
	}
}

// arms are the servers that there are here; missing says which are not, and why.
func arms(tidemark string) (list []arm, missing []string) {
	for _, a := range allArms(tidemark) {
		if a.bare {
			list = append(list, a)
			continue
		}
		program := a.args(bed{})[0]
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", a.name, err))
			continue
		}
		list = append(list, a)
	}
	return list, missing
}

// here looks for something a cell needs: a program, a file by its path, or "root".
func here(need string) error {
	switch {
	case need == "root" && os.Geteuid() != 0:
		return fmt.Errorf("root is needed, found the user %d", os.Geteuid())
	case need == "root":
		return nil
	case filepath.IsAbs(need):
		_, err := os.Stat(need)
		return err
	}
	_, err := exec.LookPath(need)
	return err
}

// possible are the cells of which look finds all that they need; missing says which are
// not, and why.
func possible(list []cell, look func(need string) error) (rest []cell, missing []string) {
	for _, c := range list {
		var errs []string
		for _, need := range c.needs() {
			if err := look(need); err != nil {
				errs = append(errs, err.Error())
			}
		}
		if len(errs) == 0 {
			rest = append(rest, c)
		} else {
			missing = append(missing, fmt.Sprintf("the cell %q: %s", c.name, strings.Join(errs, "; ")))
		}
	}
	return rest, missing
}

func qemuNBD(aio string) arm {
	return arm{name: "qemu-nbd, " + aio, qemu: true, args: func(b bed) []string {
		return []string{"qemu-nbd", "-f", "qcow2", "-t", "-e", "8", "--aio", aio, "--cache", "writeback", "--discard", "unmap", "-k", b.socket, b.image}
	}}
}

func qemuLVM(aio string) arm {
	return arm{name: "qemu-nbd, LVM, " + aio, qemu: true, at: onLVM, args: func(b bed) []string {
		return []string{"qemu-nbd", "-t", "-e", "8", "-k", b.socket, "--image-opts", b.part.options(aio)}
	}}
}

func nbdkitFile(threads int) arm {
	return arm{name: fmt.Sprintf("nbdkit, raw file, %d threads", threads), raw: true, args: func(b bed) []string {
		return []string{"nbdkit", "-f", "-t", strconv.Itoa(threads), "-U", b.socket, "file", b.image}
	}}
}

// pwriteFile is a loop of pwrite on the raw file, in the client's own process: what the
// kernel alone takes for the same writes, FLUSH and end.
var pwriteFile = arm{name: rawFile, raw: true, bare: true}

// ours reports whether the arm is Tidemark.
func (a arm) ours() bool { return a.peer() == "" }

// peer is the name under which targets speak of an arm; "" for none.
func (a arm) peer() string {
	switch {
	case a.qemu:
		return bestQEMU
	case a.bare:
		return rawFile
	case a.raw:
		return nbdkit
	}
	return ""
}

// A server is an arm that runs.
type server struct {
	cmd *exec.Cmd // nil: nobody serves
	log strings.Builder
}

// start starts a server and waits for its socket, or its file.
func (a arm) start(ctx context.Context, b bed) (*server, error) {
	if a.bare {
		return &server{}, nil
	}
	if a.at == mounted {
		if err := os.WriteFile(b.socket, nil, 0o600); err != nil {
			return nil, err
		}
	}
	args := a.args(b)
	s := &server{cmd: exec.CommandContext(ctx, args[0], args[1:]...)}
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.WaitDelay = 10 * time.Second
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for range 1000 {
		if a.ready(b.socket) {
			return s, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, errors.Join(fmt.Errorf("%s did not make its socket in 10 s", a.name), s.stop(a))
}

// ready reports whether a file is mounted, or somebody listens at a socket: one that was
// only bound exists too.
func (a arm) ready(at string) bool {
	if a.at == mounted {
		st, err := os.Stat(at)
		return err == nil && st.Size() > 0
	}
	c, err := net.Dial("unix", at)
	return err == nil && c.Close() == nil
}

// stop ends a server and waits for it.
func (s *server) stop(a arm) error {
	if s.cmd == nil {
		return nil
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) && exit.ExitCode() < 0 { // ended by the signal
		return nil
	}
	return fmt.Errorf("%s: %w: %s", a.name, err, s.log.String())
}

// cpu is the processor time that a server and its children have had.
func (s *server) cpu() time.Duration {
	if s.cmd == nil {
		return 0
	}
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(s.cmd.Process.Pid), "stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	ticks := int64(0)
	for _, i := range []int{11, 12, 13, 14} { // utime, stime, cutime, cstime: proc(5)
		if i < len(fields) {
			n, _ := strconv.ParseInt(fields[i], 10, 64)
			ticks += n
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}
