package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

func run(args []string) (string, error) {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

// A background is a program that was started and not stopped.
type background struct {
	cmd *exec.Cmd
}

func (a *agent) start(args []string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	a.started[pid] = &background{cmd}
	return pid, nil
}

func (a *agent) stop(args []string) (string, error) {
	b := a.started[args[0]]
	if b == nil {
		return "", fmt.Errorf("nothing was started as process %s", args[0])
	}
	signal, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	if err := b.cmd.Process.Signal(syscall.Signal(signal)); err != nil {
		return "", err
	}
	delete(a.started, args[0])
	return "", b.cmd.Wait()
}
