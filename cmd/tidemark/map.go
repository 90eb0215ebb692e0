package main

import (
	"bufio"
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"tidemark/internal/block"
	"tidemark/internal/size"
)

func newMap() *cobra.Command {
	c := &cobra.Command{
		Use:   "map [OPTIONS] FILE",
		Short: "Show what is where in an image",
		Long: `Show which ranges of the disk are stored where in the image. Without --output=json
only ranges that hold data are shown. Of an image with backing files the whole chain
is shown, which --backing allows to be opened; depth is how far down a range is.`,
		Example: "  tidemark map disk.qcow2\n  tidemark map --backing auto overlay.qcow2\n  tidemark map --output=json -s 1G -l 64M disk.qcow2",
		Args:    operands("FILE"),
	}
	out := outputFlag(c)
	image := newImageCommand(c)
	backing := backingFlag(c, false)
	start := c.Flags().StringP("start-offset", "s", "0", "where to start")
	length := c.Flags().StringP("max-length", "l", "", "how much to show (default: to the end)")
	c.RunE = func(c *cobra.Command, args []string) (err error) {
		from, n, err := parseRange(*start, *length)
		if err != nil {
			return err
		}
		if err := image.checkBacking(backing); err != nil {
			return err
		}
		spec := diskSpec{Image: args[0], ReadOnly: true, ForceShare: image.forceShare, Raw: image.raw(), Backing: backing}
		d, err := openDisk(c.Context(), spec)
		if err != nil {
			return err
		}
		defer d.Close() //nolint:errcheck // read only
		w := bufio.NewWriter(c.OutOrStdout())
		m := newMapPrinter(w, *out, d.layers())
		if err := eachExtent(c, d.Device(), from, n, m.print); err != nil {
			return fmt.Errorf("map %s: %w", args[0], err)
		}
		m.end()
		return w.Flush()
	}
	return c
}

func parseRange(start, length string) (from, n int64, err error) {
	if from, err = size.Parse(start); err != nil {
		return 0, 0, fmt.Errorf("--start-offset %w", err)
	}
	n = math.MaxInt64
	if length != "" {
		if n, err = size.Parse(length); err != nil {
			return 0, 0, fmt.Errorf("--max-length %w", err)
		}
	}
	return from, n, nil
}

// mapBatch is how many extents are asked for at a time.
const mapBatch = 1024

// eachExtent calls f with the extents of at most n bytes from off on; neighbours
// that continue each other are one.
func eachExtent(c *cobra.Command, d block.Device, off, n int64, f func(block.Extent) error) error {
	disk := d.Info().Size
	if off > disk {
		return fmt.Errorf("expected a start of at most %d, the size of the disk, found %d", disk, off)
	}
	end := off + min(n, disk-off)
	var last block.Extent
	batch := make([]block.Extent, 0, mapBatch)
	for off < end {
		extents, err := d.AppendExtents(c.Context(), batch[:0], off, end-off)
		if err != nil {
			return err
		}
		for _, x := range extents {
			off = x.End()
			if continues(last, x) {
				last.Len += x.Len
				continue
			}
			if last.Len > 0 {
				if err := f(last); err != nil {
					return err
				}
			}
			last = x
		}
	}
	if last.Len == 0 {
		return nil
	}
	return f(last)
}

// continues reports whether b is more of a.
func continues(a, b block.Extent) bool {
	if a.Len == 0 || a.State != b.State || a.Depth != b.Depth || (a.Host < 0) != (b.Host < 0) {
		return false
	}
	return a.Host < 0 || a.Host+a.Len == b.Host
}

// A mapPrinter prints as qemu-img map does, to the byte.
type mapPrinter struct {
	w     io.Writer
	json  bool
	of    []mapLayer // by depth
	count int
}

// A mapLayer is one image of a chain.
type mapLayer struct {
	path string
	raw  bool
}

// layers are the image and what is below it.
func (d *disk) layers() []mapLayer {
	all := []mapLayer{{d.path, d.spec.Raw}}
	for _, l := range d.below {
		all = append(all, mapLayer{l.path, l.format == formatRaw})
	}
	return all
}

func newMapPrinter(w io.Writer, o outputFormat, of []mapLayer) *mapPrinter {
	m := &mapPrinter{w: w, json: o == "json", of: of}
	if m.json {
		fmt.Fprint(w, "[")
	} else {
		fmt.Fprintf(w, "%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File")
	}
	return m
}

func (m *mapPrinter) print(x block.Extent) error {
	data, zero := x.State.Has(block.Data), x.State.Has(block.Zero)
	if x.Depth < 0 || x.Depth >= len(m.of) {
		return fmt.Errorf("at %d: found depth %d in a chain of %d images", x.Off, x.Depth, len(m.of))
	}
	of := m.of[x.Depth]
	if of.raw {
		x.Host = x.Off // also of a hole, as QEMU has it
	}
	if !m.json {
		if data && x.Host < 0 {
			return fmt.Errorf("the image has compressed clusters (at %d): use --output=json", x.Off)
		}
		if data && !zero {
			fmt.Fprintf(m.w, "%-16s%-16s%-16s%s\n", hex(x.Off), hex(x.Len), hex(x.Host), of.path)
		}
		return nil
	}
	if m.count++; m.count > 1 {
		fmt.Fprint(m.w, ",\n")
	}
	fmt.Fprintf(m.w, `{ "start": %d, "length": %d, "depth": %d, "present": %t, "zero": %t, "data": %t`,
		x.Off, x.Len, x.Depth, x.State.Has(block.Allocated), zero, data)
	if x.Host >= 0 {
		fmt.Fprintf(m.w, `, "offset": %d`, x.Host)
	}
	fmt.Fprint(m.w, "}")
	return nil
}

// hex is C's %#x, which leaves 0 bare.
func hex(n int64) string {
	if n == 0 {
		return "0"
	}
	return fmt.Sprintf("%#x", n)
}

func (m *mapPrinter) end() {
	if m.json {
		fmt.Fprintln(m.w, "]")
	}
}
