package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"tidemark/internal/size"
	"tidemark/spm"
)

// A newVolumeFlags says what volume is to be made.
type newVolumeFlags struct {
	virtual  diskSizeFlag
	format   string
	domain   string // "": the master, or the template's
	template string // image; "": the volume is blank
}

func newVolumeCreate(dial dialer, stores storageDialer) *cobra.Command {
	var f newVolumeFlags
	c := &cobra.Command{Use: "create --size SIZE NAME | --template IMAGE NAME", Short: "Create a volume, blank or based on a template", Args: operands("NAME"),
		Long: `Create a volume, in the master domain of the pool unless --domain names another. With
--template it shows what the template has, of which "tidemark image copy --template"
makes one, and keeps only what is written to it; it lies in the template's domain, and
has its size unless a larger one is given.`,
		Example: "  tidemark volume create --size 10G web1 --domain second\n  tidemark volume create --template server web2",
	}
	c.Flags().Var(&f.virtual, "size", "virtual size, such as 10G")
	c.Flags().StringVar(&f.format, "format", spm.FormatQCOW2, "qcow2, which begins small and grows, or raw, which is granted in full")
	c.Flags().StringVar(&f.domain, "domain", "", "the domain that gets it (default: the master, or the template's)")
	c.Flags().StringVar(&f.template, "template", "", "the template that it is based on")
	completeDomainFlag(c, "domain", stores)
	completeFlag(c, "template", stores, (*storage).allImages)
	completeWords(c, "format", spm.FormatQCOW2, spm.FormatRaw)
	c.ValidArgsFunction = cobra.NoFileCompletions // a new name
	out := outputFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if f.virtual == 0 && f.template == "" {
			return fmt.Errorf("how large is %s to be? give --size SIZE, such as --size 10G", args[0])
		}
		m, err := dial()
		if err != nil {
			return err
		}
		defer m.Close() //nolint:errcheck // returns nil
		s, err := stores()
		if err != nil {
			return err
		}
		defer s.Close()
		v, err := f.create(c.Context(), m, s, args[0])
		if err != nil {
			return adviseFull(c.Context(), m, err)
		}
		return out.print(c.OutOrStdout(), v, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "created %s: %s, %s granted; serve it with: %s nbd --spm %s -k SOCKET %s\n",
				v.Name, size.Format(v.Size), size.Format(v.Granted), self(), shellQuote(absolute(m.path)), shellQuote(v.Name))
			return err
		})
	}
	return c
}

func (f newVolumeFlags) create(ctx context.Context, m *manager, s *storage, name string) (spm.Volume, error) {
	domain, err := s.domainFlag(ctx, f.domain)
	if err != nil {
		return spm.Volume{}, err
	}
	if f.template == "" {
		v, err := m.CreateVolume(ctx, spm.VolumeCreateRequest{Name: name, Size: int64(f.virtual), Format: f.format, DomainUUID: domain})
		return v.Volume, err
	}
	id, err := f.derive(ctx, s, name, domain)
	if err != nil {
		return spm.Volume{}, err
	}
	v, err := m.GetVolumeInfo(ctx, spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: id}})
	return v.Volume, err
}

// derive makes a volume on the template, and returns its UUID once it is there.
func (f newVolumeFlags) derive(ctx context.Context, s *storage, name, domain string) (string, error) {
	of, err := s.image(ctx, f.template)
	if err != nil {
		return "", err
	}
	base := of.leaf()
	switch {
	case f.format != spm.FormatQCOW2:
		return "", fmt.Errorf("--format %s: a volume on a template is %s, for it keeps only what differs", f.format, spm.FormatQCOW2)
	case base.Type != spm.Shared:
		return "", fmt.Errorf("image %s is no template: make one of it with: tidemark image copy --template %s", f.template, shellQuote(f.template))
	case domain != "" && domain != of.Domain:
		return "", fmt.Errorf("template %s lies in domain %s, and what is based on it lies there too: leave --domain out, or copy the template: tidemark image copy --template --to %s %s",
			f.template, of.Domain, shellQuote(f.domain), shellQuote(f.template))
	}
	text, err := describe(name, "")
	if err != nil {
		return "", err
	}
	id := uuid.NewString()
	task, err := s.beginTask(ctx, "createVolume", named{"sdUUID": of.Domain, "spUUID": of.pool, "imgUUID": uuid.NewString(), "size": fmt.Sprint(int64(f.virtual)),
		"volFormat": spm.Cow, "preallocate": spm.Sparse, "diskType": "DATA", "volUUID": id, "desc": text, "srcImgUUID": of.UUID, "srcVolUUID": base.UUID})
	if err != nil {
		return "", err
	}
	_, err = s.endTask(ctx, task, nil)
	return id, err
}

// describe is the description of a new image of that name. Without one it is the text
// alone.
func describe(name, text string) (string, error) {
	if name == "" {
		return text, nil
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(struct {
		DiskAlias       string `json:"DiskAlias"`
		DiskDescription string `json:"DiskDescription"`
	}{name, text})
	return strings.TrimSuffix(b.String(), "\n"), err
}
