package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// debianPython is the interpreter for which Debian packages its modules; the
// first python3 of PATH may be another one.
const debianPython = "/usr/bin/python3"

// packages are the Debian packages of the programs that tests use.
var packages = map[string]string{
	"qemu-img":            "qemu-utils",
	"qemu-io":             "qemu-utils",
	"qemu-nbd":            "qemu-utils",
	"qemu-storage-daemon": "qemu-system-common",
	"qemu-system-x86_64":  "qemu-system-x86",
	"fio":                 "fio",
	"nbdinfo":             "libnbd-bin",
	"nbdcopy":             "libnbd-bin",
	"nbdsh":               "libnbd-bin",
	"nbdkit":              "nbdkit",
	"fusermount3":         "fuse3",
	"lvm":                 "lvm2",
	"sanlock":             "sanlock",
	"mkfs.ext4":           "e2fsprogs",
	"e2fsck":              "e2fsprogs",
	"ldd":                 "libc-bin",
	"sync":                "coreutils",
	"losetup":             "mount",
	"umount":              "mount",
	"fstrim":              "util-linux",
	"busybox":             "busybox-static",
	"jq":                  "jq",
	"xmllint":             "libxml2-utils",
	debianPython:          "python3",
}

// Tool returns the path of a program, or skips the test and names the package
// that has it.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		pkg := packages[name]
		if pkg == "" {
			pkg = name
		}
		Missing(t, "the program %s; on Debian: apt-get install %s", name, pkg)
	}
	return path
}

// Python returns the Python interpreter that has libnbd's module nbd.
func Python(t testing.TB) string {
	t.Helper()
	python := Tool(t, debianPython)
	if err := exec.Command(python, "-c", "import nbd").Run(); err != nil {
		Missing(t, "the module nbd of %s; on Debian: apt-get install python3-libnbd", python)
	}
	return python
}

// Need skips the test unless the machine offers what: "root", "fuse", "loop",
// "shm" (a tmpfs at /dev/shm), or "long" (go test without -short).
func Need(t testing.TB, what string) {
	t.Helper()
	switch what {
	case "root":
		if os.Geteuid() != 0 {
			Missing(t, "root: run the tests as root")
		}
	case "fuse":
		openable(t, "/dev/fuse", "FUSE: load the module fuse, or give the container /dev/fuse")
	case "loop":
		openable(t, "/dev/loop-control", "loop devices: load the module loop, and run as root")
	case "shm":
		if st, err := os.Stat("/dev/shm"); err != nil || !st.IsDir() {
			Missing(t, "a tmpfs at /dev/shm")
		}
	case "long":
		if testing.Short() {
			t.Skip("it takes long: run without -short")
		}
	default:
		t.Fatalf("testenv.Need: expected root, fuse, loop, shm or long, found %q", what)
	}
}

func openable(t testing.TB, path, reason string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		Missing(t, "%s (%v)", reason, err)
		return
	}
	_ = f.Close() // only opened to see that it can be
}

// InCI reports whether what is missing must fail the test.
func InCI() bool { return os.Getenv("CI") == "true" }

// Missing skips the test and names what is not there; with CI=true it fails.
func Missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if InCI() {
		t.Fatalf("CI=true, but missing: "+format, args...)
	}
	t.Skipf("missing: "+format, args...)
}
