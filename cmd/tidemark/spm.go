package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"tidemark/internal/block"
	"tidemark/internal/size"
	"tidemark/internal/thin"
	"tidemark/spm"
)

func newSPM(g *global) *cobra.Command {
	o := &poolOptions{}
	c := &cobra.Command{
		Use:   "spm --dir DIR --capacity SIZE",
		Short: "Manage a storage pool: create, extend and remove its volumes",
		Long: `Manage the storage pool in a directory, as one process, until SIGTERM or
Ctrl-C. The pool is made when there is none. Volumes are created with "tidemark
volume" and served with "tidemark nbd --spm"; what serves a volume outlives the
manager, and goes on when it is back.

A pool keeps its capacity: --capacity may be left out for one that exists, and
may only be larger than before.`,
		Args: noArguments,
	}
	addPoolFlags(c.Flags(), o)
	c.Flags().StringVar(&o.socket, "socket", "", "unix socket of the API (default DIR/spm.sock)")
	c.Flags().DurationVar(&o.patience, "patience", 20*time.Second, "how long a write may wait for space until the guest gets ENOSPC, unless tidemark nbd says otherwise")
	c.Flags().String("state", "", "directory for a cache; a pool in a directory needs none")
	const noGroup = "a pool on a volume group is not available yet; use --dir DIR --capacity SIZE"
	refuse(
		c,
		refusal{"vg", "", true, noGroup},
		refusal{"devices", "", true, noGroup},
	)
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, _ []string) error {
		log, err := g.logger(c.ErrOrStderr())
		if err != nil {
			return err
		}
		p, err := openPool(o, log)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "ready: pool of %s in %s; next: %s volume create --spm %s --size 10G NAME\n",
			p.describe(c.Context()), o.dir, self(), shellQuote(absolute(p.socket)))
		select {
		case <-c.Context().Done():
		case err = <-p.failed:
		}
		return errors.Join(err, p.Close())
	}
	return c
}

// poolOptions say which pool to open.
type poolOptions struct {
	dir      string
	capacity bytesFlag
	socket   string // of the API; "" is spm.sock in dir
	patience time.Duration
}

func addPoolFlags(f *pflag.FlagSet, o *poolOptions) {
	f.StringVar(&o.dir, "dir", "", "directory of the pool; it is made when it is not there")
	f.Var(&o.capacity, "capacity", "what the volumes may take together, such as 100G")
}

// check finds the mistakes that need no look at the disk.
func (o *poolOptions) check() error {
	if o.patience < 0 {
		return fmt.Errorf("--patience %v: expected more than nothing, such as 20s", o.patience)
	}
	switch {
	case o.dir == "":
		return errors.New("where is the pool? give --dir DIR, and --capacity SIZE for a new one")
	case o.capacity != 0 && o.capacity < thin.DefaultChunk:
		return fmt.Errorf("--capacity %s: expected at least %s, which is what a new volume begins with",
			size.Format(int64(o.capacity)), size.Format(thin.DefaultChunk))
	}
	return nil
}

// A pool is a manager that answers on its API socket.
type pool struct {
	*spm.Manager
	socket string
	failed chan error    // the socket does not answer any more
	served chan struct{} // closed when nothing answers on it
}

// openPool opens the pool, or makes it, and then its socket.
func openPool(o *poolOptions, log *slog.Logger) (*pool, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	m, err := spm.Open(o.dir, spm.Options{Capacity: int64(o.capacity), Patience: o.patience, Images: images{}, Log: log})
	if err != nil {
		return nil, adviseDir(err)
	}
	p := &pool{Manager: m, socket: cmp.Or(o.socket, filepath.Join(o.dir, "spm.sock")), failed: make(chan error, 1), served: make(chan struct{})}
	l, err := spm.Listen(p.socket)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	go func() {
		defer close(p.served)
		if err := m.Serve(l); err != nil {
			p.failed <- fmt.Errorf("socket %s: %w", p.socket, err)
		}
	}()
	return p, nil
}

// Close ends the manager; requests that it holds are answered. The socket is
// gone when it returns.
func (p *pool) Close() error {
	err := p.Manager.Close()
	<-p.served
	return err
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
	if perr != nil || p.HostFree >= p.Free {
		return err
	}
	return fmt.Errorf("%w; of what the pool has free (%s), the file system of %s can carry only %s: free some space there",
		err, size.Format(p.Free), p.Dir, size.Format(p.HostFree))
}

// A bytesFlag is an option whose value is a size.
type bytesFlag int64

func (b *bytesFlag) String() string {
	if *b == 0 {
		return ""
	}
	return size.Format(int64(*b))
}

// Type is what the help text calls the value.
func (b *bytesFlag) Type() string { return "SIZE" }

// Set accepts a size that is not 0.
func (b *bytesFlag) Set(s string) error {
	n, err := size.Parse(s)
	if err == nil && n == 0 {
		err = errors.New("expected more than 0")
	}
	*b = bytesFlag(n)
	return err
}

// A diskSizeFlag is an option whose value is the size of a disk, in whole
// sectors.
type diskSizeFlag bytesFlag

func (d *diskSizeFlag) String() string { return (*bytesFlag)(d).String() }

// Type is what the help text calls the value.
func (d *diskSizeFlag) Type() string { return "SIZE" }

// Set accepts what bytesFlag does, rounded up.
func (d *diskSizeFlag) Set(s string) error {
	var b bytesFlag
	if err := b.Set(s); err != nil {
		return err
	}
	if *d = diskSizeFlag(wholeSectors(int64(b))); *d < 0 {
		return size.ErrTooLarge
	}
	return nil
}

// noArguments refuses arguments by saying that options were expected.
func noArguments(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return fmt.Errorf("%s takes options only, found the argument %q; see %s --help", c.CommandPath(), args[0], c.CommandPath())
}
