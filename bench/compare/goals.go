package main

import "slices"

// The peers that a goal speaks of: the best arm of QEMU, nbdkit on a raw file, and a loop
// of pwrite on one, beside which nothing is wanted.
const (
	bestQEMU = "best QEMU"
	nbdkit   = "nbdkit, raw file"
	rawFile  = "pwrite, raw file"
)

// A goal is a row of the table of what is wanted: how many times the speed of a peer.
// Least is what is to hold; Aim is what would be good. 0 of either: it is not said.
type goal struct {
	Cell, Peer string
	Least, Aim float64
}

// What is wanted of the processor time of an operation, beside the best QEMU, in every
// cell: at most.
const (
	cpuMost = 1.0
	cpuAim  = 0.6
)

// goals is the table. The report and the document have its rows, in its order. An aim
// beside nbdkit of 1 is the speed of a raw file.
var goals = []goal{
	{"4K overwrite, QD32, 1 GiB", bestQEMU, 2.0, 3.0},
	{"4K overwrite, QD32, 1 GiB", nbdkit, 1.5, 3.0},
	{"4K overwrite, QD32, 1 GiB", rawFile, 0, 0},
	{"4K overwrite, QD32, 16 MiB", bestQEMU, 1.4, 2.0},
	{"4K overwrite, QD32, 16 MiB", nbdkit, 0.95, 1.1},
	{"4K overwrite, QD32, 16 MiB", rawFile, 0, 0},
	{"4K overwrite, QD1, fio", bestQEMU, 1.1, 1.3},
	{"4K overwrite, QD1", bestQEMU, 1.2, 1.6},
	{"4K overwrite, QD32, 4 connections, 1 GiB", bestQEMU, 1.8, 2.5},
	{"4K allocating, QD32", bestQEMU, 3.0, 4.5},
	{"4K allocating, QD1", bestQEMU, 1.8, 2.2},
	{"4K allocating + flush, QD1", bestQEMU, 1.8, 2.2},
	{"4K overwrite + flush, QD1", bestQEMU, 1.1, 1.4},
	{"64K sequential allocating, QD16", bestQEMU, 1.4, 0},
	{"64K sequential allocating, QD16", nbdkit, 0, 1},
	{"1M sequential allocating, QD4", bestQEMU, 1.3, 0},
	{"1M sequential allocating, QD4", nbdkit, 0, 1},
	{"4K over a backing file, extended L2, QD32", bestQEMU, 1.5, 3},
	{"4K random read, QD32", bestQEMU, 1.2, 0},
	{"4K random read, QD32", nbdkit, 0, 1},
	{"1M sequential read, QD4", bestQEMU, 1.4, 0},
	{"1M sequential read, QD4", nbdkit, 0, 1},
	{"LVM 4K overwrite, QD32", bestQEMU, 1.2, 1.5},
	{"LVM 4K allocating, QD32", bestQEMU, 1.0, 2},
	{"LVM 1M sequential, QD4", bestQEMU, 0.95, 1},
	{"FUSE 4K overwrite, QD32", bestQEMU, 1.4, 2},
	{"FUSE 4K overwrite, 4 jobs", bestQEMU, 2.5, 3},
	{"FUSE 4K overwrite, QD1", bestQEMU, 1, 0},
	{"FUSE 4K overwrite, QD1, loop device", bestQEMU, 1, 0},
	{"FUSE 4K allocating, QD32", bestQEMU, 2.3, 3},
}

// goalOf is the row of a cell and a peer; nil: there is none.
func goalOf(cell, peer string) *goal {
	for i, g := range goals {
		if g.Cell == cell && g.Peer == peer {
			return &goals[i]
		}
	}
	return nil
}

// What is expected of a run: goals, and curves that something is wanted of.
type expectation struct {
	goals  []goal
	curves []string
}

// expected is what that which was chosen measures: of its cells the goals whose peer has all
// of its arms in it, and of its curves those with bounds.
func (o options) expected() (e expectation) {
	for _, g := range goals {
		c, left := cellOf(g.Cell), func(a arm) bool { return a.peer() == g.Peer && !o.arms.has(a.name) }
		if o.cells.has(g.Cell) && !slices.ContainsFunc(allArms(ours), func(a arm) bool { return c.has(a) && left(a) }) {
			e.goals = append(e.goals, g)
		}
	}
	for _, p := range plots {
		if p.bounded && o.curves.has(p.name) {
			e.curves = append(e.curves, p.name)
		}
	}
	return e
}

// unmeasured are those of the goals that there is no verdict of.
func unmeasured(list []goal, judged []verdict) (rest []goal) {
	for _, g := range list {
		if !slices.ContainsFunc(judged, func(v verdict) bool { return v.Cell == g.Cell && v.Peer == g.Peer }) {
			rest = append(rest, g)
		}
	}
	return rest
}
