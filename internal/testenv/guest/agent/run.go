package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
)

func run(args []string) (string, error) {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	return string(out), err
}

func (a *agent) start(args []string) (string, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return "", err
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	a.started[pid] = cmd
	return pid, nil
}

func (a *agent) stop(args []string) (string, error) {
	cmd := a.started[args[0]]
	if cmd == nil {
		return "", fmt.Errorf("nothing was started as process %s", args[0])
	}
	signal, err := strconv.Atoi(args[1])
	if err != nil {
		return "", err
	}
	if err := cmd.Process.Signal(syscall.Signal(signal)); err != nil {
		return "", err
	}
	delete(a.started, args[0])
	return "", cmd.Wait()
}

// await waits for a file that another process makes.
func await(args []string) (string, error) {
	const limit = 30 * time.Second
	for end := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		_, err := os.Stat(args[0])
		if err == nil || time.Now().After(end) {
			return "", err
		}
	}
}
