//go:build linux

package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// A connection is an open /dev/fuse that has been mounted. The descriptor is
// ours, beside the one that go-fuse reads from: it tells when the kernel has
// ended the connection. The kernel ends it when both are closed.
type connection struct {
	fd     int
	target string
	device string // of the mount, major:minor
	direct bool   // mount(2) by us, not by fusermount3
}

// A mountSpec is what the kernel is told of a mount.
type mountSpec struct {
	source     string // the first column of /proc/mounts and df
	mode       uint32 // the file type of the target: S_IFDIR or S_IFREG
	maxRead    int
	allowOther bool
	readOnly   bool
}

// connect mounts at target: by itself as root, otherwise through fusermount3.
// That is a set-user-ID program, so a process under no_new_privs cannot (rule 22).
func connect(target string, spec mountSpec) (*connection, error) {
	c := &connection{target: target, direct: os.Geteuid() == 0}
	var err error
	if c.direct {
		c.fd, err = mountDirect(target, spec)
	} else {
		c.fd, err = mountByHelper(target, spec)
	}
	if err != nil {
		return nil, err
	}
	m, found, err := mountAt(target)
	if err == nil && (!found || !m.ours()) {
		err = errors.New("it was mounted, but /proc/self/mountinfo does not have it")
	}
	if err != nil {
		return nil, errors.Join(err, c.close())
	}
	c.device = m.device
	return c, nil
}

// mountDirect needs CAP_SYS_ADMIN.
func mountDirect(target string, spec mountSpec) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, adviseFuse(fmt.Errorf("open /dev/fuse: %w", err))
	}
	options := []string{
		fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d", fd, spec.mode, os.Geteuid(), os.Getegid()),
		fmt.Sprintf("max_read=%d,default_permissions", spec.maxRead),
	}
	if spec.allowOther {
		options = append(options, "allow_other")
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME)
	if spec.readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(spec.source, target, "fuse."+subtype, flags, strings.Join(options, ",")); err != nil {
		_ = unix.Close(fd)
		return -1, adviseFuse(fmt.Errorf("mount(2): %w", err))
	}
	return fd, nil
}

// adviseFuse says what to do when there is no FUSE, or no right to it.
func adviseFuse(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: the kernel has no FUSE: load the module fuse, or give the container /dev/fuse", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: mounting needs CAP_SYS_ADMIN and /dev/fuse, which a container must be given", err)
	}
	return err
}

// mountByHelper has fusermount3 mount: it sends the descriptor through a socket
// whose number it finds in its environment.
func mountByHelper(target string, spec mountSpec) (int, error) {
	helper, err := exec.LookPath("fusermount3")
	if err != nil {
		return -1, errors.New("mounting without being root needs the program fusermount3; on Debian: apt-get install fuse3")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "fusermount3"), os.NewFile(uintptr(pair[1]), "fusermount3")
	defer ours.Close() //nolint:errcheck // nothing is written
	var stderr bytes.Buffer
	cmd := exec.Command(helper, "-o", helperOptions(spec), "--", target)
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs} // becomes 3
	cmd.Stderr = &stderr
	err = cmd.Run()
	_ = theirs.Close()
	if err != nil {
		return -1, adviseHelper(stderr.String(), err)
	}
	return receiveDescriptor(ours)
}

func helperOptions(spec mountSpec) string {
	escape := strings.NewReplacer(`\`, `\\`, ",", `\,`)
	options := []string{
		"fsname=" + escape.Replace(spec.source), "subtype=" + subtype,
		fmt.Sprintf("max_read=%d", spec.maxRead), "default_permissions", "nosuid", "nodev", "noexec", "noatime",
	}
	if spec.allowOther {
		options = append(options, "allow_other")
	}
	if spec.readOnly {
		options = append(options, "ro")
	}
	return strings.Join(options, ",")
}

func adviseHelper(said string, err error) error {
	said = strings.TrimSpace(said)
	if said == "" {
		return fmt.Errorf("fusermount3: %w", err)
	}
	if strings.Contains(said, "user_allow_other") {
		said += "; or leave --allow-other out"
	}
	return errors.New(said) // it begins with its own name, and has the reason
}

func receiveDescriptor(socket *os.File) (int, error) {
	space := make([]byte, unix.CmsgSpace(4))
	var n int
	var err error
	_, n, _, _, err = unix.Recvmsg(int(socket.Fd()), make([]byte, 1), space, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fusermount3: receive the descriptor: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(space[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("fusermount3: expected one message with a descriptor, found %d (%w)", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return -1, fmt.Errorf("fusermount3: expected one descriptor, found %d (%w)", len(fds), err)
	}
	return fds[0], nil
}

// duplicate returns one more descriptor, for go-fuse, which closes it.
func (c *connection) duplicate() (int, error) {
	return unix.FcntlInt(uintptr(c.fd), unix.F_DUPFD_CLOEXEC, 0)
}

// gone reports whether the kernel has ended the connection: unmounted for good,
// or aborted.
func (c *connection) gone() bool {
	p := []unix.PollFd{{Fd: int32(c.fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&unix.POLLERR != 0
}

// unmount removes the mount, unless it is gone or another one lies on it. With
// lazy it succeeds while somebody has it open: who has goes on until he closes
// it, nobody new finds it.
func (c *connection) unmount(lazy bool) error {
	m, found, err := mountAt(c.target)
	if err != nil || !found || m.device != c.device {
		return err
	}
	// Once the connection has ended, a mount with its number is either what it
	// left when it was aborted, or that of somebody who was given the number next.
	if c.gone() && !isDead(c.target) {
		return nil
	}
	return unmount(c.target, c.direct, lazy)
}

// isDead reports whether the server of what is mounted at target is gone. It
// uses statfs(2), which always asks the server; stat(2) may be answered from what
// the kernel remembers.
func isDead(target string) bool {
	var s unix.Statfs_t
	return errors.Is(unix.Statfs(target, &s), unix.ENOTCONN)
}

func (c *connection) close() error { return unix.Close(c.fd) }

// unmount removes what is mounted at target; EBUSY while somebody has it open.
func unmount(target string, direct, lazy bool) error {
	if direct {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		if err := unix.Unmount(target, flags); err != nil {
			return fmt.Errorf("umount2: %w", err)
		}
		return nil
	}
	option := "-u"
	if lazy {
		option = "-uz"
	}
	out, err := exec.Command("fusermount3", option, "--", target).CombinedOutput()
	switch {
	case err == nil:
		return nil
	case bytes.Contains(bytes.ToLower(out), []byte("busy")):
		return fmt.Errorf("fusermount3: %w", unix.EBUSY)
	}
	return adviseHelper(string(out), err)
}
