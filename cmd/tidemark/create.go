package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
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

	backingSet    bool // BackingFile was given
	backingUnseen bool // -u: the backing file is not looked at
}

func newCreate() *cobra.Command {
	c := &cobra.Command{
		Use:   "create [-f FORMAT] [-b FILE -F FORMAT [-u]] [-o KEY=VALUE,...] [-q] FILE [SIZE]",
		Short: "Make an empty image",
		Long: `Make an empty image. A file that exists is overwritten, unless a program has it
open. SIZE is in bytes, or with k, M, G, T, P or E in powers of 1024.

With -b the image reads from a backing file what was not written to it. The name is
stored as it is given, relative to the image's folder unless it is absolute; SIZE
may be left out then. Whoever opens the image must allow that file to be opened.

Options of -o for qcow2:
  compat=0.10|1.1       version of the format (default 1.1)
  cluster_size=SIZE     512 to 2M, a power of two (default 64k)
  refcount_bits=N       1 to 64, a power of two (default 16)
  lazy_refcounts=on|off marks the image so; reference counts are kept exact all the same
  extended_l2=on|off    32 sub-clusters in a cluster: less to copy for a small write
  compression_type=zlib|zstd
  backing_file=FILE, backing_fmt=FORMAT: as -b and -F
  size=SIZE             instead of SIZE behind FILE
  preallocation=off     the only value yet`,
		Example: "  tidemark create disk.qcow2 10G\n  tidemark create -b base.qcow2 -F qcow2 overlay.qcow2\n  tidemark create -o cluster_size=128k,lazy_refcounts=on disk.qcow2 10G",
		Args:    createOperands,
	}
	imageFormat := formatFlag(c)
	list := c.Flags().StringArrayP("options", "o", nil, "options of the format, or help")
	quiet := c.Flags().BoolP("quiet", "q", false, "print nothing but errors")
	backing := c.Flags().StringP("backing", "b", "", "backing file; only looked at, and not with -u")
	backingFormat := c.Flags().StringP("backing-format", "F", "", "format of the backing file: raw or qcow2")
	completeWords(c, "backing-format", formatRaw, formatQCOW2)
	unseen := c.Flags().BoolP("backing-unsafe", "u", false, "do not look at the backing file; then SIZE is needed")
	out := outputFlag(c)
	refuse(c, refuseObject)
	c.SetFlagErrorFunc(flagError)
	c.RunE = func(c *cobra.Command, args []string) error {
		if isHelp(*list) {
			_, err := fmt.Fprintln(c.OutOrStdout(), c.Long)
			return err
		}
		s := createSpec{format: imageFormat.value, backingUnseen: *unseen}
		err := s.parse(*list, args[1:])
		s.setBacking(*backing, *backingFormat, c.Flags().Changed("backing"), c.Flags().Changed("backing-format"))
		if err == nil {
			err = s.complete(args[0])
		}
		if err != nil {
			return fmt.Errorf("create %s: %w", args[0], err)
		}
		if err := s.create(c.Context(), args[0]); err != nil {
			return err
		}
		if *quiet {
			return nil
		}
		return out.print(c.OutOrStdout(), s.created(args[0]), func(w io.Writer) error {
			_, err := fmt.Fprintln(w, s.describe(args[0]))
			return err
		})
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

// parse turns -o and the operand behind FILE into what is made, or says what is
// wrong with them.
func (s *createSpec) parse(lists, operand []string) error {
	for _, list := range lists {
		for _, o := range splitOptions(list) {
			if err := s.set(o); err != nil {
				return fmt.Errorf("-o %s: %w", o, err)
			}
		}
	}
	if len(operand) > 0 {
		return s.setSize(operand[0])
	}
	return nil
}

// complete looks at the backing file, if there is one, and says what is wrong with
// the whole. Nothing has been touched when it fails.
func (s *createSpec) complete(path string) error {
	if err := s.checkBacking(); err != nil {
		return err
	}
	if s.backingSet && !s.backingUnseen {
		if err := s.openBacking(path); err != nil {
			return err
		}
	}
	if !s.sizeSet {
		return errors.New("expected a size, found none: give SIZE behind FILE, such as 10G")
	}
	if s.format == formatRaw {
		return nil
	}
	return s.Valid()
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
	case "extended_l2":
		on, err := onOff(value)
		s.ExtendedL2 = on
		return err
	case "compression_type":
		if value != "zlib" && value != "zstd" {
			return errors.New("expected zlib or zstd")
		}
		s.CompressionType = value
		return nil
	case "backing_file":
		s.BackingFile, s.backingSet = value, true
		return nil
	case "backing_fmt":
		s.BackingFormat = value
		return nil
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
		"preallocation": "off", "data_file_raw": "off", "encryption": "off",
	}
	want, known := defaults[key]
	switch {
	case known && value == want:
		return nil
	case known:
		return fmt.Errorf("not supported yet: expected %s=%s", key, want)
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
	onOff := map[bool]string{false: "off", true: "on"}
	compat, backing := "", ""
	if s.compat != "" {
		compat = " compat=" + s.compat
	}
	if s.backingSet {
		backing = fmt.Sprintf(" backing_file=%s backing_fmt=%s", s.BackingFile, s.BackingFormat)
	}
	return fmt.Sprintf("Formatting '%s', fmt=qcow2 cluster_size=%d extended_l2=%s compression_type=%s size=%d%s%s lazy_refcounts=%s refcount_bits=%d",
		path, g.ClusterSize(), onOff[s.ExtendedL2], cmp.Or(s.CompressionType, "zlib"), s.Size, compat, backing, onOff[s.LazyRefcounts], 1<<g.RefcountOrder)
}

// createdJSON is what --output=json tells of a new image, by the names that info
// gives them.
type createdJSON struct {
	Filename      string `json:"filename"`
	Format        string `json:"format"`
	VirtualSize   int64  `json:"virtual-size"`
	ClusterSize   int64  `json:"cluster-size,omitempty"`
	BackingFile   string `json:"backing-filename,omitempty"`
	BackingFormat string `json:"backing-filename-format,omitempty"`
}

func (s createSpec) created(path string) createdJSON {
	c := createdJSON{Filename: path, Format: s.format, VirtualSize: s.Size, BackingFile: s.BackingFile, BackingFormat: s.BackingFormat}
	if g, err := s.Geometry(); err == nil && s.format != "raw" {
		c.ClusterSize = g.ClusterSize()
	}
	return c
}
