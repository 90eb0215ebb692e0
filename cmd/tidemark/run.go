package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidemark/fusefs"
	"tidemark/internal/size"
	"tidemark/internal/unixsock"
	"tidemark/nbd"
	"tidemark/spm"
)

// runOptions say what tidemark run serves.
type runOptions struct {
	pool     poolOptions
	size     bytesFlag // of the volume, if it has to be made
	name     string    // of the only volume to serve; "" is all of them
	socket   string    // of NBD; "" is nbd.sock in the pool's directory
	patience time.Duration
	files    *choice // auto or off; nil is off
	output   *outputFormat
}

func newRun(g *global) *cobra.Command {
	o := &runOptions{}
	c := &cobra.Command{
		Use:   "run --dir DIR --capacity SIZE [--size SIZE NAME]",
		Short: "Everything in one process: a pool in a directory, its disks over NBD and as files",
		Long: `Manage the pool in a directory and serve its disks over NBD, in one process and
without root, until Ctrl-C. Pool and disk are made when they are not there, and
are as they were left the next time. Where FUSE can be used, each disk is a file
NAME.raw in DIR/disks as well; who writes there waits for as long as the pool is
full.

With NAME that volume is served, and made with --size if the pool has none of
that name; without it all qcow2 volumes of the pool are. Those that are made
later ("tidemark volume create") are served after a restart.`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return fmt.Errorf("run: expected one NAME, found %q; without a NAME all volumes are served", args)
			}
			return nil
		},
	}
	addPoolFlags(c.Flags(), &o.pool)
	c.Flags().Var((*diskSizeFlag)(&o.size), "size", "virtual size of the volume, if it has to be made")
	c.Flags().StringVar(&o.socket, "socket", "", "unix socket of NBD (default DIR/nbd.sock)")
	c.Flags().DurationVar(&o.patience, "patience", 20*time.Second, "how long a write may wait for space until the guest gets ENOSPC")
	o.files = &choice{value: "auto", allowed: []string{"auto", "off"}}
	c.Flags().Var(o.files, "files", "show the disks as files in DIR/disks, if it can be done")
	o.output = outputFlag(c)
	c.ValidArgsFunction = cobra.NoFileCompletions // a name; no manager runs that would know it
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 1 {
			o.name = args[0]
		}
		screen := newLive(c.OutOrStdout())
		log, err := g.quietLogger(c, screen.Above(c.ErrOrStderr()))
		if err != nil {
			return err
		}
		return o.run(c.Context(), screen, log)
	}
	return c
}

// quietLogger is for commands that show by themselves what goes on: without
// --log-level it logs what is out of the ordinary only.
func (g *global) quietLogger(c *cobra.Command, w io.Writer) (*slog.Logger, error) {
	if !c.Flags().Changed("log-level") {
		quiet := *g
		quiet.logLevel = "warn"
		return quiet.logger(w)
	}
	return g.logger(w)
}

func (o *runOptions) run(ctx context.Context, screen *live, log *slog.Logger) error {
	// A reader of our output that goes away must not end the disks, nor leave dead
	// files behind.
	signal.Ignore(syscall.SIGPIPE)
	s, err := startService(ctx, o, log)
	if err != nil {
		return err
	}
	if *o.output == "json" {
		return errors.Join(s.watch(ctx, newStatusLines(screen.out, s)), s.Close())
	}
	out := screen.Above(screen.out)
	fmt.Fprint(out, s.welcome(ctx))
	err = s.watch(ctx, screen)
	screen.End()
	fmt.Fprintln(out, "stopping: ending connections, committing, giving reserved space back")
	if err = errors.Join(err, s.Close()); err != nil {
		return err
	}
	fmt.Fprintln(out, "stopped; everything that was written is in", o.pool.dir)
	return nil
}

// A service is a pool, its disks and their front ends in one process. What is
// opened is closed again in the reverse order:
//
//	NBD server, files -> disks -> pool manager
type service struct {
	pool   *pool
	disks  []*disk
	names  []string // of the disks
	server *nbd.Server
	socket string
	failed chan error // the NBD socket does not answer any more
	served sync.WaitGroup
	memory memoryBudget

	files    *fusefs.FS // nil if the disks are not shown as files
	notShown error      // why not, if they were to be
}

// check finds the mistakes that need no look at the disk.
func (o *runOptions) check() error {
	switch {
	case o.size != 0 && o.name == "":
		return fmt.Errorf("--size %s of which volume? give its NAME at the end: tidemark run ... --size %s NAME", o.size.String(), plainSize(o.size))
	case o.patience <= 0:
		return fmt.Errorf("--patience %v: expected more than nothing, such as 20s", o.patience)
	}
	return o.pool.check()
}

// plainSize writes a size as it is typed.
func plainSize(b bytesFlag) string {
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), "iB"), " ", "")
}

// startService opens everything and serves. The socket appears when all disks
// are ready.
func startService(ctx context.Context, o *runOptions, log *slog.Logger) (*service, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	p, err := openPool(&o.pool, log)
	if err != nil {
		return nil, err
	}
	memory := respectMemory(log)
	s := &service{
		pool: p, failed: make(chan error, 1), memory: memory,
		server: nbd.NewServer(nbd.Options{Logger: log, Patience: o.patience, MaxInFlightBytes: memory.requests()}),
		socket: cmp.Or(o.socket, filepath.Join(o.pool.dir, "nbd.sock")),
	}
	if err := s.start(ctx, o, log); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *service) start(ctx context.Context, o *runOptions, log *slog.Logger) error {
	names, err := s.choose(ctx, o, log)
	if err != nil {
		return err
	}
	for _, name := range names {
		d, err := openDisk(ctx, diskSpec{Image: name, Pool: s.pool, CacheBytes: s.memory.cache(len(names)), Log: log})
		if err != nil {
			return err
		}
		s.disks, s.names = append(s.disks, d), append(s.names, name)
		if err := s.server.AddExport(nbd.Export{Name: name, Device: d.Device()}); err != nil {
			return err
		}
	}
	s.show(o, log)
	l, err := unixsock.Listen(s.socket, unixsock.Options{})
	if err != nil {
		return err
	}
	s.served.Go(func() { s.serve(l) })
	return nil
}

func (s *service) serve(l net.Listener) {
	if err := s.server.Serve(l); err != nil {
		s.failed <- err
	}
}

// choose returns the names of the volumes to serve, and makes the one that was
// named if it is not there.
func (s *service) choose(ctx context.Context, o *runOptions, log *slog.Logger) ([]string, error) {
	if o.name != "" {
		return []string{o.name}, s.ensure(ctx, o, log)
	}
	l, err := s.pool.ListVolumes(ctx, spm.VolumeListRequest{})
	if err != nil {
		return nil, err
	}
	parents := map[string]bool{}
	for _, v := range l.Volumes {
		parents[v.ParentUUID] = true
	}
	var found []string
	for _, v := range l.Volumes {
		switch {
		case parents[v.VolumeUUID]: // it is part of others
		case v.Damaged != "":
			log.Warn("volume is damaged, and is not served", "volume", v.Name, "error", v.Damaged)
		default:
			found = append(found, v.Name)
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("pool %s has no volume to serve; name one to be made: tidemark run --dir %s --size 10G disk1",
			o.pool.dir, shellQuote(o.pool.dir))
	}
	return found, nil
}

// ensure makes the named volume if it is not there.
func (s *service) ensure(ctx context.Context, o *runOptions, log *slog.Logger) error {
	v, err := s.pool.GetVolumeInfo(ctx, spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: o.name}})
	switch {
	case err == nil && o.size != 0 && v.Size != int64(o.size):
		log.Warn("the volume is there already, with another size, which it keeps", "volume", v.Name, "size", v.Size, "asked", int64(o.size))
		return nil
	case err == nil:
		return nil
	case spm.CodeOf(err) != spm.CodeNotFound:
		return err
	case o.size == 0:
		return fmt.Errorf("%w; to have it made, give its size: tidemark run ... --size 10G %s", err, shellQuote(o.name))
	}
	_, err = s.pool.CreateVolume(ctx, spm.VolumeCreateRequest{Name: o.name, Size: int64(o.size)})
	return adviseFull(ctx, s.pool, err)
}

// drainLimit is how long requests in progress may take when the service stops.
// Those that wait for space are cancelled at once.
const drainLimit = 10 * time.Second

// Close ends the service; see the type.
func (s *service) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	errs := s.closeFrontEnds(ctx)
	for _, d := range s.disks {
		errs = append(errs, d.Close())
	}
	return errors.Join(append(errs, s.pool.Close())...)
}

// watch shows the disks once a second, until ctx ends or something fails.
func (s *service) watch(ctx context.Context, screen interface{ Show([]status) }) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		screen.Show(s.status())
		select {
		case <-tick.C:
		case <-ctx.Done():
			screen.Show(s.status())
			return nil
		case err := <-s.pool.failed:
			return err
		case err := <-s.failed:
			return err
		}
	}
}

func (s *service) status() []status {
	all := make([]status, len(s.disks))
	for i, d := range s.disks {
		all[i] = statusOf(s.names[i], d.Stats())
	}
	return all
}

// welcome says what is served and how to connect. Every command can be pasted.
func (s *service) welcome(ctx context.Context) string {
	var b strings.Builder
	fmt.Fprintf(&b, "pool      %s\n", s.pool.describe(ctx))
	uris := make([]string, len(s.disks))
	for i, d := range s.disks {
		uris[i] = nbdURI(absolute(s.socket), s.names[i])
		fmt.Fprintf(&b, "disk      %s, %s: %s\n", s.names[i], size.Format(d.Stats().Virtual), uris[i])
	}
	b.WriteString(s.describeFiles())
	fmt.Fprintf(&b, "\nConnect to %s from another terminal (qemu-io and fio write to it):\n\n", s.names[0])
	for _, c := range connectCommands(absolute(s.socket), s.names[0], uris[0]) {
		fmt.Fprintf(&b, "  %s\n", c)
	}
	fmt.Fprintf(&b, "\nLook at the pool and change it:\n\n  export TIDEMARK_SPM=%s\n  %s volume list\n\nCtrl-C ends it.\n\n",
		shellQuote(absolute(s.pool.socket)), self())
	return b.String()
}

// connectCommands are the command lines with which to use an export.
func connectCommands(socket, name, uri string) []string {
	blockdev := fmt.Sprintf("driver=nbd,node-name=tidemark0,server.type=unix,server.path=%s,export=%s,reconnect-delay=60,discard=unmap",
		qemuValue(socket), qemuValue(name))
	return []string{
		"nbdinfo " + shellQuote(uri),
		"qemu-io -f raw -c 'write -P 7 0 300M' -c 'read -P 7 0 300M' " + shellQuote(uri),
		"fio --name=grow --ioengine=nbd --uri=" + shellQuote(uri) + " --rw=write --bs=1M --iodepth=16 --size=1G --verify=crc32c --verify_state_save=0",
		"qemu-system-x86_64 -m 1G -nographic -blockdev " + shellQuote(blockdev) +
			" -device virtio-blk-pci,drive=tidemark0,werror=stop,rerror=stop",
	}
}

// nbdURI is the address of an export on a unix socket. A space becomes %20: not
// every reader takes a plus sign for one.
func nbdURI(socket, name string) string {
	readable := strings.NewReplacer("%2F", "/", "+", "%20")
	return "nbd+unix:///" + url.PathEscape(name) + "?socket=" + readable.Replace(url.QueryEscape(socket))
}

// qemuValue writes a value of a QEMU option, in which a comma is doubled.
func qemuValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// shellQuote writes a word of a shell command line.
func shellQuote(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./=:,@%+"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// self is how this program is started from any directory.
func self() string {
	own, err := os.Executable()
	if err != nil {
		return "tidemark"
	}
	found, err := exec.LookPath("tidemark")
	a, aerr := os.Stat(own)
	b, berr := os.Stat(found)
	if err == nil && aerr == nil && berr == nil && os.SameFile(a, b) {
		return "tidemark"
	}
	return shellQuote(own)
}

// absolute is the path of a socket from the root, so that a command works wherever
// it is pasted; unless that is longer than the path of a socket may be.
func absolute(path string) string {
	if a, err := filepath.Abs(path); err == nil && len(a) <= unixsock.PathMax {
		return a
	}
	return path
}
