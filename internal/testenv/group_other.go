//go:build !unix

package testenv

import "os/exec"

// ownGroup does nothing: the tests that start programs run on Unix; elsewhere
// they only have to compile.
func ownGroup(*exec.Cmd) {}

func killGroup(cmd *exec.Cmd) error {
	if cmd.Process == nil {
		return nil
	}
	return cmd.Process.Kill()
}
