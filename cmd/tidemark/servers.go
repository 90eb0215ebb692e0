package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/internal/block"
	"tidemark/spm"
)

// imageServers starts what serves images for the pool manager, and finds it again. Each
// image has a directory, of which only what answers on the control socket in it is
// believed; the rest may be anybody's remains:
//
//	DIR/<image>/nbd.sock      for the guest
//	DIR/<image>/control.sock  appears when everything is ready
//	DIR/<image>/log           what the server has said
//	DIR/<image>/failure       why it has failed
//
// A server is a process in a session of its own, so that it outlives the manager. What
// is ended is the process at the other end of the control socket, and no other.
type imageServers struct {
	spm  string   // socket of the manager, which the servers ask
	dir  string   // "" is images/ in the directory of what lives as long as the host is up
	noDM bool     // do not use device-mapper, although it is there
	env  []string // of the servers, besides ours
	log  *slog.Logger

	starting sync.Mutex // one start at a time, so that nobody removes what another makes
}

var _ spm.ImageServers = (*imageServers)(nil)

// How long a server may take to be ready and to end, how often it is looked, and how long
// one that is there may take to say what it serves while others wait to be started.
const (
	serverAnswer = 5 * time.Second
	serverStart  = 60 * time.Second
	serverStop   = 60 * time.Second
	serverLook   = 20 * time.Millisecond
	serverDies   = 100 // looks, until one that is ending has ended
)

func (s *imageServers) of(image string) string {
	return filepath.Join(cmp.Or(s.dir, filepath.Join(runDir, "images")), image)
}

func (s *imageServers) client(image string) controlClient {
	return controlClient{filepath.Join(s.of(image), "control.sock")}
}

// Find is described at spm.ImageServers, as the other methods are.
func (s *imageServers) Find(ctx context.Context, image string) (spm.Server, error) {
	c := s.client(image)
	state, err := c.State(ctx)
	for n := 0; dies(err) && n < serverDies && sleep(ctx, serverLook); n++ {
		state, err = c.State(ctx)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return spm.Server{}, fmt.Errorf("nobody serves image %s: %w", image, fs.ErrNotExist)
	}
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (%s)", err, c.who())
		}
		return spm.Server{}, err
	}
	return serverOf(image, c.socket, s.spm, state)
}

// dies reports whether an error is that of a server that ends while it is asked. In a moment
// nobody answers any more.
func dies(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// sleep reports whether ctx lasts for d.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// serverOf says in the terms of the manager on a socket what a server has told.
func serverOf(image, control, manager string, state controlState) (spm.Server, error) {
	if len(state.Exports) != 1 {
		return spm.Server{}, fmt.Errorf("who answers on %s serves %d disks: expected one", control, len(state.Exports))
	}
	x := state.Exports[0]
	return spm.Server{
		Domain: x.Domain, Image: image, Leaf: x.Leaf, End: x.End, ReadOnly: x.ReadOnly, Socket: state.Address, Control: control, PID: state.PID,
		Foreign: state.Manager != "" && state.Manager != manager,
		URI:     (&url.URL{Scheme: "nbd+unix", Path: "/", RawQuery: "socket=" + state.Address}).String(),
		Used:    x.Used, Size: x.Size, Merge: x.Merge.State, MergeError: x.Merge.Error, MergeDone: x.Merge.Done, MergeTotal: x.Merge.Total,
	}, nil
}

// Start is described at spm.ImageServers.
func (s *imageServers) Start(ctx context.Context, v spm.Serve) (spm.Server, error) {
	s.starting.Lock()
	defer s.starting.Unlock()
	asked, cancel := context.WithTimeout(ctx, serverAnswer)
	have, err := s.Find(asked, v.Image)
	cancel()
	switch {
	case err == nil && v.Domain != "" && have.Domain != "" && have.Domain != v.Domain:
		return have, fmt.Errorf("image %s is served by process %d, out of domain %s, and of the copies of an image one is served at a time: stop that first: %w",
			v.Image, have.PID, have.Domain, block.ErrInUse)
	case err == nil && have.Leaf == v.Leaf && have.ReadOnly == v.ReadOnly:
		return have, nil
	case err == nil:
		return have, fmt.Errorf("image %s is served by process %d, with leaf %s (read only: %t): stop it first: %w",
			v.Image, have.PID, have.Leaf, have.ReadOnly, block.ErrInUse)
	case !errors.Is(err, fs.ErrNotExist):
		return have, err
	}
	if v.Image == "" || strings.ContainsAny(v.Image, "/\x00") || v.Image[0] == '.' || v.Leaf == "" || v.Leaf[0] == '-' {
		return have, fmt.Errorf("serve volume %q of image %q: expected UUIDs", v.Leaf, v.Image)
	}
	dir := s.of(v.Image)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o700)); err != nil {
		return have, err
	}
	ended, err := s.launch(v, dir)
	if err != nil {
		return have, fmt.Errorf("serve image %s: %w", v.Image, err)
	}
	return s.await(ctx, v, dir, ended)
}

// launch starts the process. The channel is closed when it has ended.
func (s *imageServers) launch(v spm.Serve, dir string) (<-chan struct{}, error) {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() //nolint:errcheck // the server has its own
	args := []string{"nbd", "-t", "--spm", s.spm, "--domain", v.Domain, "--control", filepath.Join(dir, "control.sock"), "-k", filepath.Join(dir, "nbd.sock"),
		"--failure", filepath.Join(dir, "failure")}
	if v.ReadOnly {
		args = append(args, "-r")
	}
	if v.AllowIllegal {
		args = append(args, "--allow-illegal")
	}
	if s.noDM {
		args = append(args, "--unsafe-no-dm")
	}
	c := exec.Command("/proc/self/exe", append(args, v.Leaf)...)
	c.Args[0] = "tidemark"
	c.Env = s.environ()
	c.Stdout, c.Stderr = log, log
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return nil, err
	}
	ended := make(chan struct{})
	go func() {
		_ = c.Wait() // what it has said is in the log
		close(ended)
	}()
	return ended, nil
}

// environ is ours, without what a service manager has told this process alone.
func (s *imageServers) environ() []string {
	own := []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(own, name)
	})
	return append(env, s.env...)
}

// await waits until the server is ready.
func (s *imageServers) await(ctx context.Context, v spm.Serve, dir string, ended <-chan struct{}) (spm.Server, error) {
	ctx, cancel := context.WithTimeout(ctx, serverStart)
	defer cancel()
	for {
		have, err := s.Find(ctx, v.Image)
		if err == nil {
			if s.log != nil {
				s.log.Info("an image is served", "image", v.Image, "leaf", v.Leaf, "process", have.PID, "socket", have.Socket)
			}
			return have, nil
		}
		select {
		case <-time.After(serverLook):
		case <-ended:
			return have, fmt.Errorf("serve image %s: the server ended before it was ready: %w", v.Image, failureOf(dir))
		case <-ctx.Done():
			return have, fmt.Errorf("serve image %s: the server is not ready: %w; see %s", v.Image, context.Cause(ctx), filepath.Join(dir, "log"))
		}
	}
}

// writeFailure tells who has started this process what kind of error it ends with.
func writeFailure(path string, err error) error {
	b, jerr := json.Marshal(newWorkerError(err))
	return errors.Join(jerr, os.WriteFile(path, b, 0o600))
}

// failureOf is why a server has ended: what it has written, or what it said last.
func failureOf(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "failure"))
	failure := new(workerError)
	if err != nil || json.Unmarshal(b, failure) != nil || failure.Message == "" {
		return errors.New(lastLine(filepath.Join(dir, "log")))
	}
	return failure
}

// lastLine is what a process said last.
func lastLine(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	text := strings.TrimSpace(string(b))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// Stop is described at spm.ImageServers.
func (s *imageServers) Stop(ctx context.Context, image string) error {
	s.starting.Lock()
	defer s.starting.Unlock()
	ctx, cancel := context.WithTimeout(ctx, serverStop)
	defer cancel()
	c := s.client(image)
	process, pid, err := c.process(ctx)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return os.RemoveAll(s.of(image))
	}
	if err != nil {
		return fmt.Errorf("stop the server of image %s: %w", image, err)
	}
	defer process.Close() //nolint:errcheck // only waited for
	_, err = c.Do(ctx, "stop", controlRequest{})
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) && !dies(err) { // else it ends already
		return fmt.Errorf("stop the server of image %s: %w", image, err)
	}
	if err := awaitEnd(ctx, process); err != nil {
		return fmt.Errorf("the server of image %s (process %d) does not end: %w; see %s", image, pid, err, filepath.Join(s.of(image), "log"))
	}
	if s.log != nil {
		s.log.Info("an image is not served any more", "image", image, "process", pid)
	}
	return os.RemoveAll(s.of(image))
}

// process is the one at the other end of the socket: the kernel says which it is, and
// the descriptor stays that one's, also when its number is somebody else's.
func (c controlClient) process(ctx context.Context) (*os.File, int, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close() //nolint:errcheck // only asked
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return nil, 0, err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return nil, 0, errors.Join(cerr, err)
	}
	fd, err := unix.PidfdOpen(int(peer.Pid), unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return nil, 0, fs.ErrNotExist
	}
	if err != nil {
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), "process"), int(peer.Pid), nil
}

// who says which process does not answer. The kernel accepts connections for it.
func (c controlClient) who() string {
	process, pid, err := c.process(context.Background())
	if err != nil {
		return "it is not known which process that is"
	}
	_ = process.Close()
	return fmt.Sprintf("process %d", pid)
}

// awaitEnd waits until a process has ended.
func awaitEnd(ctx context.Context, process *os.File) error {
	for {
		p := []unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		n, err := unix.Poll(p, int(serverLook.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
	}
}

// Adopt is described at spm.ImageServers.
func (s *imageServers) Adopt(ctx context.Context, image string) error {
	err := s.do(ctx, image, "manager", controlRequest{Manager: s.spm})
	if err == nil && s.log != nil {
		s.log.Info("who serves an image asks this manager from now on", "image", image, "socket", s.spm)
	}
	return err
}

// Snapshot is described at spm.ImageServers.
func (s *imageServers) Snapshot(ctx context.Context, image, leaf string) error {
	return s.do(ctx, image, "snapshot", controlRequest{Leaf: leaf})
}

// MergeStart is described at spm.ImageServers.
func (s *imageServers) MergeStart(ctx context.Context, image, leaf string) error {
	return s.do(ctx, image, "merge", controlRequest{Leaf: leaf})
}

// MergePivot is described at spm.ImageServers.
func (s *imageServers) MergePivot(ctx context.Context, image, leaf string) error {
	return s.do(ctx, image, "pivot", controlRequest{Leaf: leaf})
}

// MergeCancel is described at spm.ImageServers.
func (s *imageServers) MergeCancel(ctx context.Context, image, leaf string) error {
	return s.do(ctx, image, "cancel", controlRequest{Leaf: leaf})
}

// Resize is described at spm.ImageServers.
func (s *imageServers) Resize(ctx context.Context, image string, size int64) error {
	return s.do(ctx, image, "resize", controlRequest{Size: size})
}

func (s *imageServers) do(ctx context.Context, image, verb string, r controlRequest) error {
	_, err := s.client(image).Do(ctx, verb, r)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("nobody serves image %s: %w", image, fs.ErrNotExist)
	}
	return err
}
