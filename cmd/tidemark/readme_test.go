//go:build linux

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// TestReadme runs every fenced sh block of the README, in its order, in a copy
// of the tree: as a newcomer would, by hand. Three are special: the block that
// is "make run" goes on beside the others until all are done, "make test" is
// what runs this test, and a QEMU without an operating system is told to quit.
func TestReadme(t *testing.T) {
	for _, tool := range []string{"make", "git", "nbdinfo", "qemu-io", "qemu-system-x86_64", "fusermount3", "mkfs.ext4"} {
		testenv.Tool(t, tool)
	}
	testenv.Need(t, "fuse")
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir := copyTree(t, root)
	shims := qemuShim(t)
	blocks := readmeBlocks(t, filepath.Join(dir, "README.md"))
	require.NotEmpty(t, blocks)
	require.Equal(t, "make run", blocks[0], "the first thing a newcomer is told")

	server := testenv.Start(t, shell(dir, shims, blocks[0]))
	testenv.Eventually(t, 3*time.Minute, "make run serves its socket: "+server.Output(), func() bool {
		_, err := os.Stat(filepath.Join(dir, ".tidemark/pool/nbd.sock"))
		return err == nil
	})
	own := strings.NewReplacer("/tmp/", t.TempDir()+"/") // others run this test, too
	for _, b := range blocks[1:] {
		if b == "make test" {
			continue
		}
		b = own.Replace(b)
		p := testenv.Start(t, shell(dir, shims, b))
		require.NoError(t, p.Wait(t, 3*time.Minute), "%s\n%s", b, p.Output())
		t.Logf("$ %s\n%s", b, p.Output())
		if b == "make demo" {
			requireTranscript(t, filepath.Join(dir, "README.md"), p.Output())
		}
	}
	// Ctrl-C goes to everybody in the foreground. make dies of it; what counts is
	// that the server ended well before.
	require.NoError(t, syscall.Kill(-server.Cmd.Process.Pid, syscall.SIGINT))
	_ = server.Wait(t, time.Minute)
	require.Contains(t, server.Output(), "stopped; everything that was written is in")
}

func shell(dir, shims, script string) *exec.Cmd {
	// -m: job control, so that "kill %1" means the same as at a prompt. What a block
	// that fails has started ends with it.
	const prompt = "exec 2>&1\ntrap 'jobs=$(jobs -p); [ -z \"$jobs\" ] || kill $jobs' EXIT\n"
	cmd := exec.Command("bash", "-euo", "pipefail", "-mc", prompt+script)
	if !strings.Contains(script, "\n") {
		cmd = exec.Command("bash", "-euo", "pipefail", "-c", "exec "+script)
	}
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+shims+":"+os.Getenv("PATH"), "TIDEMARK_SPM=")
	return cmd
}

// copyTree copies what a clone of the tree would hold.
func copyTree(t *testing.T, root string) string {
	t.Helper()
	dir := t.TempDir()
	list := testenv.Run(t, "git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	for name := range strings.SplitSeq(strings.TrimSuffix(list, "\x00"), "\x00") {
		src := filepath.Join(root, name)
		info, err := os.Stat(src)
		if os.IsNotExist(err) {
			continue // deleted, and not committed yet
		}
		require.NoError(t, err)
		data, err := os.ReadFile(src)
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, info.Mode().Perm()))
	}
	return dir
}

// readmeBlocks returns the fenced blocks whose language is sh.
func readmeBlocks(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	var blocks, lines []string
	inside := false
	for s := bufio.NewScanner(f); s.Scan(); {
		switch line := s.Text(); {
		case line == "```sh":
			inside, lines = true, nil
		case inside && line == "```":
			inside = false
			blocks = append(blocks, strings.Join(lines, "\n"))
		case inside:
			lines = append(lines, line)
		}
	}
	require.False(t, inside, "a block is not closed")
	return blocks
}

// requireTranscript requires that the README's transcript of the demonstration
// says what the demonstration does, whatever the numbers.
func requireTranscript(t *testing.T, readme, output string) {
	t.Helper()
	text, err := os.ReadFile(readme)
	require.NoError(t, err)
	lines := transcriptLine.FindAllString(string(text), -1)
	require.Greater(t, len(lines), 5, "the README has a transcript of the demonstration")
	printed := shapeOf(output)
	for _, line := range lines {
		require.Contains(t, printed, shapeOf(line))
	}
}

var (
	transcriptLine = regexp.MustCompile(`(?m)^ {4,}[0-9]+\.[0-9]{2}s  .*$`)
	number         = regexp.MustCompile(` *[0-9][0-9.]*(?:[mµ]?s\b)?`)
)

// shapeOf leaves a number sign of every number and duration.
func shapeOf(s string) string { return number.ReplaceAllString(strings.TrimLeft(s, " "), "#") }

// qemuShim is a directory with a qemu-system-x86_64 that takes the options as
// they are, says what its disks are, and quits.
func qemuShim(t *testing.T) string {
	t.Helper()
	real := testenv.Tool(t, "qemu-system-x86_64")
	dir := t.TempDir()
	script := `#!/bin/bash
args=(); for a in "$@"; do [ "$a" = -nographic ] || args+=("$a"); done
printf 'info block\nquit\n' | timeout 60 ` + real + ` "${args[@]}" -S -display none -serial none -monitor stdio
`
	require.NoError(t, os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o755))
	return dir
}
