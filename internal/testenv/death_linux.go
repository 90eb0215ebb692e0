package testenv

import (
	"os/exec"
	"syscall"
)

// endsWithUs has cmd told to end when the test process does, also if that is killed
// or interrupted: a server that goes on keeps mounts, sockets and loop devices. The
// caller has set SysProcAttr.
func endsWithUs(cmd *exec.Cmd) { cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM }
