package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tidemark/spm"
)

// newImageGroup is the group of verbs about images.
func newImageGroup() *cobra.Command {
	c := group("image", "List, serve, copy, move and delete images with their chains", `List, serve, copy, move and delete images. An image is a disk: a chain of volumes, of
which the leaf is written and the others are its snapshots, perhaps on a template.

IMAGE is an image's UUID or how that begins, or its leaf's name; DOMAIN/IMAGE is the one
in that domain, where several have it.`, "list, info, prepare, teardown, copy, move or delete")
	dial := storageFlag(c)
	c.AddCommand(newImageList(dial), newImageInfo(dial), newImagePrepare(dial), newImageTeardown(dial),
		newImageCopy(dial), newImageMove(dial), newImageDelete(dial))
	return c
}

// An imageView is an image: its volumes from the base to the leaves.
type imageView struct {
	UUID    string       `json:"image_uuid"`
	Name    string       `json:"name,omitempty"`
	Domain  string       `json:"domain_uuid"`
	Volumes []volumeView `json:"volumes"`
	pool    string
}

func (i imageView) id() string     { return i.UUID }
func (i imageView) keys() []string { return []string{i.Name} }
func (i imageView) domain() string { return i.Domain }

// leaf is the volume that is written.
func (i imageView) leaf() volumeView { return i.Volumes[len(i.Volumes)-1] }

// granted is what the volumes have together.
func (i imageView) granted() (n decimalBytes) {
	for _, v := range i.Volumes {
		n += v.Granted
	}
	return n
}

// imagesOf puts volumes together to images, in the order of their names.
func imagesOf(volumes []volumeView) []imageView {
	var out []imageView
	at := map[string]int{} // of a domain and an image, plus 1
	for _, v := range volumes {
		key := v.Domain + v.Image
		if at[key] == 0 {
			out = append(out, imageView{UUID: v.Image, Domain: v.Domain, pool: v.pool})
			at[key] = len(out)
		}
		i := &out[at[key]-1]
		i.Name = cmp.Or(i.Name, v.Name)
		i.Volumes = append(i.Volumes, v)
	}
	for i := range out {
		out[i].Volumes = baseFirst(out[i].Volumes)
	}
	slices.SortStableFunc(out, func(a, b imageView) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	return out
}

// baseFirst puts volumes of an image in an order in which each follows what it is
// based on.
func baseFirst(volumes []volumeView) []volumeView {
	depth := func(v volumeView) (n int) {
		for n < len(volumes) {
			i := slices.IndexFunc(volumes, func(p volumeView) bool { return p.UUID == v.Parent })
			if i < 0 {
				break
			}
			v, n = volumes[i], n+1
		}
		return n
	}
	return slices.SortedStableFunc(slices.Values(volumes), func(a, b volumeView) int { return cmp.Compare(depth(a), depth(b)) })
}

// images are those of the domains in use, or of one domain.
func (s *storage) images(ctx context.Context, domain string) ([]imageView, error) {
	volumes, err := s.volumes(ctx, domain)
	return imagesOf(volumes), err
}

func (s *storage) image(ctx context.Context, name string) (imageView, error) {
	domain, rest := inDomain(name)
	all, err := s.images(ctx, domain)
	if err != nil {
		return imageView{}, err
	}
	return match("image", rest, all)
}

// oneImage is what a verb does with the image of its operand.
func oneImage(c *cobra.Command, dial storageDialer, do func(c *cobra.Command, s *storage, i imageView) error) {
	c.Use += " IMAGE"
	c.Args, c.ValidArgsFunction = operands("IMAGE"), completeImages(dial)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, args []string) error {
		i, err := s.image(c.Context(), args[0])
		if err != nil {
			return err
		}
		return do(c, s, i)
	})
}

func newImageList(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the images of the domains in use", Args: noArguments}
	domain := c.Flags().String("domain", "", "only those of this domain")
	completeDomainFlag(c, "domain", dial)
	out := outputFlag(c)
	c.RunE = onStorage(dial, func(c *cobra.Command, s *storage, _ []string) error {
		all, err := s.images(c.Context(), *domain)
		if err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), notNil(all), func(w io.Writer) error {
			if len(all) == 0 {
				_, err := fmt.Fprintln(w, "no images; make one with: tidemark volume create --size SIZE NAME")
				return err
			}
			t := newTable(w, "NAME", "IMAGE", "VOLUMES", "VIRTUAL", "GRANTED", "SERVED", "DOMAIN")
			for _, i := range all {
				t.row(cmp.Or(i.Name, "-"), i.UUID, len(i.Volumes), short(i.leaf().Capacity), short(i.granted()), i.servedWord(), i.Domain)
			}
			return t.end()
		})
	})
	return c
}

// servedWord is yes, no, or unknown.
func (i imageView) servedWord() string {
	if slices.ContainsFunc(i.Volumes, func(v volumeView) bool { return v.Unanswered != "" }) {
		return "unknown"
	}
	return yesNo(i.served())
}

func (i imageView) served() bool {
	return slices.ContainsFunc(i.Volumes, func(v volumeView) bool { return v.Served })
}

func newImageInfo(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "info", Short: "Show the chain of an image, the base first"}
	out := outputFlag(c)
	oneImage(c, dial, func(c *cobra.Command, _ *storage, i imageView) error {
		return out.print(c.OutOrStdout(), i, func(w io.Writer) error {
			fmt.Fprintf(w, "image %s of domain %s\n", i.UUID, i.Domain)
			t := newTable(w, "VOLUME", "TYPE", "FORMAT", "LEGALITY", "GENERATION", "VIRTUAL", "GRANTED", "USED", "DESCRIPTION")
			for _, v := range i.Volumes {
				t.row(v.UUID, v.Type, v.Format, v.Legality, v.Generation, short(v.Capacity), short(v.Granted), short(v.Used), cmp.Or(v.Description, "-"))
			}
			return t.end()
		})
	})
	return c
}

func newImagePrepare(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "prepare", Short: "Serve an image over NBD, and print its address",
		Example: "  tidemark image prepare web1\n  nbdinfo \"$(tidemark image prepare web1)\""}
	volume := c.Flags().String("volume", "", "a volume of the image (default: the leaf)")
	completeFlag(c, "volume", dial, (*storage).allVolumes)
	readOnly := c.Flags().BoolP("read-only", "r", false, "nobody may write")
	illegal := c.Flags().Bool("illegal", false, "also a volume that is illegal")
	out := outputFlag(c)
	oneImage(c, dial, func(c *cobra.Command, s *storage, i imageView) error {
		v := i.leaf()
		if *volume != "" {
			var err error
			if v, err = match("volume", *volume, i.Volumes); err != nil {
				return err
			}
		}
		args := v.at()
		args["readOnly"], args["allowIllegal"] = *readOnly, *illegal
		var r struct {
			Path string         `json:"path"`
			Info map[string]any `json:"info"`
		}
		if err := s.ask(c.Context(), "prepareImage", args, &r); err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), r.Info, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, r.Path)
			return err
		})
	})
	return c
}

func newImageTeardown(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "teardown", Short: "Serve an image no more"}
	out := outputFlag(c)
	oneImage(c, dial, func(c *cobra.Command, s *storage, i imageView) error {
		args := i.leaf().at()
		args["volUUID"] = blank
		if err := s.ask(c.Context(), "teardownImage", args, nil); err != nil {
			return err
		}
		return out.print(c.OutOrStdout(), named{"image_uuid": i.UUID}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s: served no more\n", cmp.Or(i.Name, i.UUID))
			return err
		})
	})
	return c
}

// domainFlag is the UUID of the domain that an option names, or "".
func (s *storage) domainFlag(ctx context.Context, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	d, err := s.domain(ctx, name)
	return d.UUID, err
}

func newImageCopy(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "copy", Short: "Copy the leaf of an image, with everything below it, to one volume of a new image",
		Example: "  tidemark image copy web1 --to second --wait\n  tidemark image copy web1 --template --name server --description \"web server\""}
	to := c.Flags().String("to", "", "the domain of the copy (default: the same)")
	completeDomainFlag(c, "to", dial)
	template := c.Flags().Bool("template", false, "a template: others may be based on it, and nobody writes to it")
	name := c.Flags().String("name", "", "of the copy, which no other volume may have")
	description := c.Flags().String("description", "", "of the copy")
	format := c.Flags().String("format", "UNKNOWN", "COW or RAW; as it is, if it is not given")
	completeWords(c, "format", spm.Cow, spm.Raw)
	f := addTaskFlags(c)
	oneImage(c, dial, func(c *cobra.Command, s *storage, i imageView) error {
		target, err := s.domainFlag(c.Context(), *to)
		if err != nil {
			return err
		}
		text, err := describe(*name, *description)
		if err != nil {
			return err
		}
		v, kind := i.leaf(), "LEAF"
		if *template {
			kind = "SHARED"
		}
		b := begun{Image: uuid.NewString(), Volume: uuid.NewString()}
		return f.begin(c, s, "copyImage", named{"spUUID": v.pool, "sdUUID": v.Domain, "vmUUID": blank, "srcImgUUID": v.Image, "srcVolUUID": v.UUID,
			"dstImgUUID": b.Image, "dstVolUUID": b.Volume, "dstSdUUID": target, "description": text, "volType": kind, "volFormat": strings.ToUpper(*format)},
			b, fmt.Sprintf("copy of %s: image %s", cmp.Or(i.Name, i.UUID), b.Image))
	})
	return c
}

func newImageMove(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "move", Short: "Move an image with its chain to another domain",
		Example: "  tidemark image move web1 --to second --wait"}
	to := c.Flags().String("to", "", "the domain that gets it")
	completeDomainFlag(c, "to", dial)
	keep := c.Flags().Bool("keep", false, "leave the original: then the image is in both domains")
	f := addTaskFlags(c)
	oneImage(c, dial, func(c *cobra.Command, s *storage, i imageView) error {
		if *to == "" {
			return fmt.Errorf("where is %s to be moved? give --to DOMAIN", cmp.Or(i.Name, i.UUID))
		}
		target, err := s.domainFlag(c.Context(), *to)
		if err != nil {
			return err
		}
		op := "MOVE"
		if *keep {
			op = "COPY"
		}
		return f.begin(c, s, "moveImage", named{"spUUID": i.pool, "srcDomUUID": i.Domain, "dstDomUUID": target, "imgUUID": i.UUID, "vmUUID": blank, "op": op},
			begun{Image: i.UUID}, fmt.Sprintf("%s to %s", cmp.Or(i.Name, i.UUID), *to))
	})
	return c
}

func newImageDelete(dial storageDialer) *cobra.Command {
	c := &cobra.Command{Use: "delete", Short: "Remove an image with all its volumes"}
	zero := c.Flags().Bool("zero", false, "overwrite the data with zeros first")
	force := c.Flags().Bool("force", false, "also if a volume is illegal; what it has of its image is lost with it")
	f := addTaskFlags(c)
	oneImage(c, dial, func(c *cobra.Command, s *storage, i imageView) error {
		return f.begin(c, s, "deleteImage", named{"sdUUID": i.Domain, "spUUID": i.pool, "imgUUID": i.UUID, "postZero": *zero, "force": *force},
			begun{Image: i.UUID}, fmt.Sprintf("image %s removed", cmp.Or(i.Name, i.UUID)))
	})
	return c
}
