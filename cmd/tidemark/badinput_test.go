package main

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
)

// A badImage is an image that must be refused, by every command that opens it,
// with what, where, what was expected and what was found.
type badImage struct {
	name string
	make func(t *testing.T, path string) // damages the good image at path
	text []string                        // in every error
	info bool                            // info shows it all the same
}

func badImages() []badImage {
	replaced := func(content []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, content, 0o644)) }
	}
	at := func(off int64, b ...byte) func(*testing.T, string) {
		return func(t *testing.T, path string) { patched(t, path, off, b...) }
	}
	foreign := []string{"not a QCOW2 image", "expected the magic", "found", "qemu-img convert"}
	return []badImage{
		{"empty", replaced(nil), []string{"not a QCOW2 image"}, false},
		{"foreign", replaced(bytes.Repeat([]byte("conectix"), 100)), foreign, false},
		{"zeroes", replaced(make([]byte, 1<<20)), foreign, false},
		{"only the magic", replaced([]byte("QFI\xfb")), []string{"expected at least 72 bytes, found 4 bytes"}, false},
		{"truncated header", func(t *testing.T, p string) { require.NoError(t, os.Truncate(p, 100)) }, []string{"expected", "found"}, false},
		{"truncated tables", func(t *testing.T, p string) { require.NoError(t, os.Truncate(p, 65536+512)) }, []string{"L1 table", "expected", "66048 bytes", "found"}, false},
		{"version 9", at(4, 0, 0, 0, 9), []string{"version 9"}, false},
		{"cluster size", at(20, 0, 0, 0, 40), []string{"cluster", "expected", "found"}, false},
		{"oversized disk", at(24, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe, 0), []string{"size", "expected", "found"}, false},
		{"oversized L1 table", at(36, 0xff, 0xff, 0xff, 0xff), []string{"L1", "expected", "found"}, false},
		{"L1 table outside", at(40, 0, 0, 0x7f, 0xff, 0, 0, 0, 0), []string{"L1 table", "expected", "found"}, false},
		{"refcount table outside", at(48, 0, 0, 0x7f, 0xff, 0, 0, 0, 0), []string{"refcount table", "expected", "found"}, false},
		{"oversized refcount table", at(56, 0xff, 0xff, 0xff, 0xff), []string{"refcount table", "expected", "found"}, false},
		{"unknown feature", at(72, 0x40), []string{"feature bit 62", "not supported"}, true},
	}
}

func TestBadImagesAreRefusedAndKept(t *testing.T) {
	for _, bad := range badImages() {
		t.Run(bad.name, func(t *testing.T) {
			path := newImage(t, "100M")
			bad.make(t, path)
			before := digest(t, path)
			socket := filepath.Join(t.TempDir(), "s")
			for _, args := range [][]string{
				{"info", path}, {"info", "--output=json", path}, {"check", path}, {"check", "-r", "leaks", path},
				{"map", path}, {"nbd", "-k", socket, path}, {"nbd", "-r", "-k", socket, path},
			} {
				r := cli(t, args...)
				require.Equal(t, before, digest(t, path), r)
				if bad.info && args[0] == "info" {
					require.Zero(t, r.code, r)
					continue
				}
				require.NotZero(t, r.code, r)
				require.Empty(t, r.stdout, r)
				require.Contains(t, r.stderr, path, r)
				for _, text := range bad.text {
					require.Contains(t, r.stderr, text, r)
				}
				require.NoFileExists(t, socket)
			}
		})
	}
}

// Data behind the end of a truncated image is corruption, for check; the rest can
// still be copied out.
func TestTruncatedData(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	path := made(t, "", busy...)
	require.NoError(t, os.Truncate(path, 0x570000))
	before := digest(t, path)
	r := cli(t, "check", path)
	require.Equal(t, exitCorruptions, r.code, r)
	require.Contains(t, r.stderr, "outside the file of 5701632 bytes")
	p, socket := startNBD(t, "-t", "-r", path)
	c := dialNBD(t, socket, "")
	b := make([]byte, 64<<10)
	require.NoError(t, c.ReadAt(t.Context(), b, 0, 0))
	require.Equal(t, bytes.Repeat([]byte{1}, len(b)), b)
	require.Error(t, c.ReadAt(t.Context(), b, 66<<20, 0))
	require.NoError(t, c.ReadAt(t.Context(), b, 0, 0), "the connection goes on")
	stopped(t, p)
	require.Equal(t, before, digest(t, path))
}

func TestImageInUseByQEMU(t *testing.T) {
	tool := testenv.Tool(t, "qemu-nbd")
	path := newImage(t, "10M")
	socket := filepath.Join(t.TempDir(), "q")
	q := testenv.Start(t, testenv.Command(t, tool, "-t", "-k", socket, "-f", "qcow2", path))
	testenv.Eventually(t, serveLimit, "qemu-nbd serves", func() bool { // its socket is there before it has the image
		c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
		return err == nil && c.Close() == nil
	})
	before := digest(t, path)
	for _, args := range [][]string{
		{"info", path}, {"check", path}, {"check", "-r", "leaks", path}, {"map", path}, {"create", path, "1M"},
		{"nbd", "-k", socket + "2", path}, {"nbd", "-r", "-k", socket + "2", path},
	} {
		r := cli(t, args...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, "in use by qemu-nbd (pid", r)
		require.Contains(t, r.stderr, path, r)
		require.Contains(t, r.stderr, "stop it first", r)
		require.Empty(t, r.stdout, r)
	}
	for _, command := range []string{"info", "check", "map"} {
		r := cli(t, command, "-U", path)
		require.Zero(t, r.code, r)
	}
	require.Equal(t, before, digest(t, path))
	q.Kill()
}

// An image that Tidemark serves is not for QEMU either.
func TestImageInUseByUs(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	path := newImage(t, "10M")
	p, _ := startNBD(t, "-t", path)
	r := testenv.Try(t, "qemu-img", "check", path)
	require.NotZero(t, r.ExitCode, r)
	require.Contains(t, r.Stderr, "lock")
	stopped(t, p)
	require.Zero(t, testenv.Try(t, "qemu-img", "check", path).ExitCode)
}

// unprivileged is a command line of somebody whom file permissions stop.
func unprivileged(t *testing.T, args ...string) ran {
	t.Helper()
	cmd := tidemark(t, args...)
	if os.Getuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}
		cmd.Path = forEverybody(t, cmd.Path)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil {
		require.ErrorAs(t, err, &exit)
	}
	return ran{args, cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// forEverybody is a name of the program that everybody may execute: the folder
// that go test builds in is private.
func forEverybody(t *testing.T, program string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tidemark-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	b, err := os.ReadFile(program)
	require.NoError(t, err)
	path := filepath.Join(dir, "tidemark")
	require.NoError(t, os.WriteFile(path, b, 0o755))
	return path
}

func TestNoRights(t *testing.T) {
	dir, err := os.MkdirTemp("", "tidemark-test-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "disk.qcow2")
	require.Zero(t, cli(t, "create", "-q", path, "1M").code)
	before := digest(t, path)

	secret := filepath.Join(dir, "secret")
	require.NoError(t, os.WriteFile(secret, nil, 0o000))
	require.NoError(t, os.Chmod(path, 0o400))
	require.NoError(t, os.Chmod(dir, 0o555))
	t.Cleanup(func() { os.Chmod(dir, 0o755) })
	if os.Getuid() == 0 {
		require.NoError(t, os.Chown(path, 65534, 65534))
	}
	r := unprivileged(t, "info", path)
	require.Zero(t, r.code, r)
	for _, c := range []struct {
		args       []string
		path, text string
	}{
		{[]string{"nbd", "-t", "-p", "0", path}, path, "expected the right to read and write it"},
		{[]string{"check", "-r", "leaks", path}, path, "expected the right to read and write it"},
		{[]string{"info", secret}, secret, "expected the right to read it"},
		{[]string{"create", path, "1M"}, path, "expected the right to write there"},
		{[]string{"create", filepath.Join(dir, "new"), "1M"}, filepath.Join(dir, "new"), "expected the right to write there"},
		{[]string{"nbd", "-r", "-k", filepath.Join(dir, "s"), path}, filepath.Join(dir, "s"), ""},
	} {
		r := unprivileged(t, c.args...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.path, r)
		require.Contains(t, r.stderr, "permission denied", r)
		require.Contains(t, r.stderr, c.text, r)
		require.Empty(t, r.stdout, r)
	}
	require.Equal(t, before, digest(t, path))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 2)
}

// Volumes of a pool: served by name and UUID, and refused when they are not there.
func TestServeVolumes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	manager := testenv.Start(t, tidemark(t, "spm", "--dir", dir, "--capacity", "1G"))
	awaitOutput(t, manager, "ready: pool")
	pool := filepath.Join(dir, "spm.sock")
	r := cli(t, "volume", "create", "--spm", pool, "--size", "10G", "vm1")
	require.Zero(t, r.code, r)

	socket := filepath.Join(t.TempDir(), "n")
	r = cli(t, "nbd", "-k", socket, "--spm", pool, "vm2")
	require.Equal(t, exitFailure, r.code, r)
	for _, text := range []string{"vm2", pool, "tidemark volume list", "./vm2"} {
		require.Contains(t, r.stderr, text)
	}
	require.Empty(t, r.stdout)
	require.NoFileExists(t, socket)

	p, socket := startNBD(t, "-t", "--spm", pool, "vm1")
	c := dialNBD(t, socket, "")
	require.EqualValues(t, 10<<30, c.Info().Size)
	block := bytes.Repeat([]byte("tide"), 1<<20)
	for off := range int64(64) { // 256 MiB: more than it began with
		require.NoError(t, c.WriteAt(t.Context(), block, off*int64(len(block)), 0))
	}
	require.NoError(t, c.Flush(t.Context()))
	testenv.Eventually(t, serveLimit, "the volume was extended", func() bool { return strings.Contains(p.Output(), "extend") })
	r = cli(t, "nbd", "-k", socket+"2", "--spm", pool, "vm1")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "in use by")
	stopped(t, p)
	require.NoError(t, manager.Signal(syscall.SIGTERM))
	require.NoError(t, manager.Wait(t, serveLimit))
}

// ---- Hostile bytes over NBD, against the real process ------------------------

// An attack is what a client that is not one sends after the greeting.
type attack struct {
	name  string
	bytes []byte
}

// rawOption is the beginning of an option of length bytes, behind the client's
// flags.
func rawOption(number, length uint32) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, 3)
	b = append(b, "IHAVEOPT"...)
	return be.AppendUint32(be.AppendUint32(b, number), length)
}

// rawRequest is GO for the default export, then one request.
func rawRequest(magic uint32, command uint16, off uint64, length uint32) []byte {
	be := binary.BigEndian
	b := append(rawOption(7, 6), 0, 0, 0, 0, 0, 0)
	b = be.AppendUint32(b, magic)
	b = be.AppendUint16(be.AppendUint16(b, 0), command)
	b = be.AppendUint64(b, 42) // cookie
	return be.AppendUint32(be.AppendUint64(b, off), length)
}

func attacks() []attack {
	be := binary.BigEndian
	return []attack{
		{"bad client flags", []byte{0xff, 0xff, 0xff, 0xff}},
		{"bad option magic", append(be.AppendUint32(nil, 3), "GET / HTTP/1.1\r\n\r\n"...)},
		{"option of 4 GiB", rawOption(7, 0xffffffff)},
		{"export name of 4 GiB", rawOption(1, 0xffffffff)},
		{"bad request magic", rawRequest(0xdeadbeef, 0, 0, 512)},
		{"write of 4 GiB", rawRequest(0x25609513, 1, 0, 0xffffffff)},
		{"half a request", rawRequest(0x25609513, 0, 0, 512)[:40]},
	}
}

func TestHostileBytesHarmNobodyElse(t *testing.T) {
	p, socket := startNBD(t, "-t", newImage(t, "10M"))
	good := dialNBD(t, socket, "")
	data := bytes.Repeat([]byte("good"), 1024)
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			c, err := net.Dial("unix", socket)
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(serveLimit)))
			_, err = c.Write(a.bytes)
			require.NoError(t, err)
			require.NoError(t, good.WriteAt(t.Context(), data, 1<<20, 0), "another client goes on")
			require.NoError(t, c.(*net.UnixConn).CloseWrite())
			_, err = c.Read(make([]byte, 18))
			require.NoError(t, err, "there was a greeting")
			for err == nil { // the server ends the connection, by itself
				_, err = c.Read(make([]byte, 4096))
			}
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
			got := make([]byte, len(data))
			require.NoError(t, good.ReadAt(t.Context(), got, 1<<20, 0))
			require.Equal(t, data, got)
		})
	}
	// A write that is too large, or outside the disk, ends nothing: it is answered.
	c := dialNBD(t, socket, "")
	require.Error(t, c.WriteAt(t.Context(), data, 10<<20, 0))
	require.Error(t, c.WriteAt(t.Context(), make([]byte, 33<<20), 0, 0))
	stopped(t, p)
	require.NotContains(t, p.Output(), "panic")
}
