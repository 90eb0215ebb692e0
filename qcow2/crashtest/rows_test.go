package crashtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/crashlab"
	"tidemark/internal/rawimage"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/qcow2"
)

// A row is a kind of image that is crashed.
type row struct {
	name string
	// geometry is that of an image that package qcow2 creates.
	geometry qcow2.CreateOptions
	// made, if not nil, makes the image with QEMU's tools instead, once; geometry
	// says what it is like.
	made func(t *testing.T, img, dir string) built
	// table is how many clusters an L2 table maps, 0 for the standard.
	table int64
	// fill is a script that fills a new image before it is crashed.
	fill string
	// only are the scripts that are run on it, for an image that is too large for
	// many; nil means the usual ones.
	only []string
}

func kib(n int64) int64 { return n << 10 }

// rows are all kinds of images.
func rows() []row {
	return []row{
		{name: "512", geometry: qcow2.CreateOptions{Size: kib(96) + 512, ClusterSize: 512}},
		{name: "512 refcounts 64", geometry: qcow2.CreateOptions{Size: kib(128), ClusterSize: 512, RefcountBits: 64}},
		{name: "512 refcounts 1", geometry: qcow2.CreateOptions{Size: kib(96), ClusterSize: 512, RefcountBits: 1}, fill: filled},
		{name: "1k refcounts 4", geometry: qcow2.CreateOptions{Size: kib(192), ClusterSize: 1024, RefcountBits: 4}},
		{name: "2k version 2", geometry: qcow2.CreateOptions{Size: kib(300), ClusterSize: 2048, Version: 2}, fill: filled},
		{name: "2k two tables", geometry: qcow2.CreateOptions{Size: kib(560), ClusterSize: 2048}},
		{name: "4k", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}},
		{name: "4k refcounts 8 filled", geometry: qcow2.CreateOptions{Size: kib(256) + 512, ClusterSize: 4096, RefcountBits: 8}, fill: filled},
		{name: "32k refcounts 32", geometry: qcow2.CreateOptions{Size: kib(384), ClusterSize: 32 << 10, RefcountBits: 32}},
		{name: "64k", geometry: qcow2.CreateOptions{Size: kib(512)}, fill: filled},
		{
			name: "512 refcounts 64, the refcount table grows", geometry: qcow2.CreateOptions{Size: kib(2400), ClusterSize: 512, RefcountBits: 64},
			fill: "write 0+3700; reopen", // one cluster of refcount table is good for 2 MiB
			only: []string{"write 3700+190; flush; write 3890+200; write 100+9; flush; discard 10+100; flush; kill; write 4090+64; flush"},
		},

		{name: "extended 16k", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 16 << 10}, table: 1 << 10, made: made("extended_l2=on,cluster_size=16k")},
		{name: "extended 64k", geometry: qcow2.CreateOptions{Size: kib(512)}, table: 4 << 10, made: made("extended_l2=on,cluster_size=64k")},
		{name: "on raw", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: chain("cluster_size=4k", "raw")},
		{name: "on raw, shorter", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: chain("cluster_size=4k", "raw 100k")},
		{name: "on raw, extended", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 16 << 10}, table: 1 << 10, made: chain("extended_l2=on,cluster_size=16k", "raw")},
		{name: "on raw, a long name", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: longName},
		{name: "on qcow2", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: chain("cluster_size=4k", "qcow2")},
		{name: "on qcow2, longer", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: chain("cluster_size=4k", "qcow2 400k")},
		{name: "chain of three", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: chain("cluster_size=4k", "qcow2", "raw")},
		{name: "chain of four", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: chain("cluster_size=4k", "qcow2", "qcow2 160k", "raw")},
		{name: "snapshots", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: snapshots("cluster_size=4k", 2)},
		{name: "snapshots with holes", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 2048}, made: holes},
		{name: "snapshots refcounts 64", geometry: qcow2.CreateOptions{Size: kib(96), ClusterSize: 512, RefcountBits: 64}, made: snapshots("cluster_size=512,refcount_bits=64", 1)},
		{name: "compressed", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: compressed("cluster_size=4k")},
		{name: "compressed zstd", geometry: qcow2.CreateOptions{Size: kib(256), ClusterSize: 4096}, made: compressed("cluster_size=4k,compression_type=zstd")},
	}
}

// filled leaves an image with data, holes and clusters that were given back.
const filled = "write 0+90; write 120+40; flush; unmap 16+32; write 140+30; discard 128+8; reopen"

// A storage is what lies below and beside an image.
type storage struct {
	options simdisk.Options
	ring    bool // there is a directory that survives the death of the process
}

// storages are a file whose new space reads zero, and a volume whose new and
// discarded space is another tenant's; each with and without a redo ring would be
// twice the work for little: the ring does not care what is below.
var storages = map[string]storage{
	"file":   {},
	"volume": {options: simdisk.Options{Foreign: true, DiscardForeign: true}, ring: true},
}

// A subject is a row on a storage, ready to be crashed.
type subject struct {
	setup crashlab.Setup
	shape crashlab.Shape
	only  []string
	ring  bool // there is to be a directory beside the image
	files int  // of its chain, itself included
}

// prepare makes the image of a row.
func (r row) prepare(t *testing.T, name string) subject {
	o := storages[name].options
	g, err := r.geometry.Geometry()
	require.NoError(t, err)
	s := subject{
		files: 1,
		setup: crashlab.Setup{Name: r.name + " on a " + name, Engine: engine(), Options: o},
		only:  r.only,
		shape: crashlab.Shape{Size: r.geometry.Size / 512, Cluster: g.ClusterSize() / 512, Table: r.table * g.ClusterSize() / 512, Amend: true},
	}
	if r.table == 0 {
		s.shape.Table = g.ClusterSize() / 8 * g.ClusterSize() / 512
	}
	if r.made != nil {
		s.adopt(t, r.made(t, testenv.Tool(t, "qemu-img"), t.TempDir()))
	} else {
		d := simdisk.New(0, o)
		require.NoError(t, qcow2.Create(t.Context(), d, r.geometry))
		s.setup.Start = d.State()
	}
	if s.ring = storages[name].ring; s.ring {
		s.setup.BesideIn = stateDir(t)
	}
	s.needsSupport(t)
	if r.fill != "" {
		script, err := crashlab.Parse(r.fill)
		require.NoError(t, err)
		first := s.setup
		first.Versions = 1 << 20
		rec, err := crashlab.Run(t.Context(), first, script)
		require.NoError(t, err)
		s.setup.Start = rec.End()
	}
	return s
}

// adopt makes the subject of an image that QEMU's tools have made.
func (s *subject) adopt(t *testing.T, b built) {
	b = b.load(t)
	s.setup.Start, s.files = b.state, 1+len(b.backing)
	names, err := readNamed(simdisk.NewDisk(b.state, s.setup.Options))
	require.NoError(t, err)
	s.setup.Engine.Audit = auditNamed(names, audit(b.sums))
	if len(b.sums) > 0 { // what snapshots own comes on top of the bound
		s.setup.Engine.Limit = func(f block.File, cuts int) (int64, error) {
			n, err := limit(f, cuts)
			return n + b.state.Size(), err
		}
	}
	if len(b.backing) > 0 {
		s.setup.Engine.Open = openChain(b.backing)
	}
}

// openChain opens an image on backing files, which must be left as they are.
func openChain(backing []built) func(context.Context, block.File, string) (crashlab.Disk, error) {
	return func(ctx context.Context, f block.File, beside string) (crashlab.Disk, error) {
		u := untouched{before: backing}
		var top block.Device
		for _, b := range slices.Backward(backing) {
			d := simdisk.NewDisk(b.state, simdisk.Options{})
			u.below = append([]*simdisk.Disk{d}, u.below...)
			var err error
			if b.raw {
				top, err = rawimage.Open(d, rawimage.Options{ReadOnly: true})
			} else {
				top, err = qcow2.Open(ctx, d, qcow2.Options{ReadOnly: true, Backing: top})
			}
			if err != nil {
				return nil, err
			}
			u.open = append(u.open, top)
		}
		d, err := openOn(top)(ctx, f, beside)
		if err != nil {
			return nil, errors.Join(err, u.closeBacking())
		}
		u.Disk = d
		return u, nil
	}
}

// untouched is a disk whose backing files must be what they were when it closes.
type untouched struct {
	crashlab.Disk
	open   []block.Device
	below  []*simdisk.Disk
	before []built
}

func (u untouched) Close() error {
	return errors.Join(u.Disk.Close(), u.closeBacking())
}

func (u untouched) closeBacking() error {
	for _, d := range u.open {
		if err := d.Close(); err != nil {
			return err
		}
	}
	for i, d := range u.below {
		if d.State().Hash() != u.before[i].state.Hash() {
			return &crashlab.Fault{Oracle: 4, Text: fmt.Sprintf("backing file %d has changed", i+1)}
		}
	}
	return nil
}

// needsSupport fails if the engine does not support the image.
func (s *subject) needsSupport(t *testing.T) {
	f := simdisk.NewDisk(s.setup.Start, s.setup.Options)
	d, err := s.setup.Engine.Open(t.Context(), f, "")
	if err == nil {
		p := make([]byte, d.Info().Size)
		if err = d.ReadAt(t.Context(), p, 0, 0); err == nil {
			err = d.WriteAt(t.Context(), p, 0, 0)
		}
		_ = d.Close() // only opened to see whether it can be
	}
	if err == nil {
		_, err = s.setup.Engine.Check(t.Context(), f, false)
	}
	require.NoError(t, err)
}
