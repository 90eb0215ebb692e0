package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// imageInfo has the names of qemu-img info --output=json. Those of Tidemark
// alone come last.
type imageInfo struct {
	VirtualSize    int64           `json:"virtual-size"`
	Filename       string          `json:"filename"`
	ClusterSize    int64           `json:"cluster-size,omitempty"` // of QCOW2, as all that may be missing
	Format         string          `json:"format"`
	ActualSize     int64           `json:"actual-size"`
	Encrypted      bool            `json:"encrypted,omitempty"`
	Backing        string          `json:"backing-filename,omitempty"`
	FullBacking    string          `json:"full-backing-filename,omitempty"`
	BackingFormat  string          `json:"backing-filename-format,omitempty"`
	FormatSpecific *formatSpecific `json:"format-specific,omitempty"`
	DirtyFlag      bool            `json:"dirty-flag"`

	// Bound is how large the file becomes when every cluster is allocated,
	// without what snapshots, bitmaps and VM state add.
	Bound         int64    `json:"bound,omitempty"`
	SnapshotCount uint32   `json:"snapshot-count,omitempty"`
	Unknown       []string `json:"unknown-features,omitempty"` // incompatible ones
}

type formatSpecific struct {
	Type string    `json:"type"`
	Data qcow2Info `json:"data"`
}

type qcow2Info struct {
	Compat          string      `json:"compat"`
	CompressionType string      `json:"compression-type"`
	LazyRefcounts   *bool       `json:"lazy-refcounts,omitempty"` // version 3, as all pointers here
	RefcountBits    int         `json:"refcount-bits"`
	Encrypt         *encryption `json:"encrypt,omitempty"`
	DataFile        string      `json:"data-file,omitempty"`
	DataFileRaw     *bool       `json:"data-file-raw,omitempty"`
	Corrupt         *bool       `json:"corrupt,omitempty"`
	ExtendedL2      *bool       `json:"extended-l2,omitempty"`
}

type encryption struct {
	Format string `json:"format"`
}

func newInfo() *cobra.Command {
	c := &cobra.Command{
		Use:   "info [OPTIONS] FILE",
		Short: "Show what an image is",
		Long: `Show what an image is, from its header. No other file is opened, not even a
backing file, unless --backing-chain asks for it and --backing allows it. Images
that need something Tidemark cannot do are shown as well.

The bound is the size that the file never exceeds, when every cluster is in use.`,
		Example: "  tidemark info disk.qcow2\n  tidemark info --output=json disk.qcow2\n  tidemark info --backing-chain --backing auto overlay.qcow2",
		Args:    operands("FILE"),
	}
	out := outputFlag(c)
	image := newImageCommand(c)
	all := c.Flags().Bool("backing-chain", false, "show the backing files too")
	backing := backingFlag(c, true)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := image.checkBacking(backing); err != nil {
			return err
		}
		if !*all {
			backing = &backingChoice{none: true}
		}
		infos, err := readInfos(image, args[0], backing)
		if err != nil {
			return err
		}
		if !*all {
			return out.print(c.OutOrStdout(), infos[0], infos[0].human)
		}
		return out.print(c.OutOrStdout(), infos, func(w io.Writer) error { return printInfos(w, infos) })
	}
	return c
}

// readInfos describes the image at path and what backing allows below it.
func readInfos(image *imageCommand, path string, backing *backingChoice) ([]imageInfo, error) {
	f, err := image.open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	if image.raw() {
		info, err := describeLayer(&layer{path: path, format: formatRaw, file: f, host: f})
		return []imageInfo{info}, err
	}
	h, err := qcow2.ReadHeader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, adviseImage(err))
	}
	below, err := openChain(path, f, h, backing, image.lock())
	if err != nil {
		return nil, err
	}
	defer below.Close() //nolint:errcheck // read only
	var infos []imageInfo
	for _, l := range append(chain{{path: path, format: formatQCOW2, file: f, host: f, header: h}}, below...) {
		info, err := describeLayer(l)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// describeLayer describes one image of a chain.
func describeLayer(l *layer) (imageInfo, error) {
	used, err := l.host.Used()
	if err != nil {
		return imageInfo{}, err
	}
	if l.header == nil {
		return imageInfo{VirtualSize: wholeSectors(l.file.Size()), Filename: l.path, Format: formatRaw, ActualSize: used}, nil
	}
	return describeImage(l.header, l.path, used), nil
}

// printInfos prints one image after the other, as qemu-img info --backing-chain
// does.
func printInfos(w io.Writer, infos []imageInfo) error {
	for i, info := range infos {
		if i > 0 {
			fmt.Fprintln(w)
		}
		if err := info.human(w); err != nil {
			return err
		}
	}
	return nil
}

// describeImage is the pure part.
func describeImage(h *format.Header, path string, allocated int64) imageInfo {
	info := imageInfo{
		VirtualSize: h.Size, Filename: path, ClusterSize: h.ClusterSize(), Format: formatQCOW2, ActualSize: allocated,
		Encrypted: h.CryptMethod != 0,
		Backing:   h.BackingFile, FullBacking: fullBacking(path, h.BackingFile), BackingFormat: h.BackingFormat(),
		DirtyFlag: h.Incompatible&format.IncompatDirty != 0,
		Bound:     qcow2.Bound(h.Geometry, h.Size), SnapshotCount: h.Snapshots, Unknown: unknownFeatures(h),
	}
	d := qcow2Info{Compat: "0.10", CompressionType: compressionName(h.CompressionType), RefcountBits: 1 << h.RefcountOrder}
	switch h.CryptMethod {
	case 0:
	case 1:
		d.Encrypt = &encryption{"aes"}
	case 2:
		d.Encrypt = &encryption{"luks"}
	default:
		d.Encrypt = &encryption{fmt.Sprintf("method %d", h.CryptMethod)}
	}
	if h.Version >= 3 {
		d.Compat = "1.1"
		d.LazyRefcounts = bit(h.Compatible, format.CompatLazyRefcounts)
		d.Corrupt = bit(h.Incompatible, format.IncompatCorrupt)
		d.ExtendedL2 = bit(h.Incompatible, format.IncompatExtendedL2)
		if h.Incompatible&format.IncompatDataFile != 0 {
			d.DataFile = string(h.Extension(format.ExtDataFile))
			d.DataFileRaw = bit(h.Autoclear, format.AutoclearRawData)
		}
	}
	info.FormatSpecific = &formatSpecific{Type: formatQCOW2, Data: d}
	return info
}

func bit(word, mask uint64) *bool {
	b := word&mask != 0
	return &b
}

func compressionName(t uint8) string {
	switch t {
	case 0:
		return "zlib"
	case 1:
		return "zstd"
	}
	return fmt.Sprintf("unknown (%d)", t)
}

// unknownFeatures names the incompatible features that the specification does
// not define.
func unknownFeatures(h *format.Header) (names []string) {
	const known = format.IncompatDirty | format.IncompatCorrupt | format.IncompatDataFile |
		format.IncompatCompressionType | format.IncompatExtendedL2
	for b := uint8(0); b < 64; b++ {
		if h.Incompatible&^known&(1<<b) != 0 {
			names = append(names, h.FeatureName(format.Incompatible, b))
		}
	}
	return names
}

// fullBacking is the name of the backing file as seen from here: relative names
// are relative to the image.
func fullBacking(image, backing string) string {
	switch {
	case backing == "", filepath.IsAbs(backing), hasProtocol(backing):
		return backing
	}
	i := strings.LastIndexByte(image, '/')
	return image[:i+1] + backing
}

// hasProtocol reports whether name begins as QEMU's protocols do: "nbd:",
// "json:". A slash before the colon makes it a path.
func hasProtocol(name string) bool {
	i := strings.IndexAny(name, ":/")
	return i >= 0 && name[i] == ':'
}

// human prints as qemu-img info does.
func (i imageInfo) human(w io.Writer) error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("image: %s", printable(i.Filename))
	line("file format: %s", i.Format)
	line("virtual size: %s (%d bytes)", humanSize(i.VirtualSize), i.VirtualSize)
	line("disk size: %s", humanSize(i.ActualSize))
	if i.Encrypted {
		line("encrypted: yes")
	}
	if i.FormatSpecific == nil {
		_, err := io.WriteString(w, b.String())
		return err
	}
	line("cluster_size: %d", i.ClusterSize)
	if i.DirtyFlag {
		line("cleanly shut down: no")
	}
	if i.Backing != "" {
		actual := ""
		if i.FullBacking != i.Backing {
			actual = " (actual path: " + printable(i.FullBacking) + ")"
		}
		line("backing file: %s%s", printable(i.Backing), actual)
	}
	if i.BackingFormat != "" {
		line("backing file format: %s", printable(i.BackingFormat))
	}
	if i.SnapshotCount > 0 {
		line("snapshots: %d", i.SnapshotCount)
	}
	i.FormatSpecific.Data.human(line)
	for _, u := range i.Unknown {
		line("unknown feature: %s (the image cannot be opened)", printable(u))
	}
	line("bound: %s (%d bytes)", humanSize(i.Bound), i.Bound)
	_, err := io.WriteString(w, b.String())
	return err
}

func (d qcow2Info) human(line func(string, ...any)) {
	line("Format specific information:")
	line("    compat: %s", d.Compat)
	line("    compression type: %s", d.CompressionType)
	flag := func(name string, b *bool) {
		if b != nil {
			line("    %s: %t", name, *b)
		}
	}
	flag("lazy refcounts", d.LazyRefcounts)
	line("    refcount bits: %d", d.RefcountBits)
	if d.Encrypt != nil {
		line("    encrypt:\n        format: %s", d.Encrypt.Format)
	}
	if d.DataFile != "" {
		line("    data file: %s", printable(d.DataFile))
	}
	flag("data file raw", d.DataFileRaw)
	flag("corrupt", d.Corrupt)
	flag("extended l2", d.ExtendedL2)
}

// printable keeps names that an image contains from writing to the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// humanSize writes a size as qemu-img does: three digits, powers of 1024, the
// next unit from 1000 on.
func humanSize(n int64) string {
	const units = "\x00KMGTPE"
	_, exp := math.Frexp(float64(n) / (1000.0 / 1024.0))
	i := max((exp-1)/10, 0)
	number := fmt.Sprintf("%.3g", float64(n)/float64(int64(1)<<(10*i)))
	if i == 0 {
		return number + " B"
	}
	return number + " " + units[i:i+1] + "iB"
}

// adviseImage adds to an error of the image engine what to do about it.
func adviseImage(err error) error {
	if errors.Is(err, qcow2.ErrNotQCOW2) {
		return fmt.Errorf("%w; a raw image is opened with -f raw; make QCOW2 of another one with qemu-img convert -O qcow2", err)
	}
	return err
}
