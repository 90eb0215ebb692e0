package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tidemark/internal/size"
	"tidemark/spm"
)

// addChainVerbs adds the verbs about volumes that a manager of domains has: each is
// a task, or asks with a verb of docs/api.md.
func addChainVerbs(c *cobra.Command, dial storageDialer) {
	c.AddCommand(newVolumeSnapshot(dial), newVolumeMerge(dial), newVolumeDelete(dial), newVolumeResize(dial), newVolumeReduce(dial),
		newVolumeMeasure(dial), newVolumePriority(dial))
	for _, of := range []struct {
		make func(storageDialer) *cobra.Command
	}{{newImageCopy}, {newImageMove}} {
		v := of.make(dial)
		v.Use = strings.Replace(v.Use, "IMAGE", "NAME", 1)
		v.Example = strings.ReplaceAll(v.Example, "tidemark image", "tidemark volume")
		c.AddCommand(v)
	}
}

// oneVolume is what a verb does with the volume of its first operand; the others
// are named in more.
func oneVolume(c *cobra.Command, dial storageDialer, do func(c *cobra.Command, s *storage, v volumeView, args []string) error, more ...string) {
	names := append([]string{"NAME"}, more...)
	c.Use += " " + strings.Join(names, " ")
	c.Args, c.ValidArgsFunction = operands(names...), completeVolumes(dial)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		v, err := s.volume(c.Context(), args[0])
		if err != nil {
			return err
		}
		return do(c, s, v, args[1:])
	})
}

// called is a volume for people.
func (v volumeView) called() string { return cmp.Or(v.Name, v.UUID) }

func newVolumeSnapshot(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "snapshot", Short: "Keep what is in a volume now: a new leaf takes what is written from now on",
		Long: `Keep what is in a volume now. A new volume is made on it, the image's leaf, which takes
what is written from now on; the old one is written no more. An image that is served
goes on to be served.`,
		Example: "  tidemark volume snapshot web1 --description \"before the update\" --wait"}
	description := c.Flags().String("description", "", "of the new leaf")
	f := addTaskFlags(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, _ []string) error {
		if len(v.Children) > 0 {
			return fmt.Errorf("volume %s is a snapshot already: %s is based on it", v.called(), strings.Join(v.Children, ", "))
		}
		b := begun{Image: v.Image, Volume: uuid.NewString()}
		return f.begin(c, s, "createVolume", named{"sdUUID": v.Domain, "spUUID": v.pool, "imgUUID": v.Image, "size": "0", "volFormat": "COW",
			"preallocate": "SPARSE", "diskType": "DATA", "volUUID": b.Volume, "desc": *description, "srcImgUUID": v.Image, "srcVolUUID": v.UUID,
			"priority": v.Priority}, b, fmt.Sprintf("snapshot %s of %s; the leaf is %s", v.UUID, v.called(), b.Volume))
	})
	return c
}

func newVolumeMerge(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "merge", Short: "Merge a volume into the one that it is based on, which stays",
		Example: "  tidemark volume merge web1 --wait\n  tidemark volume merge 6f1e --into 03ab"}
	into := c.Flags().String("into", "", "the volume that stays (default: the one that it is based on); what is between them goes as well")
	completeFlag(c, "into", dial, (*storage).allVolumes)
	f := addTaskFlags(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, _ []string) error {
		ancestor := v.Parent
		if *into != "" {
			a, err := s.volume(c.Context(), *into)
			if err != nil {
				return err
			}
			ancestor = a.UUID
		}
		if ancestor == blank || ancestor == "" {
			all, err := s.volumes(c.Context(), "")
			if err != nil {
				return err
			}
			return nothingBelow(v, all)
		}
		return f.begin(c, s, "mergeSnapshots", named{"sdUUID": v.Domain, "spUUID": v.pool, "vmUUID": blank, "imgUUID": v.Image, "ancestor": ancestor, "successor": v.UUID},
			begun{Image: v.Image, Volume: ancestor}, fmt.Sprintf("%s merged into %s", v.called(), ancestor))
	})
	return c
}

// nothingBelow refuses to merge a volume of all that is based on no other. One that is
// illegal was left so by a merge of the nearest legal volume above it.
func nothingBelow(v volumeView, all []volumeView) error {
	up := v
	for range all {
		if up.Legality != spm.Illegal || len(up.Children) != 1 {
			break
		}
		i := slices.IndexFunc(all, func(c volumeView) bool { return c.UUID == up.Children[0] })
		if i < 0 {
			break
		}
		up = all[i]
	}
	if v.Legality == spm.Illegal && up.Legality != spm.Illegal {
		return fmt.Errorf("volume %s is based on no other, and illegal: a merge into it was not completed; repeat that: %s volume merge %s --into %s",
			v.called(), self(), up.UUID, v.UUID)
	}
	return fmt.Errorf("volume %s is based on no other: there is nothing to merge it into", v.called())
}

func newVolumeDelete(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "delete", Short: "Remove a volume that no other is based on",
		Long: `Remove a volume that no other is based on. Of an image of several volumes that is the
leaf, and what was written since the snapshot below it is gone. "tidemark image
delete" removes all of an image.`}
	zero := c.Flags().Bool("zero", false, "overwrite the data with zeros first")
	force := c.Flags().Bool("force", false, "also if it is illegal; what it has of its image is lost with it")
	f := addTaskFlags(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, _ []string) error {
		return f.begin(c, s, "deleteVolume", named{"sdUUID": v.Domain, "spUUID": v.pool, "imgUUID": v.Image, "volumes": []string{v.UUID}, "postZero": *zero, "force": *force},
			begun{Image: v.Image, Volume: v.UUID}, v.called()+" removed")
	})
	return c
}

func newVolumeResize(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "resize", Short: "Make the virtual size of a volume larger", Example: "  tidemark volume resize web1 20G --wait"}
	f := addTaskFlags(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, args []string) error {
		n, err := size.Parse(args[0])
		if err == nil {
			if n = wholeSectors(n); n < 0 {
				err = size.ErrTooLarge
			}
		}
		if err != nil {
			return fmt.Errorf("resize %s: %w", v.called(), err)
		}
		a := v.at()
		a["newSize"] = strconv.FormatInt(n, 10)
		return f.begin(c, s, "extendVolumeSize", a, begun{Image: v.Image, Volume: v.UUID}, fmt.Sprintf("%s: %s", v.called(), size.Format(n)))
	}, "SIZE")
	return c
}

func newVolumeReduce(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "reduce", Short: "Give back what a volume has been granted beyond its data"}
	f := addTaskFlags(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, _ []string) error {
		return f.begin(c, s, "reduceVolume", v.at(), begun{Image: v.Image, Volume: v.UUID}, v.called()+" reduced")
	})
	return c
}

func newVolumeMeasure(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "measure", Short: "Say what a copy of a volume, with everything below it, would take"}
	format := c.Flags().String("format", "COW", "of the copy: COW or RAW")
	completeWords(c, "format", spm.Cow, spm.Raw)
	out := outputFlag(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, _ []string) error {
		a := v.at()
		a["volFormat"] = strings.ToUpper(*format)
		var r struct {
			Result struct {
				Required  decimalBytes `json:"required"`
				Allocated decimalBytes `json:"fully-allocated"`
				Bitmaps   decimalBytes `json:"bitmaps"`
			} `json:"result"`
		}
		if err := s.ask(c.Context(), "measureVolume", a, &r); err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), r.Result, func(w io.Writer) error {
			t := newTable(w)
			t.row("required", fmt.Sprintf("%s (%d bytes)", short(r.Result.Required), r.Result.Required))
			t.row("fully allocated", fmt.Sprintf("%s (%d bytes)", short(r.Result.Allocated), r.Result.Allocated))
			return t.end()
		})
	})
	return c
}

func newVolumePriority(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "priority", Short: "Say who waits first in a full pool: the lower number", Example: "  tidemark volume priority web1 10"}
	out := outputFlag(c)
	oneVolume(c, dial, func(c *cobra.Command, s *storage, v volumeView, args []string) error {
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return errors.New("priority " + args[0] + ": expected an integer")
		}
		a := v.at()
		a["priority"] = n
		if err := s.ask(c.Context(), "setVolumePriority", a, nil); err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), named{"volume_uuid": v.UUID, "priority": n}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: priority %d\n", v.called(), n)
			return err
		})
	}, "NUMBER")
	return c
}
