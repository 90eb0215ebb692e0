package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"tidemark/internal/hostfile"
	"tidemark/internal/size"
	"tidemark/internal/thin"
	"tidemark/qcow2"
)

// What the demonstration does: demoConnections connections of demoDepth requests
// of demoBlock bytes each, which suffices to keep the server busy.
const (
	demoConnections = 4
	demoDepth       = 2
	demoBlock       = 1 << 20
	demoDefault     = 1 << 30
	// A disk of the default size starts with one chunk and has to be extended
	// at least so often.
	demoExtensions = 4
)

// demoOptions say what is written, and where.
type demoOptions struct {
	dir  string // "" is the system's temporary directory
	size bytesFlag
	seed uint64 // 0 is a new one
}

func newDemo(g *global) *cobra.Command {
	o := &demoOptions{size: demoDefault}
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch a disk grow: write through NBD, read back, check",
		Long: `Make a pool in a new directory and a disk in it, write pseudo-random data through
its NBD socket, watch the disk grow, read everything back, compare every byte,
check the image, and remove the directory. The exit code is 0 only if every byte
matched and the image is clean.`,
		Args: noArguments,
	}
	c.Flags().StringVar(&o.dir, "dir", "", "where the directory is made (default the system's temporary directory)")
	c.Flags().Var(&o.size, "size", "how much is written")
	c.Flags().Uint64Var(&o.seed, "seed", 0, "seed of the data (default a new one)")
	output := outputFlag(c)
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, _ []string) error {
		log, err := g.quietLogger(c, c.ErrOrStderr())
		if err != nil {
			return err
		}
		progress := c.OutOrStdout()
		if *output == "json" {
			progress = c.ErrOrStderr()
		}
		return o.run(c.Context(), progress, c.OutOrStdout(), *output, log)
	}
	return c
}

// run makes the place, and removes it whatever happens.
func (o *demoOptions) run(ctx context.Context, progress, out io.Writer, format outputFormat, log *slog.Logger) error {
	if o.size%demoBlock != 0 {
		return fmt.Errorf("--size %d: expected a multiple of %s", int64(o.size), size.Format(demoBlock))
	}
	if o.seed == 0 {
		o.seed = rand.Uint64()
	}
	dir, err := o.makeDir()
	if err != nil {
		return err
	}
	d := &demo{o: *o, out: progress, dir: dir, log: log, began: time.Now()}
	if err := errors.Join(d.run(ctx), os.RemoveAll(dir)); err != nil {
		return err
	}
	return format.print(out, d.result(), d.summary)
}

// makeDir makes the directory, on a file system that has the room.
func (o *demoOptions) makeDir() (string, error) {
	dir, err := os.MkdirTemp(o.dir, "tidemark-demo-")
	if err != nil {
		return "", adviseDir(fmt.Errorf("demo: %w", err))
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return "", errors.Join(err, os.Remove(dir))
	}
	if free, need := int64(s.Bavail)*s.Frsize, o.capacity(); free < need {
		return "", errors.Join(fmt.Errorf("demo: %s has %s free, expected at least %s: free some space there, choose another place with --dir DIR, or write less with --size SIZE",
			dir, size.Format(free), size.Format(need)), os.Remove(dir))
	}
	return dir, nil
}

// capacity of the pool: what is written, and the most headroom of a volume.
func (o *demoOptions) capacity() int64 { return int64(o.size) + 512<<20 }

// A demo is one run of the demonstration.
type demo struct {
	o     demoOptions
	out   io.Writer
	dir   string
	log   *slog.Logger
	began time.Time

	volume              string // its file
	writing, reading    time.Duration
	extensions          int64
	latency, latencyMax time.Duration
	headroomMax         int64
}

func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.2fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	if err := d.serve(ctx); err != nil {
		return err
	}
	if err := d.check(ctx); err != nil {
		return err
	}
	if least := d.leastExtensions(); d.extensions < least {
		return fmt.Errorf("demo: the disk was extended %d times, expected at least %d", d.extensions, least)
	}
	return nil
}

// leastExtensions is how often the disk has to grow: for the default size as
// promised, for a smaller one as often as its first chunk does not do.
func (d *demo) leastExtensions() int64 {
	if d.o.size >= demoDefault {
		return demoExtensions
	}
	return int64(d.o.size) / (2 * thin.DefaultChunk)
}

// serve has the disk served for as long as data is written and read.
func (d *demo) serve(ctx context.Context) (err error) {
	o := &runOptions{
		pool: poolOptions{dir: d.dir, capacity: bytesFlag(d.o.capacity())},
		size: max(10<<30, 2*d.o.size), name: "demo", patience: 20 * time.Second,
	}
	s, err := startService(ctx, o, d.log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	disk := s.disks[0]
	d.volume = disk.Path()
	d.say("pool of %s in %s", size.Format(d.o.capacity()), d.dir)
	d.say("disk of %s, %s granted, on %s", size.Format(disk.Stats().Virtual), size.Format(disk.Stats().Granted), filepath.Base(s.socket))
	clients, err := dialAll(ctx, s.socket)
	if err != nil {
		return err
	}
	defer func() {
		for _, c := range clients {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := d.write(ctx, clients, disk); err != nil {
		return err
	}
	return d.compare(ctx, clients)
}

// check checks the closed image, with the engine and with QEMU.
func (d *demo) check(ctx context.Context) error {
	f, err := hostfile.Open(d.volume, hostfile.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	r, err := qcow2.Check(ctx, f, qcow2.CheckOptions{})
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("demo: check: %w", err)
	}
	if !r.Clean() {
		return fmt.Errorf("demo: check: %d corruptions, %d leaks, expected none: %s", r.Corruptions, r.Leaks, strings.Join(r.Problems, "; "))
	}
	d.say("tidemark check: clean")
	return d.checkQEMU(ctx)
}

func (d *demo) checkQEMU(ctx context.Context) error {
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		d.say("qemu-img check: skipped, qemu-img is not installed (on Debian: apt-get install qemu-utils)")
		return nil
	}
	text, err := exec.CommandContext(ctx, tool, "check", "-f", "qcow2", d.volume).CombinedOutput()
	if err != nil {
		return fmt.Errorf("demo: qemu-img check: %w: %s", err, bytes.TrimSpace(text))
	}
	first, _, _ := strings.Cut(string(text), "\n")
	d.say("qemu-img check: %s", first)
	return nil
}

// summary says what was done, as a table.
func (d *demo) summary(w io.Writer) error {
	fmt.Fprintln(w)
	t := newTable(w)
	t.row("written", size.Format(int64(d.o.size)), perSecond(int64(d.o.size), d.writing))
	t.row("read and compared", size.Format(int64(d.o.size)), perSecond(int64(d.o.size), d.reading))
	t.row("extensions", d.extensions)
	if d.extensions > 0 {
		t.row("extension latency", shortDuration(d.latency/time.Duration(d.extensions))+" mean", shortDuration(d.latencyMax)+" longest")
	}
	t.row("largest headroom", size.Format(d.headroomMax))
	t.row("time", shortDuration(time.Since(d.began)))
	t.row("result", "every byte matched, the image is clean")
	return t.end()
}

// demoJSON is the same for a program. Times are in seconds, sizes in bytes.
type demoJSON struct {
	Seed        uint64  `json:"seed"`
	Size        int64   `json:"size"`
	Writing     float64 `json:"write_seconds"`
	Reading     float64 `json:"read_seconds"`
	Extensions  int64   `json:"extensions"`
	LatencyMean float64 `json:"extension_mean_seconds"`
	LatencyMax  float64 `json:"extension_longest_seconds"`
	HeadroomMax int64   `json:"largest_headroom"`
	Clean       bool    `json:"clean"` // and every byte matched; else there is an error
}

func (d *demo) result() demoJSON {
	return demoJSON{
		Seed: d.o.seed, Size: int64(d.o.size), Writing: d.writing.Seconds(), Reading: d.reading.Seconds(), Extensions: d.extensions,
		LatencyMean: (d.latency / time.Duration(max(d.extensions, 1))).Seconds(), LatencyMax: d.latencyMax.Seconds(),
		HeadroomMax: d.headroomMax, Clean: true,
	}
}

func perSecond(n int64, d time.Duration) string {
	return fmt.Sprintf("%s, %.0f MB/s", shortDuration(d), float64(n)/1e6/max(d.Seconds(), 1e-9))
}
