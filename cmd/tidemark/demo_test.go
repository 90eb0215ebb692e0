package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

func TestDemo(t *testing.T) {
	dir := t.TempDir()
	code, stdout, stderr := inProcess(t, "demo", "--dir", dir, "--size", "384M", "--seed", "7")
	require.Zero(t, code, stderr)
	require.Empty(t, stderr)
	for _, want := range []string{
		"writing 384 MiB with seed 7 over 4 connections", "extension  2: granted", "every byte is what was written",
		"tidemark check: clean", "qemu-img check: ", "every byte matched, the image is clean",
	} {
		require.Contains(t, stdout, want)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left, "it removes what it has made")
}

// TestDemoInReadme: the README shows lines as they are printed.
func TestDemoInReadme(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	code, stdout, stderr := inProcess(t, "demo", "--dir", t.TempDir(), "--size", "384M")
	require.Zero(t, code, stderr)
	var printed []string
	for line := range strings.Lines(stdout) {
		printed = append(printed, shape(line))
	}
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(readme), "```sh\nmake demo\n```\n\n")
	require.True(t, found)
	transcript, _, _ := strings.Cut(after, "\n\n")
	for line := range strings.Lines(transcript) {
		if line != "    ...\n" {
			require.Contains(t, printed, shape(line), line)
		}
	}
}

// shape is a line without its figures and units.
func shape(line string) string {
	line = regexp.MustCompile(`[0-9][0-9.]*(µs|ms|s| MiB| GiB)?`).ReplaceAllString(line, "#")
	return strings.Join(strings.Fields(line), " ")
}

// TestDemoFindsOtherData: what was written with another seed is not accepted.
func TestDemoFindsOtherData(t *testing.T) {
	dir := t.TempDir()
	o := &runOptions{
		pool: poolOptions{dir: dir, capacity: 256 << 20}, size: 64 << 20, name: "demo", patience: time.Second,
	}
	s, err := startService(t.Context(), o, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	clients, err := dialAll(t.Context(), s.socket)
	require.NoError(t, err)
	defer func() {
		for _, c := range clients {
			require.NoError(t, c.Close())
		}
	}()
	var out bytes.Buffer
	d := &demo{o: demoOptions{size: 8 << 20, seed: 1}, out: &out, began: time.Now()}
	require.NoError(t, d.write(t.Context(), clients, s.disks[0]))
	require.NoError(t, d.compare(t.Context(), clients))

	one := make([]byte, 1)
	require.NoError(t, clients[0].ReadAt(t.Context(), one, 5<<20+77, 0))
	one[0] ^= 1
	require.NoError(t, clients[0].WriteAt(t.Context(), one, 5<<20+77, 0))
	err = d.compare(t.Context(), clients)
	require.ErrorIs(t, err, errMismatch)
	require.ErrorContains(t, err, "first at byte 5242957")

	d.o.seed = 2
	require.ErrorIs(t, d.compare(t.Context(), clients), errMismatch)
}

func TestDemoMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"/nope": "no such file or directory",
		"/sys":  "choose a directory that you may write to",
	} {
		code, _, stderr := inProcess(t, "demo", "--dir", args, "--size", "1M")
		require.Equal(t, exitFailure, code)
		require.Contains(t, stderr, want)
	}
	dir := t.TempDir()
	code, _, stderr := inProcess(t, "demo", "--dir", dir, "--size", "4P")
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, "choose another place with --dir DIR, or write less")
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Empty(t, left)
}

// TestPattern: every word depends on its place and the seed, and on nothing
// else.
func TestPattern(t *testing.T) {
	whole, part := make([]byte, 4096), make([]byte, 1024)
	pattern(whole, 1, 1<<20)
	pattern(part, 1, 1<<20+2048)
	require.Equal(t, whole[2048:3072], part)
	pattern(part, 2, 1<<20+2048)
	require.NotEqual(t, whole[2048:3072], part)
	words := map[[8]byte]bool{}
	for i := 0; i < len(whole); i += 8 {
		words[[8]byte(whole[i:])] = true
	}
	require.Len(t, words, len(whole)/8)
}
