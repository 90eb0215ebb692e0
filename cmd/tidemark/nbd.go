package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/unixsock"
	"tidemark/nbd"
)

// nbdOptions are the options of tidemark nbd as they are given.
type nbdOptions struct {
	socket, bind string
	port         int
	insecure     bool
	socketMode   string
	socketGroup  string

	name, description string
	more              []string // --export NAME=IMAGE
	spm               string
	noDM              bool
	readOnly          bool

	shared, maxConnections int
	persistent             bool
	patience               time.Duration
	handshake              int // seconds

	format  *choice
	backing *backingChoice
	discard *choice
	aio     *choice
	pidFile string
	qmp     string
	verbose bool
	list    bool
	version bool
}

const nbdHelp = `Serve QCOW2 images over NBD, on a unix socket or over TCP, until SIGTERM or
Ctrl-C, or without -t until the last client has gone. The socket appears when
everything is ready. At the end everything is committed and reserved space is
given back; a second signal ends at once.

With --spm, or TIDEMARK_SPM set, an IMAGE without a slash in it is a volume of the
pool, by its name, its image's UUID or its own, and it grows by itself. ./FILE is
always a file.

Differences from qemu-nbd: a socket on which somebody answers is refused, a stale
one replaced; TCP binds to 127.0.0.1; images are QCOW2 unless -f raw says otherwise,
and are never guessed; a backing file is opened only as --backing allows;
discard=unmap is the default; -e defaults to 0, which is no limit but
--max-connections.`

const nbdExample = `  tidemark create disk.qcow2 10G
  tidemark nbd -t -k /tmp/disk.sock disk.qcow2
  qemu-system-x86_64 ... -drive file=nbd+unix:///?socket=/tmp/disk.sock,format=raw,if=virtio

  tidemark nbd -t -k /tmp/all.sock --export root=root.qcow2 --export data=data.qcow2
  tidemark nbd -t -k /tmp/top.sock --backing auto top.qcow2
  tidemark nbd -t -k /tmp/vm1.sock --spm /run/tidemark/spm.sock vm1
  tidemark nbd -L -k /tmp/all.sock`

func newNBD(g *global) *cobra.Command {
	o := &nbdOptions{}
	c := &cobra.Command{
		Use:     "nbd [OPTIONS] IMAGE",
		Short:   "Serve images and volumes over NBD",
		Long:    nbdHelp,
		Example: nbdExample,
	}
	o.addFlags(c)
	refuseNBD(c)
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, args []string) error {
		if o.version {
			_, err := fmt.Fprintln(c.OutOrStdout(), "tidemark nbd", version)
			return err
		}
		if o.verbose && !c.Flags().Changed("log-level") {
			g.logLevel = "debug"
		}
		log, err := g.logger(c.ErrOrStderr())
		if err != nil {
			return err
		}
		p, err := o.plan(args, c.Flags().Changed, os.Getenv("TIDEMARK_SPM"))
		if err != nil {
			return fmt.Errorf("nbd: %w", err)
		}
		if o.list {
			return listExports(c.Context(), c.OutOrStdout(), p.network, p.address)
		}
		if v := o.aio.value; v != "threads" {
			log.Debug("option has no effect: requests are served by threads", "aio", v)
		}
		return serveNBD(c.Context(), p, log)
	}
	return c
}

func (o *nbdOptions) addFlags(c *cobra.Command) {
	f := c.Flags()
	f.StringVarP(&o.socket, "socket", "k", "", "unix socket to make")
	f.StringVar(&o.socketMode, "socket-mode", "0600", "permissions of the socket; connecting needs write")
	f.StringVar(&o.socketGroup, "socket-group", "", "group of the socket, by name or number")
	f.IntVarP(&o.port, "port", "p", 10809, "TCP port; 0 is a free one, which the log tells")
	f.StringVarP(&o.bind, "bind", "b", "127.0.0.1", "TCP address")
	f.BoolVar(&o.insecure, "insecure", false, "serve beyond this host although nothing is encrypted and nobody is asked who he is")

	f.StringVarP(&o.name, "export-name", "x", "", "name of the export IMAGE")
	f.StringVarP(&o.description, "description", "D", "", "description of the export IMAGE")
	f.StringArrayVar(&o.more, "export", nil, "one more image: NAME=IMAGE; may be repeated")
	f.StringVar(&o.spm, "spm", "", "socket of the pool manager (default $TIDEMARK_SPM): IMAGE is a volume")
	o.format = formatFlag(c)
	o.backing = backingFlag(c, false)
	unsafeNoDM(f, &o.noDM)
	f.BoolVarP(&o.readOnly, "read-only", "r", false, "refuse writes")

	f.IntVarP(&o.shared, "shared", "e", 0, "serve at most NUM clients at a time, the next one waits; 0 is no limit")
	f.IntVar(&o.maxConnections, "max-connections", 100, "close connections above this number")
	f.BoolVarP(&o.persistent, "persistent", "t", false, "do not exit when the last client has gone")
	f.DurationVar(&o.patience, "patience", 20*time.Second, "how long a write may wait for space until the guest gets ENOSPC; a volume's default is its pool's")
	f.IntVar(&o.handshake, "handshake-limit", 10, "seconds that a client has for its handshake")

	cacheFlag(c, "cache", "")
	o.aio = &choice{value: "threads", allowed: []string{"threads", "native", "io_uring"}}
	f.Var(o.aio, "aio", "threads; the others are accepted and have no effect")
	o.discard = &choice{value: "unmap", allowed: []string{"unmap", "ignore", "on", "off"}}
	f.Var(o.discard, "discard", "what to do with what the guest discards")
	const noDetect = "looking for zeroes in what is written is not supported: use off, and let the client send WRITE_ZEROES"
	f.Var(&choice{value: "off", allowed: []string{"off"}, refused: map[string]string{"on": noDetect, "unmap": noDetect}},
		"detect-zeroes", "off")

	f.StringVar(&o.qmp, "qmp", "", "QMP socket of the QEMU that uses the volume: when a write has got ENOSPC, which pauses the guest, let it go on when there is space")
	f.StringVar(&o.pidFile, "pid-file", "", "write the process's number to this file when the socket is ready")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "as --log-level debug")
	f.BoolVarP(&o.list, "list", "L", false, "list the exports of the server at -k, or -b and -p")
	f.BoolVarP(&o.version, "version", "V", false, "print the version")
}

// refuseNBD are the options of qemu-nbd that are not there, and one of ours that
// is not there yet.
func refuseNBD(c *cobra.Command) {
	const noTLS = "TLS is not supported yet: use a unix socket (-k), or bind to 127.0.0.1 behind ssh or stunnel"
	const noDevice = "the kernel's client is not started from here: use nbd-client -unix SOCKET DEVICE"
	const noSnapshot = "not supported yet: use qemu-nbd, or copy the snapshot out with qemu-img convert -l"
	refuse(c, refuseObject, refuseImageOpts,
		refusal{"tls-creds", "", true, noTLS}, refusal{"tls-authz", "", true, noTLS}, refusal{"tls-hostname", "", true, noTLS},
		refusal{"connect", "c", true, noDevice},
		refusal{"disconnect", "d", true, "the kernel's client is not stopped from here: use nbd-client -d DEVICE"},
		refusal{"offset", "o", true, "serving part of an image is not supported: use nbdkit --filter=offset, or a partition in the guest"},
		refusal{"allocation-depth", "A", false, "the metadata context qemu:allocation-depth is not supported yet: base:allocation is always there"},
		refusal{"bitmap", "B", true, "dirty bitmaps are not supported yet: use qemu-nbd -B on an image that nothing writes to"},
		refusal{"snapshot", "s", false, noSnapshot}, refusal{"load-snapshot", "l", true, noSnapshot},
		refusal{"nocache", "n", false, "bypassing the page cache is not supported yet: use --cache=writeback, the default"},
		refusal{"fork", "", false, "not supported yet: start it from systemd, or in the background (&) and wait for the socket or the --pid-file"},
		refusal{"control", "", true, "not supported yet: the log says what is served, SIGTERM ends it, and tidemark volume list shows the pool"},
		refusal{"trace", "T", true, "trace points are not there: use -v"},
		refusal{"selinux-label", "", true, "not supported: set the label with a policy, or chcon after the start"})
}

// An nbdPlan is what the options mean.
type nbdPlan struct {
	exports          []nbdExport
	spm              string // socket of the pool manager, "" if no export is a volume
	network, address string
	socket           unixsock.Options
	raw              bool          // the files are the disks
	backing          backingChoice // what may be opened below an image
	readOnly         bool
	ignoreDiscard    bool
	noDM             bool
	shared           int
	persistent       bool
	pidFile          string
	qmp              string      // of the QEMU that uses the volumes, "" if it is not to be resumed
	server           nbd.Options // without the logger
	patient          bool        // --patience was given: it goes before that of a pool
}

type nbdExport struct {
	name, description, image string
	volume                   bool
}

// plan validates the options. It opens nothing.
func (o *nbdOptions) plan(images []string, changed func(string) bool, env string) (nbdPlan, error) {
	p := nbdPlan{
		raw: o.format.value == formatRaw, backing: *o.backing,
		readOnly: o.readOnly, shared: o.shared, persistent: o.persistent, pidFile: o.pidFile, qmp: o.qmp,
		noDM:          o.noDM,
		ignoreDiscard: o.discard.value == "ignore" || o.discard.value == "off",
		patient:       changed("patience"),
		server: nbd.Options{MaxConnections: o.maxConnections, Patience: o.patience,
			HandshakeTimeout: time.Duration(o.handshake) * time.Second},
	}
	err := o.checkNumbers()
	if err == nil {
		err = o.planAddress(&p, changed)
	}
	if err == nil && !o.list {
		err = o.planExports(&p, images, cmp.Or(o.spm, env))
	}
	return p, err
}

func (o *nbdOptions) checkNumbers() error {
	switch {
	case o.shared < 0:
		return fmt.Errorf("-e %d: expected 0 (no limit) or more", o.shared)
	case o.maxConnections < 1:
		return fmt.Errorf("--max-connections %d: expected 1 or more", o.maxConnections)
	case o.patience <= 0:
		return fmt.Errorf("--patience %v: expected more than nothing, such as 20s", o.patience)
	case o.handshake < 1:
		return fmt.Errorf("--handshake-limit %d: expected 1 second or more", o.handshake)
	case o.port < 0 || o.port > 65535:
		return fmt.Errorf("-p %d: expected a port from 0 to 65535", o.port)
	}
	return nil
}

// planAddress decides where to listen, or with -L where to ask.
func (o *nbdOptions) planAddress(p *nbdPlan, changed func(string) bool) (err error) {
	if o.socket != "" {
		if changed("port") || changed("bind") {
			return errors.New("-k is a unix socket, -p and -b are TCP: give the one or the other")
		}
		p.network, p.address = "unix", o.socket
		p.socket, err = socketOptions(o.socketMode, o.socketGroup)
		return err
	}
	if changed("socket-mode") || changed("socket-group") || changed("socket") {
		return errors.New("--socket-mode and --socket-group belong to a unix socket: give its path with -k")
	}
	if !o.insecure && !o.list && !isLoopback(o.bind) {
		return fmt.Errorf("-b %s: everybody who reaches that address could read and write the disk, because TLS is not supported yet: "+
			"use -k or -b 127.0.0.1, or add --insecure", o.bind)
	}
	p.network, p.address = "tcp", net.JoinHostPort(strings.Trim(o.bind, "[]"), strconv.Itoa(o.port))
	return nil
}

// isLoopback reports whether only this host reaches the address. Names are not
// looked up: what they mean may change.
func isLoopback(bind string) bool {
	ip := net.ParseIP(strings.Trim(bind, "[]"))
	return bind == "localhost" || ip != nil && ip.IsLoopback()
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

// planExports decides what is served under which name.
func (o *nbdOptions) planExports(p *nbdPlan, images []string, pool string) error {
	if len(images) > 1 {
		return fmt.Errorf("expected one IMAGE, found %d (%s): give the others as --export NAME=IMAGE", len(images), strings.Join(images, " "))
	}
	for _, image := range images {
		p.exports = append(p.exports, nbdExport{name: o.name, description: o.description, image: image})
	}
	if len(images) == 0 && (o.name != "" || o.description != "") {
		return errors.New("-x and -D describe IMAGE, and there is none: give IMAGE, or --export NAME=IMAGE instead")
	}
	for _, x := range o.more {
		name, image, ok := strings.Cut(x, "=")
		if !ok || image == "" {
			return fmt.Errorf("--export %s: expected NAME=IMAGE", x)
		}
		p.exports = append(p.exports, nbdExport{name: name, image: image})
	}
	if len(p.exports) == 0 {
		return errors.New("expected an IMAGE to serve, found none; see tidemark nbd --help")
	}
	names, sources := map[string]bool{}, map[string]bool{}
	for i := range p.exports {
		x := &p.exports[i]
		switch {
		case names[x.name]:
			return fmt.Errorf("the export name %q is given twice: choose another one for %s", x.name, x.image)
		case sources[x.image]:
			return fmt.Errorf("%s is given twice: an image is served under one name", x.image)
		}
		names[x.name], sources[x.image] = true, true
		x.volume = isVolume(x.image, pool)
		if x.volume {
			p.spm = pool
		}
	}
	if o.spm != "" && p.spm == "" {
		return fmt.Errorf("--spm %s: expected the name or UUID of a volume, found the path %s", o.spm, p.exports[0].image)
	}
	return p.checkFormat()
}

// checkFormat says whether the format and the backing files fit the exports.
func (p *nbdPlan) checkFormat() error {
	switch {
	case p.qmp != "" && p.spm == "":
		return errors.New("--qmp is about space that a pool gives: expected a volume (--spm), found files only")
	case p.spm != "" && p.raw:
		return errors.New("-f raw: volumes of a pool are served as QCOW2 only for now")
	case p.spm != "" && p.backing.given():
		return errors.New("--backing: expected files, found a volume: what is below a volume is its pool's to say")
	case p.raw && p.backing.given():
		return errors.New("--backing: a raw image has no backing file: expected -f qcow2")
	case len(p.backing.explicit) > 0 && len(p.exports) > 1:
		return fmt.Errorf("--backing %s: expected one image, found %d: serve the others by another process", &p.backing, len(p.exports))
	}
	return nil
}

// logAttrs describe an export in the log.
func (x nbdExport) logAttrs(d *disk) slog.Attr {
	kind := "image"
	if x.volume {
		kind = "volume"
	}
	return slog.Group("export", "name", x.name, kind, x.image, "file", d.Path(), "size", d.Device().Info().Size)
}

// printExport prints one export as qemu-nbd -L does.
func printExport(w io.Writer, x nbd.ExportInfo) {
	fmt.Fprintf(w, " export: '%s'\n", printable(x.Name))
	if x.Description != "" {
		fmt.Fprintf(w, "  description: %s\n", printable(x.Description))
	}
	fmt.Fprintf(w, "  size:  %d\n", x.Size)
	var flags []string
	if x.ReadOnly {
		flags = append(flags, "readonly")
	}
	if x.MultiConn {
		flags = append(flags, "multi")
	}
	fmt.Fprintf(w, "  flags: ( %s )\n", strings.Join(flags, " "))
	fmt.Fprintf(w, "  min block: %d\n  opt block: %d\n  max block: %d\n", x.MinBlock, x.PreferredBlock, x.MaxPayload)
}
