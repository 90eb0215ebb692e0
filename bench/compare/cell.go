package main

import (
	"slices"
	"time"

	"tidemark/bench/load"
)

// A cell is a kind of load.
type cell struct {
	name string
	job  load.Job
	// image is what the servers begin with.
	image imageKind
	// fio is how the load comes from fio, beside what the job says; nil: it comes
	// from our own client.
	fio []string
	// at is where the disk is, and how it is served.
	at place
	// loop puts a loop device on the file that is mounted, past the page cache.
	loop bool
	// prefill is how many bytes of the disk the server is made to write before the
	// cell begins: of a volume, which has no image to begin with.
	prefill int64
}

// A place is where a disk is: an image in a file that is served over NBD, one that is
// mounted as a file, or a volume on LVM that is served over NBD.
type place string

const (
	inFile  place = ""
	mounted place = "mount"
	onLVM   place = "LVM"
)

// An imageKind is an image that cells begin with.
type imageKind struct {
	size     int64
	full     int64 // bytes from the begin that are allocated
	backing  bool  // over a raw file that is full
	extended bool  // extended L2 entries, for all QCOW2 arms
	snapshot bool  // all of it is shared with an internal snapshot
}

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// nbdEngine is fio's client of NBD; the socket is added.
var nbdEngine = []string{"--ioengine=nbd"}

// fuseCells are those of the files. qemu-storage-daemon 7.2 loses writes at depth 2
// and more: its speed is no target there, and said beside ours all the same. A loop
// device above the file asks for one at a time as well.
func fuseCells(over, empty imageKind) []cell {
	one := load.Job{Block: int(4 * kib), Set: gib, Depth: 1}
	deep, four := one, one
	deep.Depth, four.Conns = 32, 4
	return []cell{
		{name: "FUSE 4K overwrite, QD32", at: mounted, image: over, job: deep},
		{name: "FUSE 4K overwrite, 4 jobs", at: mounted, image: over, job: four},
		{name: "FUSE 4K overwrite, QD1", at: mounted, image: over, job: one},
		{name: "FUSE 4K overwrite, QD1, loop device", at: mounted, loop: true, image: over, job: one},
		{name: "FUSE 4K allocating, QD32", at: mounted, image: empty,
			job: load.Job{Block: int(4 * kib), Set: 64 * gib, Stride: 64 * kib, Depth: 32, Once: true}},
	}
}

// lvmCells are those of a volume on LVM, past the page cache.
func lvmCells() []cell {
	return []cell{
		{name: "LVM 4K overwrite, QD32", at: onLVM, prefill: gib, job: load.Job{Block: int(4 * kib), Set: gib, Depth: 32}},
		{name: "LVM 4K allocating, QD32", at: onLVM, job: load.Job{Block: int(4 * kib), Set: 4 * gib, Stride: 64 * kib, Depth: 32, Once: true}},
		{name: "LVM 1M sequential, QD4", at: onLVM, job: load.Job{Block: int(mib), Set: 4 * gib, Depth: 4, Sequential: true, Once: true}},
	}
}

// cells are those of the engine's and the NBD server's targets.
func cells() []cell {
	small := func(j load.Job) load.Job {
		j.Block, j.Conns = int(4*kib), max(j.Conns, 1)
		return j
	}
	over := imageKind{size: gib, full: gib}
	hot := imageKind{size: gib, full: 16 * mib}
	empty := imageKind{size: 64 * gib}
	return append([]cell{
		{name: "4K overwrite, QD32, 1 GiB", image: over, job: small(load.Job{Set: gib, Depth: 32})},
		{name: "4K overwrite, QD32, 16 MiB", image: hot, job: small(load.Job{Set: 16 * mib, Depth: 32})},
		{name: "4K overwrite, QD1, fio", fio: nbdEngine, image: over, job: small(load.Job{Set: gib, Depth: 1})},
		{name: "4K overwrite, QD1", image: over, job: small(load.Job{Set: gib, Depth: 1})},
		{name: "4K overwrite, QD32, 4 connections, 1 GiB", image: over, job: small(load.Job{Set: gib, Depth: 32, Conns: 4})},
		{name: "4K allocating, QD32", image: empty, job: small(load.Job{Set: 64 * gib, Stride: 64 * kib, Depth: 32, Once: true})},
		{name: "4K allocating, QD1", image: empty, job: small(load.Job{Set: 64 * gib, Stride: 64 * kib, Depth: 1, Once: true})},
		{name: "4K allocating + flush, QD1", image: empty, job: small(load.Job{Set: 64 * gib, Stride: 64 * kib, Depth: 1, Once: true, FlushEach: true})},
		{name: "4K overwrite + flush, QD1", image: over, job: small(load.Job{Set: gib, Depth: 1, FlushEach: true})},
		{name: "64K sequential allocating, QD16", image: empty, job: load.Job{Block: int(64 * kib), Set: 16 * gib, Depth: 16, Sequential: true, Once: true}},
		{name: "1M sequential allocating, QD4", image: empty, job: load.Job{Block: int(mib), Set: 16 * gib, Depth: 4, Sequential: true, Once: true}},
		{name: "4K over a backing file, extended L2, QD32", image: imageKind{size: 4 * gib, backing: true, extended: true},
			job: small(load.Job{Set: 4 * gib, Stride: 64 * kib, Depth: 32, Once: true})},
		{name: "4K random read, QD32", image: over, job: small(load.Job{Op: load.Read, Set: gib, Depth: 32})},
		{name: "1M sequential read, QD4", image: over, job: load.Job{Op: load.Read, Block: int(mib), Set: gib, Depth: 4, Sequential: true}},
	}, append(lvmCells(), fuseCells(over, empty)...)...)
}

// has reports whether an arm takes part in a cell: ours, and those of peers that
// the goals name. Where a raw file is only the aim, one of nbdkit's arms will do.
func (c cell) has(a arm) bool {
	if a.at != c.at {
		return false
	}
	g := goalOf(c.name, a.peer())
	return a.ours() || g != nil && (g.Least > 0 || !a.raw || a.bare || a.name == nbdkitFile(4).name)
}

// needs is what a cell needs of the machine beside its servers and the image tools of
// QEMU: programs, files, and root (here).
func (c cell) needs() (list []string) {
	switch {
	case c.fio != nil:
		list = append(list, "fio")
	case c.at == onLVM:
		list = append(list, "root", "/dev/loop-control", "losetup", "fallocate", "blkdiscard", "lvm")
	case c.at == mounted:
		list = append(list, "/dev/fuse")
	}
	if c.loop {
		list = append(list, "root", "/dev/loop-control", "losetup")
	}
	return list
}

// exempt reports whether what an arm leaves in a cell does not have to be what was
// written: QEMU's FUSE export loses writes that are in flight together (fuseCells).
func (c cell) exempt(a arm) bool {
	return a.at == mounted && a.qemu && c.job.Depth*max(c.job.Conns, 1) > 1
}

// marked is an arm's name in a row of a cell, with what has to be known of it there.
func (c cell) marked(name string) string {
	if slices.ContainsFunc(allArms(ours), func(a arm) bool { return a.name == name && c.exempt(a) }) {
		return name + " (content not checked)"
	}
	return name
}

// withTime gives a cell's job its time and its seed.
func (c cell) withTime(d time.Duration, seed uint64) load.Job {
	j := c.job
	j.Duration, j.Seed = d, seed
	return j
}
