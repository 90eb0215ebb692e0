package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/size"
	"tidemark/spm"
)

// newVolume is the group of verbs that speak to a running pool manager.
func newVolume() *cobra.Command {
	c := &cobra.Command{
		Use:   "volume",
		Short: "Create, list, extend, snapshot, merge and remove the volumes of a pool",
		Long: `Create, list, extend, snapshot, merge and remove the volumes of a pool, through the socket of
its manager ("tidemark spm", or "tidemark run").

NAME is a volume's name, the UUID of its image, or its own; DOMAIN/NAME is the one in
that domain, where several have it.`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("volume: there is no verb %q: expected create, list, info, extend, remove, watch, snapshot, merge, delete, copy, move, resize, reduce, measure or priority", args[0])
			}
			return c.Help()
		},
	}
	c.SetFlagErrorFunc(flagError)
	socket := c.PersistentFlags().String("spm", "", "socket of the pool manager (default $TIDEMARK_SPM)")
	dial := func() (*manager, error) { return dialSPM(*socket) }
	storage := func() (*storage, error) { return dialStorage(*socket) }
	c.AddCommand(newVolumeCreate(dial, storage), newVolumeList(dial), newVolumeWatch(dial))
	for _, of := range []*cobra.Command{newVolumeInfo(dial), newVolumeExtend(dial), newVolumeRemove(dial)} {
		of.ValidArgsFunction = completeVolumes(storage)
		c.AddCommand(of)
	}
	addChainVerbs(c, storage)
	return c
}

// A manager is a connection to the one that the options name.
type manager struct {
	*spm.Client
	path string
}

type dialer func() (*manager, error)

// dialSPM connects to the manager at path, or to that of the environment.
func dialSPM(path string) (*manager, error) {
	if path = cmp.Or(path, os.Getenv("TIDEMARK_SPM")); path == "" {
		return nil, errors.New("which pool? give --spm PATH, the socket of its manager, or set TIDEMARK_SPM; start a manager with: tidemark spm --dir DIR --capacity SIZE")
	}
	c, err := spm.Dial(path)
	if err != nil {
		return nil, err
	}
	return &manager{c, path}, nil
}

// ref names the volume that a command is about, of its domain if name says one: DOMAIN/NAME.
func (m *manager) ref(ctx context.Context, name string) (spm.VolumeRef, error) {
	domain, volume := inDomain(name)
	id, err := (&storage{m.Client, m.path}).domainFlag(ctx, domain)
	return spm.VolumeRef{Volume: volume, DomainUUID: id}, err
}

func newVolumeList(dial dialer) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the volumes", Args: noArguments}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		m, err := dial()
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // returns nil
		l, err := m.ListVolumes(c.Context(), spm.VolumeListRequest{})
		if err != nil {
			return err
		}
		p, err := m.GetPoolInfo(c.Context(), spm.PoolInfoRequest{})
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), l.Volumes, func(w io.Writer) error { return writeVolumes(w, l.Volumes, p) })
	}
	return c
}

// writeVolumes writes the volumes and their pool as a table.
func writeVolumes(w io.Writer, volumes []spm.Volume, p spm.PoolReply) error {
	if len(volumes) == 0 {
		fmt.Fprintln(w, "no volumes yet; make one with: tidemark volume create --size SIZE NAME")
	} else {
		t := newTable(w, "NAME", "FORMAT", "VIRTUAL", "GRANTED", "ALLOCATED", "BOUND", "EXTENSIONS")
		for _, v := range volumes {
			t.row(v.Name, v.Format, size.Format(v.Size), size.Format(v.Granted), size.Format(v.Allocated), size.Format(v.Bound), v.Extensions)
		}
		if err := t.end(); err != nil {
			return err
		}
	}
	err := writeUse(w, p)
	for _, v := range volumes {
		if v.Damaged != "" {
			fmt.Fprintf(w, "damaged: %s: %s\n", v.Name, v.Damaged)
		}
	}
	for _, q := range p.Waiting {
		_, err = fmt.Fprintf(w, "waiting: %s for %s since %s\n", q.Name, size.Format(q.Bytes), q.Since.Local().Format(time.TimeOnly))
	}
	return err
}

// writeUse writes how a pool is used: of several domains each for itself, for what is free
// in one is of no use to the volumes of another.
func writeUse(w io.Writer, p spm.PoolReply) error {
	used := func(what string, d spm.DomainUse) error {
		_, err := fmt.Fprintf(w, "%s %s: %s, %s granted, %s free\n", what, place(d.Dir, d.Group), size.Format(d.Capacity), size.Format(d.Granted),
			size.Format(min(d.Free, d.HostFree)))
		if g := d.Group; g != nil && err == nil {
			_, err = fmt.Fprintf(w, "metadata: %s of %s used; %d segments, about %d are possible\n",
				size.Format(g.MetadataUsed), size.Format(g.MetadataLimit), g.Segments, g.SegmentsLimit)
		}
		return err
	}
	if len(p.Domains) == 0 {
		return used("pool", spm.DomainUse{Dir: p.Dir, Group: p.Group, Capacity: p.Capacity, Granted: p.Granted, Free: p.Free, HostFree: p.HostFree})
	}
	var errs []error
	for _, d := range p.Domains {
		errs = append(errs, used("domain", d))
	}
	return errors.Join(errs...)
}

// poolPlace says where a pool is, or its master.
func poolPlace(p spm.PoolReply) string { return place(p.Dir, p.Group) }

func place(dir string, group *spm.GroupReply) string {
	if group != nil {
		return "on volume group " + group.Name
	}
	return dir
}

func newVolumeInfo(dial dialer) *cobra.Command {
	c := &cobra.Command{Use: "info NAME", Short: "Show one volume", Args: operands("NAME")}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		m, err := dial()
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // returns nil
		ref, err := m.ref(c.Context(), args[0])
		if err != nil {
			return err
		}
		v, err := m.GetVolumeInfo(c.Context(), spm.VolumeInfoRequest{VolumeRef: ref})
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), v.Volume, func(w io.Writer) error { return writeVolume(w, v.Volume) })
	}
	return c
}

// writeVolume writes one volume, a property a line.
func writeVolume(w io.Writer, v spm.Volume) error {
	t := newTable(w)
	bytes := func(n int64) string { return fmt.Sprintf("%s (%d bytes)", size.Format(n), n) }
	t.row("name", v.Name)
	t.row("format", v.Format)
	t.row("virtual", bytes(v.Size))
	t.row("granted", bytes(v.Granted))
	t.row("allocated", bytes(v.Allocated))
	t.row("bound", bytes(v.Bound))
	t.row("extensions", v.Extensions)
	t.row("image", v.ImageUUID)
	t.row("volume", v.VolumeUUID)
	t.row("generation", v.Generation)
	t.row("domain", v.DomainUUID)
	t.row("created", v.Created.Format(time.RFC3339))
	t.row("path", v.Path)
	if m := v.Mapping; m != nil {
		t.row("segments", len(m.Segments))
	}
	return t.end()
}

func newVolumeExtend(dial dialer) *cobra.Command {
	c := &cobra.Command{
		Use: "extend NAME SIZE", Short: "Grant a volume at least SIZE bytes of the pool", Args: operands("NAME", "SIZE"),
		Long: `Grant a volume at least SIZE bytes of the pool. The virtual size stays. A volume
that is served is extended by itself before it is full; this verb is for those
that should have their space early. A volume never becomes smaller by it, and
the answer of a full pool comes at once.`,
	}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		need, err := size.Parse(args[1])
		if err != nil {
			return fmt.Errorf("extend %s: %w", args[0], err)
		}
		m, err := dial()
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // returns nil
		ref, err := m.ref(c.Context(), args[0])
		if err != nil {
			return err
		}
		r, err := m.ExtendVolume(c.Context(), spm.VolumeExtendRequest{VolumeRef: ref, Need: need})
		if err != nil {
			return adviseFull(c.Context(), m, err)
		}
		return out.print(c.OutOrStdout(), r, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s has %s granted, of at most %s\n", args[0], size.Format(r.Size), size.Format(r.Bound))
			return err
		})
	}
	return c
}

func newVolumeRemove(dial dialer) *cobra.Command {
	c := &cobra.Command{Use: "remove NAME", Short: "Remove a volume that nobody has open, and what is in it", Args: operands("NAME")}
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		m, err := dial()
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // returns nil
		ref, err := m.ref(c.Context(), args[0])
		if err != nil {
			return err
		}
		r, err := m.RemoveVolume(c.Context(), spm.VolumeRemoveRequest{VolumeRef: ref})
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), r, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "removed %s, %s are free again\n", args[0], size.Format(r.Freed))
			return err
		})
	}
	return c
}

// A table aligns its columns.
type table struct{ w *tabwriter.Writer }

// newTable begins a table, with a row of titles if there are any.
func newTable(w io.Writer, titles ...any) *table {
	t := &table{tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(titles) > 0 {
		t.row(titles...)
	}
	return t
}

func (t *table) row(cells ...any) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, c)
	}
	fmt.Fprintln(t.w)
}

func (t *table) end() error { return t.w.Flush() }
