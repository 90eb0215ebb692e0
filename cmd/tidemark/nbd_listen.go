package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"tidemark/internal/unixsock"
	"tidemark/internal/vsock"
)

// A listenPlan says where to listen, or with -L where to ask.
type listenPlan struct {
	network string // unix, tcp, vsock, or inherited from the service manager
	address string
	host    string // of the address; "" for a unix socket
	port    int
	socket  unixsock.Options

	insecure bool // whoever reaches the socket may use it
}

const (
	overVsock = "vsock"
	inherited = "inherited"

	// inheritedFD is the first socket that the service manager passes (sd_listen_fds).
	inheritedFD = 3
)

// inheritedSockets is how many sockets the service manager has passed to this
// process.
func inheritedSockets(getenv func(string) string, pid int) int {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return 0 // they are somebody else's
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// planAddress decides where to listen, or with -L where to ask.
func (o *nbdOptions) planAddress(p *nbdPlan, changed func(string) bool) error {
	p.insecure = o.insecure || p.tls.secure() && p.tls.verifyPeer
	tcp, unixOnly := changed("port") || changed("bind"), changed("socket-mode") || changed("socket-group")
	switch {
	case o.inherited > 0 && !o.list:
		return o.planInherited(p, tcp || unixOnly || o.socket != "" || o.vsock)
	case o.vsock:
		return o.planVsock(p, changed("bind") || unixOnly || o.socket != "")
	case o.socket != "" && tcp:
		return errors.New("-k is a unix socket, -p and -b are TCP: give the one or the other")
	case o.socket != "":
		return o.planUnix(p)
	case unixOnly || changed("socket"):
		return errors.New("--socket-mode and --socket-group belong to a unix socket: give its path with -k")
	}
	if !p.insecure && !o.list && !isLoopback(o.bind) {
		return tooOpen("-b " + o.bind)
	}
	p.host = strings.Trim(o.bind, "[]")
	p.network, p.address = "tcp", net.JoinHostPort(p.host, strconv.Itoa(o.port))
	return nil
}

func tooOpen(where string) error {
	return fmt.Errorf("%s: everybody who reaches that address could read and write the disk: "+
		"use -k, -b 127.0.0.1 or --tls-creds with verified clients, or add --insecure", where)
}

func (o *nbdOptions) planUnix(p *nbdPlan) (err error) {
	p.network, p.address = "unix", o.socket
	p.socket, err = socketOptions(o.socketMode, o.socketGroup)
	return err
}

// socketOptions reads who may connect to a socket.
func socketOptions(mode, group string) (o unixsock.Options, err error) {
	n, err := strconv.ParseUint(mode, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return o, fmt.Errorf("--socket-mode %s: expected an octal mode from 0001 to 0777, such as 0660", mode)
	}
	o.Mode = fs.FileMode(n)
	o.Group, err = groupNumber(group)
	return o, err
}

func (o *nbdOptions) planInherited(p *nbdPlan, another bool) error {
	switch {
	case o.inherited > 1:
		return fmt.Errorf("LISTEN_FDS=%d: expected one socket of the service manager", o.inherited)
	case another:
		return errors.New("the service manager has passed a socket: expected no -k, -p, -b, --vsock, --socket-mode or --socket-group")
	case o.fork:
		return errors.New("--fork: the service manager has passed a socket, and does not want the process to go away")
	}
	p.network = inherited
	return nil
}

func (o *nbdOptions) planVsock(p *nbdPlan, another bool) error {
	switch {
	case another:
		return errors.New("--vsock takes a port with -p: expected no -k, -b, --socket-mode or --socket-group")
	case o.list:
		return errors.New("-L: asking over vsock is not supported: use -k, or -b and -p")
	case !p.insecure:
		return tooOpen("--vsock")
	}
	p.network, p.port = overVsock, o.port
	return nil
}

// listener makes the socket.
func (p listenPlan) listener(ctx context.Context) (net.Listener, error) {
	switch p.network {
	case "unix":
		return unixsock.Listen(p.address, p.socket)
	case overVsock:
		return vsock.Listen(uint32(p.port)) //nolint:gosec // checkNumbers
	case inherited:
		return p.inherit()
	}
	var c net.ListenConfig
	l, err := c.Listen(ctx, p.network, p.address)
	if err != nil {
		return nil, fmt.Errorf("%w: choose another address with -b or port with -p", err)
	}
	return l, nil
}

// inherit takes the service manager's socket, and nothing that this process starts
// has it. Its path stays when it is closed: it is not ours.
func (p listenPlan) inherit() (net.Listener, error) {
	unix.CloseOnExec(inheritedFD)
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	f := os.NewFile(inheritedFD, "LISTEN_FDS")
	defer f.Close() //nolint:errcheck // FileListener has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket that the service manager passed (descriptor %d): %w", inheritedFD, err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !p.insecure && !a.IP.IsLoopback() {
		return nil, errors.Join(tooOpen("the service manager's socket "+a.String()), l.Close())
	}
	return l, nil
}

// isLoopback reports whether only this host reaches the address. Names are not
// looked up: what they mean may change.
func isLoopback(bind string) bool {
	ip := net.ParseIP(strings.Trim(bind, "[]"))
	return bind == "localhost" || ip != nil && ip.IsLoopback()
}

func groupNumber(group string) (int, error) {
	if group == "" {
		return 0, nil
	}
	if n, err := strconv.Atoi(group); err == nil && n >= 0 {
		return n, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("--socket-group %s: there is no such group", group)
	}
	return strconv.Atoi(g.Gid)
}
