package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// qemu makes images in the test's own folder.
func qemuIn(t *testing.T) (img, io func(args ...string)) {
	t.Helper()
	t.Chdir(t.TempDir())
	tool, qio := testenv.Tool(t, "qemu-img"), testenv.Tool(t, "qemu-io")
	return func(args ...string) { testenv.Run(t, tool, args...) }, func(args ...string) { testenv.Run(t, qio, args...) }
}

// rawBase is a sparse file of 5 MiB and some sectors.
func rawBase(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(5<<20+1536))
	for _, off := range []int64{0, 2 << 20, 4<<20 + 64<<10} {
		_, err = f.WriteAt([]byte(strings.Repeat("r", 100<<10)), off)
		require.NoError(t, err)
	}
	require.NoError(t, f.Close())
}

// chainOfThree is top -> sub/mid -> sub/base, in formats qcow2, qcow2 and raw, with
// top made with options.
func chainOfThree(t *testing.T, options string) (img, io func(args ...string)) {
	t.Helper()
	img, io = qemuIn(t)
	require.NoError(t, os.Mkdir("sub", 0o755))
	rawBase(t, "sub/base")
	img("create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "sub/mid", "7M")
	io("-f", "qcow2", "-c", "write -P 1 64k 200k", "-c", "write -z 2M 64k", "-c", "write -P 2 6M 300k", "sub/mid")
	args := []string{"create", "-q", "-f", "qcow2", "-b", "sub/mid", "-F", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	img(append(args, "top", "9M")...)
	io("-f", "qcow2", "-c", "write -P 3 1M 100k", "-c", "write -z 128k 70k", "-c", "write -P 4 8M 64k", "-c", "discard 6M 64k", "top")
	return img, io
}

var explicitThree = []string{"--backing", "qcow2:sub/mid", "--backing", "raw:sub/base"}

func TestMapOfChainAgreesWithQEMU(t *testing.T) {
	for _, options := range []string{"", "cluster_size=4k", "extended_l2=on", "extended_l2=on,cluster_size=16k", "compat=0.10,cluster_size=512"} {
		t.Run(options, func(t *testing.T) {
			testenv.Tool(t, "qemu-img")
			chainOfThree(t, options)
			for _, more := range [][]string{{"--output=json"}, {}, {"--output=json", "-s", "100k", "-l", "6M"}} {
				theirs := testenv.Run(t, "qemu-img", append(append([]string{"map"}, more...), "top")...)
				for _, backing := range [][]string{{"--backing", "auto"}, explicitThree} {
					r := cli(t, append(append([]string{"map", "top"}, more...), backing...)...)
					require.Zero(t, r.code, r)
					require.Equal(t, strings.Split(theirs, "\n"), strings.Split(r.stdout, "\n"))
				}
			}
		})
	}
}

func TestMapOfRawAgreesWithQEMU(t *testing.T) {
	testenv.Tool(t, "qemu-img")
	t.Chdir(t.TempDir())
	rawBase(t, "base")
	require.NoError(t, os.Truncate("base", 5<<20))
	for _, o := range []string{"json", "human"} {
		args := []string{"map", "-f", "raw", "--output=" + o, "base"}
		r := cli(t, args...)
		require.Zero(t, r.code, r)
		require.Equal(t, testenv.Run(t, "qemu-img", args...), r.stdout)
	}
}

func TestInfoOfChainAgreesWithQEMU(t *testing.T) {
	chainOfThree(t, "extended_l2=on")
	theirs := testenv.Run(t, "qemu-img", "info", "--backing-chain", "--output=json", "top")
	var want []json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(theirs), &want))
	require.Len(t, want, 3)
	human := testenv.Run(t, "qemu-img", "info", "--backing-chain", "top")
	for _, backing := range [][]string{{"--backing", "auto"}, explicitThree} {
		r := cli(t, append([]string{"info", "--backing-chain", "--output=json", "top"}, backing...)...)
		require.Zero(t, r.code, r)
		var got []json.RawMessage
		require.NoError(t, json.Unmarshal([]byte(r.stdout), &got))
		require.Len(t, got, 3)
		for i := range want {
			more := same(t, string(want[i]), string(got[i]))
			delete(more, "bound")
			require.Empty(t, more)
		}
		r = cli(t, append([]string{"info", "--backing-chain", "top"}, backing...)...)
		require.Zero(t, r.code, r)
		var kept []string
		for _, line := range strings.Split(r.stdout, "\n") {
			if !strings.HasPrefix(line, "bound: ") {
				kept = append(kept, line)
			}
		}
		require.Equal(t, human, strings.Join(kept, "\n"))
	}

	// Not asked for, or only the image itself.
	r := cli(t, "info", "--output=json", "top")
	require.Zero(t, r.code, r)
	same(t, string(want[0]), r.stdout)
	r = cli(t, "info", "--backing-chain", "--backing", "none", "--output=json", "top")
	require.Zero(t, r.code, r)
	var one []json.RawMessage
	require.NoError(t, json.Unmarshal([]byte(r.stdout), &one))
	require.Len(t, one, 1)
	r = cli(t, "info", "-f", "raw", "--output=json", "sub/base")
	require.Zero(t, r.code, r)
	require.Empty(t, same(t, testenv.Run(t, "qemu-img", "info", "-f", "raw", "--output=json", "sub/base"), r.stdout))
	require.Zero(t, cli(t, "check", "--backing", "none", "top").code)
}

// TestBackingIsNotFollowed: without the option nothing is opened, and it is named.
func TestBackingIsNotFollowed(t *testing.T) {
	chainOfThree(t, "")
	require.NoError(t, os.Remove("sub/mid")) // whoever looked would say that it is not there
	for _, args := range [][]string{{"map", "top"}, {"info", "--backing-chain", "top"}, {"nbd", "-k", "s", "top"}} {
		r := cli(t, args...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, `top: image has the backing file "sub/mid" (format "qcow2"), which is not opened`, r)
		require.Contains(t, r.stderr, "--backing auto", r)
		require.Contains(t, r.stderr, "--backing qcow2:FILE", r)
	}
	r := cli(t, "map", "--backing", "auto", "top")
	require.Contains(t, r.stderr, "no such file", r)
	require.Zero(t, cli(t, "info", "top").code)
	require.Zero(t, cli(t, "check", "top").code)
}

// TestBackingAuto: what an image may name, and what not.
func TestBackingAuto(t *testing.T) {
	img, _ := qemuIn(t)
	here, err := os.Getwd()
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll("images/sub", 0o755))
	rawBase(t, "secret")
	rawBase(t, "images/base")
	rawBase(t, "images/sub/base")
	require.NoError(t, os.Symlink("../secret", "images/link"))
	require.NoError(t, os.Symlink("sub", "images/folder"))
	img("create", "-q", "-f", "qcow2", "-u", "-b", "self", "-F", "qcow2", "images/self", "1M")
	img("create", "-q", "-f", "qcow2", "-u", "-b", "b", "-F", "qcow2", "images/a", "1M")
	img("create", "-q", "-f", "qcow2", "-u", "-b", "a", "-F", "qcow2", "images/b", "1M")
	for i := range 70 {
		img("create", "-q", "-f", "qcow2", "-u", "-b", fmt.Sprint(i-1), "-F", "qcow2", fmt.Sprintf("images/%d", i), "1M")
	}
	img("create", "-q", "-f", "qcow2", "images/0", "1M")

	for _, c := range []struct{ name, format, want string }{
		{"base", "raw", ""},
		{"./sub/../base", "raw", ""},
		{"sub/base", "raw", ""},
		{here + "/images/base", "raw", ""},
		{here + "/images/sub/../base", "raw", ""},
		{"63", "qcow2", ""}, // 64 images below the overlay
		{"64", "qcow2", "longer than 64"},
		{"../secret", "raw", "leaves the folder"},
		{"sub/../../secret", "raw", "leaves the folder"},
		{here + "/secret", "raw", "leaves the folder"},
		{here + "/images/../secret", "raw", "leaves the folder"},
		{here + "/imagesx", "raw", "leaves the folder"},
		{"/etc/passwd", "raw", "leaves the folder"},
		{"link", "raw", "symbolic link"},
		{"folder/base", "raw", "symbolic link"},
		{"sub", "raw", "found a directory"},
		{"none", "raw", "no such file"},
		{"base", "vmdk", `its format is "vmdk"`},
		{"base", "qcow2", "not a QCOW2 image"},
		{"nbd:localhost:10809", "raw", "no name of a file"},
		{`json:{"driver":"null-co"}`, "raw", "no name of a file"},
		{"nbd+unix:///x?socket=/s", "raw", "no name of a file"},
		{"a", "qcow2", "expected a chain without a loop"},
		{"self", "qcow2", "expected a chain without a loop"},
		{"overlay", "qcow2", "it is images/overlay, which is in the chain already"},
	} {
		img("create", "-q", "-f", "qcow2", "-u", "-b", c.name, "-F", c.format, "images/overlay", "1M")
		r := cli(t, "map", "--backing", "auto", "images/overlay")
		if c.want == "" {
			require.Zero(t, r.code, r)
			continue
		}
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.want, r)
		if c.name == "overlay" { // open for writing, it is locked
			r = cli(t, "nbd", "-k", "s", "--backing", "auto", "images/overlay")
			require.Contains(t, r.stderr, c.want, r)
		}
	}

	// No format, as QEMU before 6.1 left it.
	r := cli(t, "create", "-q", "-u", "-b", "base", "-F", "raw", "images/overlay", "1M")
	require.Zero(t, r.code, r)
	b, err := os.ReadFile("images/overlay")
	require.NoError(t, err)
	at := strings.Index(string(b), "\xe2\x79\x2a\xca")
	require.Positive(t, at)
	patched(t, "images/overlay", int64(at), 0x11, 0x22, 0x33, 0x44)
	r = cli(t, "map", "--backing", "auto", "images/overlay")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "does not tell its format", r)
	require.Zero(t, cli(t, "map", "--backing", "raw:images/base", "images/overlay").code)
}

// TestBackingNamed: exactly the files that are named, whatever the images say.
func TestBackingNamed(t *testing.T) {
	img, _ := chainOfThree(t, "")
	require.NoError(t, os.Mkdir("moved", 0o755))
	require.NoError(t, os.Rename("sub/mid", "moved/mid"))
	require.NoError(t, os.Rename("sub/base", "moved/ba:se"))
	img("create", "-q", "-f", "qcow2", "plain", "1M")
	for _, c := range []struct {
		args string
		want string
	}{
		{"--backing qcow2:moved/mid --backing raw:moved/ba:se top", ""},
		{"--backing qcow2:moved/mid top", `moved/mid: image has the backing file "base"`},
		{"--backing raw:moved/mid top", ""}, // it is trusted, as with QEMU
		{"--backing raw:moved/mid --backing raw:moved/ba:se top", "--backing raw:moved/ba:se: nothing asks for it"},
		{"--backing raw:moved/mid plain", "nothing asks for it: the chain of plain has 0 backing files"},
		{"--backing qcow2:moved/ba:se top", "not a QCOW2 image"},
		{"--backing raw:none top", "--backing raw:none: open none: no such file"},
		{"--backing qcow2:moved/mid --backing qcow2:moved/mid top", "chain without a loop"},
		{"--backing qcow2:top --backing raw:moved/ba:se top", "chain without a loop"},
	} {
		r := cli(t, append([]string{"map"}, strings.Fields(c.args)...)...)
		if c.want == "" {
			require.Zero(t, r.code, r)
			continue
		}
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, c.want, r)
		require.Empty(t, r.stdout, r)
	}
	r := cli(t, "map", "-f", "raw", "--backing", "auto", "moved/ba:se")
	require.Contains(t, r.stderr, "a raw image has no backing file", r)
}

// TestCreateBackingAgreesWithQEMU: the same words, the same image.
func TestCreateBackingAgreesWithQEMU(t *testing.T) {
	_, _ = chainOfThree(t, "")
	for _, args := range []string{
		"-b mid -F qcow2 sub/new",
		"-b mid -F qcow2 sub/new 3M",
		"-b sub/base -F raw new",
		"-b sub/base -F raw -o compat=0.10,cluster_size=4k new 20M",
		"-o backing_file=sub/mid,backing_fmt=qcow2,extended_l2=on new",
		"-o backing_file=sub/mid,backing_fmt=raw -b top -F qcow2 new",
		"-u -b nowhere -F qcow2 new 1M",
		"-u new 1M",
	} {
		args := append([]string{"create", "-f", "qcow2"}, strings.Fields(args)...)
		path := "new"
		if strings.Contains(strings.Join(args, " "), "sub/new") {
			path = "sub/new"
		}
		theirs := testenv.Run(t, "qemu-img", args...)
		info := testenv.Run(t, "qemu-img", "info", "--output=json", path)
		require.NoError(t, os.Remove(path))
		r := cli(t, args...)
		require.Zero(t, r.code, r)
		require.Equal(t, theirs, r.stdout)
		require.Zero(t, cli(t, "check", path).code)
		require.Equal(t, withoutActualSize(info), withoutActualSize(testenv.Run(t, "qemu-img", "info", "--output=json", path)))
	}
	r := cli(t, "create", "-b", "./new", "-F", "raw", "new", "1M")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "expected another file than the image itself", r)
}

func TestFinderNames(t *testing.T) {
	f := &finder{root: "/images", within: "sub"}
	for stored, want := range map[string]string{
		"base": "sub/base", "./base": "sub/base", "../base": "base", "../../x": "../x", "/images/base": "base", "/images//a/../b": "b",
	} {
		got, err := f.name(stored)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, stored := range []string{"/x", "/images", "/imagesx/y", "/images/../x", "nbd:x", "a:b"} {
		_, err := f.name(stored)
		require.Error(t, err, stored)
	}
	root := &finder{root: "/"}
	got, err := root.name("/x/y")
	require.NoError(t, err)
	require.Equal(t, "x/y", got)
}
