package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tidemark/lvm"
)

// A site is a pool with its manager.
type site struct {
	client  *client
	small   int64  // the virtual size of volumes that do not grow
	initial int64  // what volumes are granted at first
	step    int64  // that a volume grows by
	own     string // where lvm's own time is noted; "" nowhere
	read    int    // how much of that has been looked at
	stop    func() error
}

const (
	mib = 1 << 20
	gib = 1 << 30

	extent = 128 * mib

	lunSize = 2 << 40 // of a sparse file

	startLimit = 20 * time.Second
)

// startManager starts tidemark spm and connects to it.
func startManager(ctx context.Context, o options, path, socket string, args ...string) (*client, func() error, error) {
	var log strings.Builder
	cmd := exec.CommandContext(ctx, o.tidemark, append([]string{"spm", "--socket", socket}, args...)...)
	cmd.Stdout, cmd.Stderr = io.Discard, &log
	cmd.Env = append(os.Environ(), "PATH="+path)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = startLimit
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	end := func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !(errors.As(err, &exit) && ctx.Err() != nil) {
			return fmt.Errorf("tidemark spm: %w: %s", err, log.String())
		}
		return nil
	}
	for limit := time.Now().Add(startLimit); ; time.Sleep(10 * time.Millisecond) {
		c, err := dial(ctx, socket)
		if err == nil {
			return c, end, nil
		}
		if ctx.Err() != nil || time.Now().After(limit) {
			return nil, nil, errors.Join(fmt.Errorf("no answer in %v: %w", startLimit, err), end())
		}
	}
}

// openDirectory makes a pool in a directory.
func openDirectory(ctx context.Context, o options) (*site, error) {
	dir, err := os.MkdirTemp(o.work, "pool-")
	if err != nil {
		return nil, err
	}
	s := &site{small: 16 * mib, initial: 1 * mib, step: 16 * mib}
	var end func() error
	s.client, end, err = startManager(ctx, o, os.Getenv("PATH"), filepath.Join(dir, "s"), "--dir", dir, "--capacity", strconv.FormatInt(1<<40, 10))
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.stop = func() error {
		s.client.close()
		return errors.Join(s.client.Close(), end(), os.RemoveAll(dir))
	}
	return s, nil
}

// openGroup makes a pool on a group; with own, lvm's own time is noted.
func openGroup(ctx context.Context, o options, own bool) (*site, error) {
	v, err := newGroup(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &site{small: 10 * gib, initial: extent, step: extent}
	path := os.Getenv("PATH")
	if own {
		if s.own, err = linkLVM(v.dir, o.lvm); err != nil {
			return nil, errors.Join(err, v.remove())
		}
		path = s.own + string(os.PathListSeparator) + path
	}
	var end func() error
	s.client, end, err = startManager(ctx, o, path, filepath.Join(v.dir, "s"), "--vg", v.name, "--devices", v.device)
	if err != nil {
		return nil, errors.Join(err, v.remove())
	}
	s.stop = func() error {
		s.client.close()
		return errors.Join(s.client.Close(), end(), v.remove())
	}
	return s, nil
}

// A group is a volume group on a loop device, past the page cache.
type group struct{ dir, device, name, uuid, runDir, conf string }

// groups counts those that were made, for their names.
var groups int

func newGroup(ctx context.Context, o options) (*group, error) {
	dir, err := os.MkdirTemp(o.work, "group-")
	if err != nil {
		return nil, err
	}
	groups++
	g := &group{dir: dir, runDir: o.runDir, name: fmt.Sprintf("tidemarkbenchspm%d_%d", os.Getpid(), groups)}
	lun := filepath.Join(dir, "lun")
	if err := errors.Join(os.WriteFile(lun, nil, 0o600), os.Truncate(lun, lunSize)); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	device, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", lun)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	g.device, g.conf = device, filepath.Join(dir, "conf")
	if _, err := lvm.NewTool(lvm.ToolOptions{Devices: []string{device}, Dir: g.conf}); err != nil { // writes that
		return nil, errors.Join(err, g.remove())
	}
	if _, err = g.lvm(ctx, "vgcreate", "-qq", "-s", "128m", "--metadatasize", "128m", g.name, g.device); err == nil {
		g.uuid, err = g.lvm(ctx, "vgs", "--noheadings", "-o", "vg_uuid", g.name)
	}
	if err != nil {
		return nil, errors.Join(err, g.remove())
	}
	return g, nil
}

// lvm runs a command as the manager does, with its configuration, which makes each one
// 40 ms faster than the one that comes with lvm, and with the options that VDSM gives.
func (g *group) lvm(ctx context.Context, verb string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "lvm", append([]string{verb, "--devices", g.device, "--driverloaded", "n"}, args...)...)
	cmd.Env = append(os.Environ(), "LVM_SYSTEM_DIR="+g.conf, "LVM_SUPPRESS_FD_WARNINGS=1")
	return outputOf(cmd)
}

// remove takes everything away, also what the manager and lvm leave elsewhere.
func (g *group) remove() error {
	_, err := output(context.Background(), "losetup", "--detach", g.device)
	paths := []string{g.dir, "/run/lock/lvm/V_" + g.name, filepath.Join(g.runDir, "lvm-"+g.name)}
	if g.uuid != "" {
		paths = append(paths, filepath.Join(g.runDir, "vg-"+g.uuid))
	}
	for _, path := range paths {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// output is what a command says.
func output(ctx context.Context, name string, args ...string) (string, error) {
	return outputOf(exec.CommandContext(ctx, name, args...))
}

func outputOf(cmd *exec.Cmd) (string, error) {
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}
