package main

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// mountOptions are the options of tidemark mount as they are given.
type mountOptions struct {
	spm        string
	readOnly   bool
	allowOther bool
	fork       bool
	discard    *choice
	format     *choice
	backing    *backingChoice
}

const mountHelp = `Show QCOW2 images as raw files, through FUSE, until umount, SIGTERM or Ctrl-C. In
the directory DIR each IMAGE is a file NAME.raw; without NAME= it is called as the
image. If FILE is a regular file, it becomes the one IMAGE. DIR and FILE must be
empty.

The files can be read, written, fsynced, punched, copied with their holes, made
larger with truncate (never smaller, and a volume not at all), and put under a loop
device. Whoever runs this can open them, and with --allow-other everybody whom their
modes let (chmod).

With --spm, or TIDEMARK_SPM set, an IMAGE without a slash in it is a volume of the
pool, as for tidemark nbd, and it grows by itself. While the pool is full, a write
that needs space waits; it is never told that there is none.

What was written is durable after fsync. At the end everything is committed and
reserved space is given back, a moment after umount has returned. If a file is
still open when it is asked to stop, it is served for 10 s more; a second signal
ends at once. What a server that was killed has left is removed by the next one on
the same place, or by fusermount3 -uz.`

const mountExample = `  mkdir /tmp/disks
  tidemark mount --fork disk.qcow2 backup=/images/old.qcow2 /tmp/disks
  ls -l /tmp/disks        # backup.raw, disk.raw
  umount /tmp/disks

  touch disk.raw
  tidemark mount --fork disk.qcow2 disk.raw
  losetup --find --show --direct-io=on disk.raw`

func newMount(g *global) *cobra.Command {
	o := &mountOptions{}
	c := &cobra.Command{
		Use:     "mount [OPTIONS] [NAME=]IMAGE... DIR | IMAGE FILE",
		Short:   "Show images and volumes as files",
		Long:    mountHelp,
		Example: mountExample,
	}
	f := c.Flags()
	f.StringVar(&o.spm, "spm", "", "socket of the pool manager (default $TIDEMARK_SPM): IMAGE is a volume")
	f.BoolVarP(&o.readOnly, "read-only", "r", false, "refuse writes")
	f.BoolVar(&o.allowOther, "allow-other", false, "let other users in, root too; without root it takes user_allow_other in /etc/fuse.conf")
	f.BoolVar(&o.fork, "fork", false, "go to the background when the files are there; nothing is logged from then on")
	o.discard = &choice{value: "unmap", allowed: []string{"unmap", "ignore", "on", "off"}}
	f.Var(o.discard, "discard", "what to do with the space of holes that are punched")
	o.format, o.backing = formatFlag(c), backingFlag(c, false)
	completeServed(c, &o.spm)
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, args []string) error {
		log, err := g.logger(c.ErrOrStderr())
		if err != nil {
			return err
		}
		p, err := o.plan(args, os.Getenv("TIDEMARK_SPM"))
		if err != nil {
			return fmt.Errorf("mount: %w", err)
		}
		if o.fork && !isForked() {
			return fork()
		}
		return serveMount(c.Context(), p, log)
	}
	return c
}

// A mountPlan is what the options mean.
type mountPlan struct {
	files         []mountFile
	target        string
	spm           string // socket of the pool manager, "" if no image is a volume
	readOnly      bool
	allowOther    bool
	ignoreDiscard bool
	raw           bool
	backing       backingChoice // what may be opened below an image
}

type mountFile struct{ name, image string }

// plan validates the options. It opens nothing.
func (o *mountOptions) plan(args []string, env string) (mountPlan, error) {
	if len(args) < 2 {
		return mountPlan{}, fmt.Errorf("expected [NAME=]IMAGE... and DIR or FILE, found %d operands (%s); see tidemark mount --help",
			len(args), strings.Join(args, " "))
	}
	p := mountPlan{
		target: args[len(args)-1], readOnly: o.readOnly, allowOther: o.allowOther,
		ignoreDiscard: o.discard.value == "ignore" || o.discard.value == "off",
		raw:           o.format.value == formatRaw, backing: *o.backing,
	}
	pool := cmp.Or(o.spm, env)
	names, images := map[string]string{}, map[string]bool{}
	for _, arg := range args[:len(args)-1] {
		f, err := parseMountFile(arg)
		switch {
		case err != nil:
			return mountPlan{}, err
		case names[f.name] != "":
			return mountPlan{}, fmt.Errorf("%s and %s would both be %s: name one of them, as NAME=%s", names[f.name], f.image, f.name, f.image)
		case images[f.image]:
			return mountPlan{}, fmt.Errorf("%s is given twice: an image is shown once", f.image)
		}
		names[f.name], images[f.image] = f.image, true
		if isVolume(f.image, pool) {
			p.spm = pool
		}
		p.files = append(p.files, f)
	}
	if o.spm != "" && p.spm == "" {
		return mountPlan{}, fmt.Errorf("--spm %s: expected the name or UUID of a volume, found the path %s", o.spm, p.files[0].image)
	}
	return p, nil
}

// parseMountFile reads [NAME=]IMAGE. A path may have an equals sign in it, a name
// no slash.
func parseMountFile(arg string) (mountFile, error) {
	name, image, named := strings.Cut(arg, "=")
	if !named || strings.Contains(name, "/") {
		name, image = baseName(arg), arg
	}
	if name == "" || image == "" {
		return mountFile{}, fmt.Errorf("%s: expected NAME=IMAGE or IMAGE", cmp.Or(arg, "an empty operand"))
	}
	return mountFile{name + ".raw", image}, nil
}

// baseName is what an image is called without its directory and ending.
func baseName(image string) string {
	base := filepath.Base(image)
	for _, ending := range []string{".qcow2", ".img"} {
		if short, ok := strings.CutSuffix(base, ending); ok && short != "" {
			return short
		}
	}
	return base
}
