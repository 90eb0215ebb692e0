package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/block"
	"tidemark/internal/size"
	"tidemark/lvm"
	"tidemark/spm"
)

func newSPM(g *global) *cobra.Command {
	o := &poolOptions{}
	c := &cobra.Command{
		Use:   "spm --dir DIR --capacity SIZE | --vg NAME --devices DEVICE,... | --root DIR --devices DEVICE,...",
		Short: "Manage a storage pool: create, extend and remove its volumes",
		Long: `Manage the storage pool in a directory or on a volume group of LVM, as one
process, until SIGTERM or Ctrl-C. The pool is made when there is none. Volumes are
created with "tidemark volume" and served with "tidemark nbd --spm"; what serves a
volume outlives the manager, and goes on when it is back.

With neither --dir nor --vg there is no pool at first: storage is connected, and
domains and pools are made, through the socket. Directories must lie beneath a
--root, and volume groups on --devices. What was connected, and that this host was
the SPM of its pool, is remembered in --state, and is so again after a restart.

A pool in a directory keeps its capacity: --capacity may be left out for one that
exists, and may only be larger than before.

A volume group is marked with tags, and only logical volumes of the pool are
touched. Its capacity is what is free in it and what the volumes have: vgextend
makes it larger at any time. --devices names all its devices, and nothing else is
looked at.`,
		Example: `  tidemark spm --dir /srv/pool --capacity 100G
  tidemark spm --vg pool --devices /dev/sdb,/dev/sdc
  tidemark spm --vg pool --devices /dev/sdb --create
  tidemark spm --root /srv/domains --devices /dev/sdb,/dev/sdc --state /var/lib/tidemark`,
		Args: noArguments,
	}
	c.ValidArgsFunction = cobra.NoFileCompletions
	addPoolFlags(c.Flags(), o)
	c.Flags().StringVar(&o.socket, "socket", "", "unix socket of the API (default DIR/spm.sock, of a group /run/tidemark/NAME.sock, otherwise /run/tidemark/spm.sock)")
	c.Flags().DurationVar(&o.patience, "patience", 20*time.Second, "how long a write may wait for space until the guest gets ENOSPC, unless tidemark nbd says otherwise")
	c.Flags().StringVar(&o.state, "state", "", "directory of this manager alone, for a cache: what is connected, and the pool's last state, to be read while no manager runs; it may be removed while none does")
	c.Flags().Var(&o.reserve, "reserve", "what only merging and removing may use of a full pool, a size or none (default a 64th, from 2 extents to 1G; none of a pool below 1G)")
	c.Flags().StringVar(&o.group.name, "vg", "", "volume group of the pool")
	c.Flags().StringSliceVar(&o.group.devices, "devices", nil, "all devices of the volume group, or those on which groups may be connected")
	c.Flags().StringArrayVar(&o.roots, "root", nil, "directory beneath which domains may be connected (repeatable)")
	c.Flags().BoolVar(&o.group.create, "create", false, "make the volume group of the devices, which must hold nothing, if there is none")
	mode := c.Flags().String("socket-mode", "0600", "permissions of the socket; connecting needs write, and who may connect may remove volumes")
	group := c.Flags().String("socket-group", "", "group of the socket, by name or number")
	unsafeNoDM(c.Flags(), &o.group.noDM)
	out := outputFlag(c)
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, _ []string) error {
		log, err := g.logger(c.ErrOrStderr())
		if err != nil {
			return err
		}
		if o.access, err = socketOptions(*mode, *group); err != nil {
			return fmt.Errorf("spm: %w", err)
		}
		respectMemory(log)
		p, err := openPool(o, log)
		if err != nil {
			return err
		}
		if err := o.ready(c.Context(), c.OutOrStdout(), *out, p); err != nil {
			return errors.Join(err, p.Close())
		}
		up := supervise(log, p.status(c.Context()), p.alive)
		go p.tellStatus(c.Context(), up, o.state, log)
		select {
		case <-c.Context().Done():
		case err = <-p.failed:
		}
		up.Stopping()
		return errors.Join(err, p.Close())
	}
	return c
}

// ready says that the pool answers: to people with what to do next, to programs
// with its state.
func (o *poolOptions) ready(ctx context.Context, w io.Writer, out outputFormat, p *pool) error {
	info, err := p.GetPoolInfo(ctx, spm.PoolInfoRequest{})
	if err != nil && !o.many() {
		return err
	}
	state := struct {
		Socket string `json:"socket"`
		spm.PoolReply
	}{absolute(p.socket), info}
	return out.print(w, state, func(w io.Writer) error {
		if len(o.group.devices) > 0 && (o.group.noDM || !lvm.DeviceMapper()) {
			fmt.Fprintln(w, "note: "+noDMText)
		}
		if err != nil {
			_, err := fmt.Fprintf(w, "ready: no pool is managed yet; the API is on %s\n", shellQuote(absolute(p.socket)))
			return err
		}
		_, err := fmt.Fprintf(w, "ready: pool of %s in %s; next: %s volume create --spm %s --size 10G NAME\n",
			p.describe(ctx), o.place(), self(), shellQuote(absolute(p.socket)))
		return err
	})
}

// describe says how large the pool is and how much of it is taken.
func (p *pool) describe(ctx context.Context) string {
	r, err := p.GetPoolInfo(ctx, spm.PoolInfoRequest{})
	if err != nil {
		return "unknown size"
	}
	return fmt.Sprintf("%s, %s granted to %d volumes", size.Format(r.Capacity), size.Format(r.Granted), r.Volumes)
}

// adviseDir says what to do about a directory that cannot hold a pool.
func adviseDir(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; choose a directory that you may write to with --dir", err)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w; choose a directory on another file system with --dir", err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w; free some space there, or choose a directory on another file system with --dir", err)
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w; choose a directory, not a file, with --dir", err)
	}
	return err
}

// adviseFull says which of a pool's two limits a refused request has met.
func adviseFull(ctx context.Context, api spm.API, err error) error {
	if !errors.Is(err, block.ErrNoSpace) || spm.CodeOf(err) != spm.CodePoolFull {
		return err
	}
	p, perr := api.GetPoolInfo(ctx, spm.PoolInfoRequest{})
	if perr != nil || p.HostFree >= p.Free || len(p.Domains) > 0 { // of several it is not known which was meant
		return err
	}
	return fmt.Errorf("%w; of what the pool has free (%s), the file system of %s can carry only %s: free some space there",
		err, size.Format(p.Free), poolPlace(p), size.Format(p.HostFree))
}

// noArguments refuses arguments by saying that options were expected.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes options only, found the argument %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())
}
