package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
)

// nbdOptions are the options of tidemark nbd as they are given.
type nbdOptions struct {
	socket, bind string
	port         int
	vsock        bool
	inherited    int // sockets that the service manager has made
	insecure     bool
	socketMode   string
	socketGroup  string

	objects                         []string
	tlsCreds, tlsAuthz, tlsHostname string

	name, description string
	more              []string // --export NAME=IMAGE
	spm, domain       string
	noDM              bool
	allowIllegal      bool
	readOnly          bool
	allocationDepth   bool
	rotational        bool

	shared, maxConnections int
	persistent             bool
	patience               time.Duration
	handshake              int // seconds

	format  *choice
	backing *backingChoice
	discard *choice
	aio     *choice
	fork    bool
	pidFile string
	failure string
	qmp     string
	control string
	verbose bool
	list    bool
	version bool
}

const nbdHelp = `Serve QCOW2 images over NBD, on a unix socket or over TCP, until SIGTERM or
Ctrl-C, or without -t until the last client has gone. The socket appears when
everything is ready. At the end everything is committed and reserved space is
given back; a second signal ends at once.

With --control, the disks can be looked at and changed while they are served: made
larger, which NBD clients see when they connect again; and a pool's volume gets
snapshots, and is merged into the one below it. curl --unix-socket PATH http://./

A socket that systemd passes (LISTEN_FDS) is used instead of -k, -b and -p.

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
  tidemark nbd -t -b 192.0.2.1 --tls-creds /etc/pki/tidemark/ disk.qcow2
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
	completeServed(c, &o.spm)
	completeDomainID(c, &o.spm)
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
		o.inherited = inheritedSockets(os.Getenv, os.Getpid())
		p, err := o.plan(args, c.Flags().Changed, os.Getenv("TIDEMARK_SPM"))
		if err != nil {
			return fmt.Errorf("nbd: %w", err)
		}
		if o.list {
			return listExports(c.Context(), c.OutOrStdout(), p)
		}
		if o.fork && !isForked() {
			return fork()
		}
		if v := o.aio.value; v != "threads" {
			log.Debug("option has no effect: requests are served by threads", "aio", v)
		}
		err = serveNBD(c.Context(), p, log)
		if err != nil && o.failure != "" {
			err = errors.Join(err, writeFailure(o.failure, err))
		}
		return err
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
	f.BoolVar(&o.vsock, "vsock", false, "listen on vsock, for the machines of this host or the host of this machine; -p is the port")
	f.BoolVar(&o.insecure, "insecure", false, "serve beyond this host although nobody has to prove who he is")
	f.StringArrayVar(&o.objects, "object", nil, "tls-creds-x509,id=ID,endpoint=server|client,dir=DIR[,verify-peer=no] or authz-simple,id=ID,identity=DN")
	f.StringVar(&o.tlsCreds, "tls-creds", "", "require TLS, with the credentials of that --object, or those in a directory")
	f.StringVar(&o.tlsAuthz, "tls-authz", "", "serve only the client that this --object names")
	f.StringVar(&o.tlsHostname, "tls-hostname", "", "with -L: the name in the server's certificate (default: the address)")

	f.StringVarP(&o.name, "export-name", "x", "", "name of the export IMAGE")
	f.StringVarP(&o.description, "description", "D", "", "description of the export IMAGE")
	f.StringArrayVar(&o.more, "export", nil, "one more image: NAME=IMAGE; may be repeated")
	f.StringVar(&o.spm, "spm", "", "socket of the pool manager (default $TIDEMARK_SPM): IMAGE is a volume")
	f.StringVar(&o.domain, "domain", "", "UUID of the domain whose volumes are meant, if the pool has copies of them in several")
	o.format = formatFlag(c)
	o.backing = backingFlag(c, false)
	unsafeNoDM(f, &o.noDM)
	f.BoolVar(&o.allowIllegal, "allow-illegal", false, "serve a volume of a pool although an operation on it was not completed")
	f.BoolVarP(&o.readOnly, "read-only", "r", false, "refuse writes")

	f.BoolVarP(&o.allocationDepth, "allocation-depth", "A", false, "offer the metadata context qemu:allocation-depth")

	f.BoolVar(&o.rotational, "rotational", false, "tell clients that the disk below rotates, so that they sort their requests")

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

	f.BoolVar(&o.fork, "fork", false, "go to the background when the socket is ready; nothing is logged from then on")
	f.StringVar(&o.qmp, "qmp", "", "QMP socket of the QEMU that uses the volume: when a write has got ENOSPC, which pauses the guest, let it go on when there is space")
	f.StringVar(&o.control, "control", "", "unix socket to make, with mode 0600, on which the process tells what it serves and is steered, in HTTP and JSON: GET /, POST /flush /resize /snapshot /merge /pivot /cancel /manager /stop")
	f.StringVar(&o.failure, "failure", "", "write why serving has failed to this file, as JSON")
	_ = f.MarkHidden("failure") // for the pool manager; it is there
	f.StringVar(&o.pidFile, "pid-file", "", "write the process's number to this file when the socket is ready")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "as --log-level debug")
	f.BoolVarP(&o.list, "list", "L", false, "list the exports of the server at -k, or -b and -p")
	f.BoolVarP(&o.version, "version", "V", false, "print the version")
}

// refuseNBD are the options of qemu-nbd that are not there.
func refuseNBD(c *cobra.Command) {
	const noDevice = "the kernel's client is not started from here: use nbd-client -unix SOCKET DEVICE"
	const noSnapshot = "not supported yet: use qemu-nbd, or copy the snapshot out with qemu-img convert -l"
	refuse(c, refuseImageOpts,
		refusal{"connect", "c", true, noDevice},
		refusal{"disconnect", "d", true, "the kernel's client is not stopped from here: use nbd-client -d DEVICE"},
		refusal{"offset", "o", true, "serving part of an image is not supported: use nbdkit --filter=offset, or a partition in the guest"},
		refusal{"bitmap", "B", true, "dirty bitmaps are not supported yet: use qemu-nbd -B on an image that nothing writes to"},
		refusal{"snapshot", "s", false, noSnapshot}, refusal{"load-snapshot", "l", true, noSnapshot},
		refusal{"nocache", "n", false, "bypassing the page cache is not supported yet: use --cache=writeback, the default"},
		refusal{"trace", "T", true, "trace points are not there: use -v"},
		refusal{"selinux-label", "", true, "not supported: set the label with a policy, or chcon after the start"})
}
