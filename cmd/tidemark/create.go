package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/internal/hostfile"
	"tidemark/internal/size"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// createSpec is what the options say of a new image.
type createSpec struct {
	qcow2.CreateOptions
	format  string
	compat  string // as it was given
	sizeSet bool
}

func newCreate() *cobra.Command {
	c := &cobra.Command{
		Use:   "create [-f FORMAT] [-o KEY=VALUE,...] [-q] FILE SIZE",
		Short: "Make an empty image",
		Long: `Make an empty image. A file that exists is overwritten, unless a program has it
open. SIZE is in bytes, or with k, M, G, T, P or E in powers of 1024.

Options of -o for qcow2:
  compat=0.10|1.1       version of the format (default 1.1)
  cluster_size=SIZE     512 to 2M, a power of two (default 64k)
  refcount_bits=N       1 to 64, a power of two (default 16)
  lazy_refcounts=on|off marks the image so; reference counts are kept exact all the same
  size=SIZE             instead of SIZE behind FILE
  preallocation=off, compression_type=zlib, extended_l2=off: the only values yet`,
		Example: "  tidemark create disk.qcow2 10G\n  tidemark create -o cluster_size=128k,lazy_refcounts=on disk.qcow2 10G",
		Args:    createOperands,
	}
	imageFormat := formatFlag(c, "")
	list := c.Flags().StringArrayP("options", "o", nil, "options of the format, or help")
	quiet := c.Flags().BoolP("quiet", "q", false, "print nothing but errors")
	refuse(c, refuseObject,
		refusal{"backing", "b", true, "backing files are not supported yet; copy the image with qemu-img convert instead"},
		refusal{"backing-format", "F", true, "backing files are not supported yet; copy the image with qemu-img convert instead"},
		refusal{"backing-unsafe", "u", false, "backing files are not supported yet, so there is nothing to leave unopened"})
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, args []string) error {
		if isHelp(*list) {
			_, err := fmt.Fprintln(c.OutOrStdout(), c.Long)
			return err
		}
		s, err := parseCreate(imageFormat.value, *list, args[1:])
		if err != nil {
			return fmt.Errorf("create %s: %w", args[0], err)
		}
		if err := s.create(c.Context(), args[0]); err != nil {
			return err
		}
		if *quiet {
			return nil
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), s.describe(args[0]))
		return err
	}
	return c
}

func createOperands(c *cobra.Command, args []string) error {
	list, err := c.Flags().GetStringArray("options")
	if err != nil || isHelp(list) {
		return err
	}
	if len(args) == 1 {
		return operands("FILE")(c, args) // the size may be in -o
	}
	return operands("FILE", "SIZE")(c, args)
}

func isHelp(list []string) bool {
	return len(list) == 1 && (list[0] == "help" || list[0] == "?")
}

// parseCreate turns the options into what is made, or says what is wrong with
// them. It is pure: nothing has been touched when it fails.
func parseCreate(imageFormat string, lists, operand []string) (createSpec, error) {
	s := createSpec{format: imageFormat}
	for _, list := range lists {
		for _, o := range splitOptions(list) {
			if err := s.set(o); err != nil {
				return s, fmt.Errorf("-o %s: %w", o, err)
			}
		}
	}
	if len(operand) > 0 {
		if err := s.setSize(operand[0]); err != nil {
			return s, err
		}
	}
	if !s.sizeSet {
		return s, errors.New("expected a size, found none: give SIZE behind FILE, such as 10G")
	}
	if s.format == "raw" {
		return s, nil
	}
	_, err := s.Geometry()
	return s, err
}

// splitOptions splits at commas; two commas stand for one.
func splitOptions(list string) (out []string) {
	const quoted = "\x00"
	for _, o := range strings.Split(strings.ReplaceAll(list, ",,", quoted), ",") {
		if o != "" {
			out = append(out, strings.ReplaceAll(o, quoted, ","))
		}
	}
	return out
}

// set sets one option of -o.
func (s *createSpec) set(option string) error {
	key, value, _ := strings.Cut(option, "=")
	if s.format == "raw" && key != "size" && key != "preallocation" {
		return errors.New("unknown option of format raw: expected size or preallocation")
	}
	switch key {
	case "size":
		return s.setSize(value)
	case "compat":
		return s.setCompat(value)
	case "cluster_size":
		n, err := size.Parse(value)
		s.ClusterSize = n
		if err == nil && n == 0 {
			err = errors.New("expected a power of two from 512 to 2M")
		}
		return err
	case "refcount_bits":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 64 || n&(n-1) != 0 {
			return errors.New("expected 1, 2, 4, 8, 16, 32 or 64")
		}
		s.RefcountBits = n
		return nil
	case "lazy_refcounts":
		on, err := onOff(value)
		s.LazyRefcounts = on
		return err
	}
	return onlyDefault(key, value)
}

func (s *createSpec) setSize(text string) error {
	n, err := size.Parse(text)
	if err != nil {
		return fmt.Errorf("size %w", err)
	}
	if s.Size, s.sizeSet = wholeSectors(n), true; s.Size < n {
		return fmt.Errorf("size %s: %w", text, size.ErrTooLarge)
	}
	return nil
}

// wholeSectors rounds the size of a disk up to whole sectors, as qemu-img does.
// What is too large for that becomes negative.
func wholeSectors(n int64) int64 {
	return (n + format.SectorSize - 1) &^ (format.SectorSize - 1)
}

func (s *createSpec) setCompat(value string) error {
	s.compat = value
	switch value {
	case "0.10", "v2":
		s.Version = 2
	case "1.1", "v3":
		s.Version = 3
	default:
		return errors.New("expected 0.10 or 1.1")
	}
	return nil
}

// onlyDefault accepts options of which only one value is supported, and refuses
// all others by name.
func onlyDefault(key, value string) error {
	defaults := map[string]string{
		"preallocation": "off", "compression_type": "zlib", "extended_l2": "off", "data_file_raw": "off", "encryption": "off",
	}
	want, known := defaults[key]
	switch {
	case known && value == want:
		return nil
	case known:
		return fmt.Errorf("not supported yet: expected %s=%s", key, want)
	case key == "backing_file" || key == "backing_fmt":
		return errors.New("backing files are not supported yet; copy the image with qemu-img convert instead")
	case key == "data_file":
		return errors.New("external data files are not supported yet")
	case strings.HasPrefix(key, "encrypt."):
		return errors.New("encryption is not supported yet")
	}
	return errors.New("unknown option: see tidemark create --help")
}

func onOff(value string) (bool, error) {
	switch value {
	case "on":
		return true, nil
	case "off":
		return false, nil
	}
	return false, errors.New("expected on or off")
}

// create makes the file. A file that is new is removed again when that fails; one
// that was there is emptied only when it is locked.
func (s createSpec) create(ctx context.Context, path string) error {
	length := int64(0)
	if s.format == "raw" {
		length = s.Size
	}
	f, err := hostfile.Create(path, length, hostfile.CreateOptions{})
	fresh := err == nil
	if errors.Is(err, fs.ErrExist) {
		f, err = hostfile.Create(path, length, hostfile.CreateOptions{Overwrite: true})
	}
	if err != nil {
		return err
	}
	if s.format != "raw" {
		err = qcow2.Create(ctx, f, s.CreateOptions)
	}
	if err != nil && fresh {
		err = errors.Join(err, os.Remove(path))
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

// describe says what was made, in qemu-img's words.
func (s createSpec) describe(path string) string {
	if s.format == "raw" {
		return fmt.Sprintf("Formatting '%s', fmt=raw size=%d", path, s.Size)
	}
	g, err := s.Geometry()
	if err != nil {
		return err.Error() // it was valid
	}
	compat, lazy := "", "off"
	if s.compat != "" {
		compat = " compat=" + s.compat
	}
	if s.LazyRefcounts {
		lazy = "on"
	}
	return fmt.Sprintf("Formatting '%s', fmt=qcow2 cluster_size=%d extended_l2=off compression_type=zlib size=%d%s lazy_refcounts=%s refcount_bits=%d",
		path, g.ClusterSize(), s.Size, compat, lazy, 1<<g.RefcountOrder)
}
