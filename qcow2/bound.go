package qcow2

import "tidemark/qcow2/format"

// Bound is the number of bytes that an image of this geometry and virtual size
// needs when every cluster is allocated: header, L1 table, all L2 tables, all
// data, the refcounts for all of it, and the room that growing a refcount table
// takes while the old one still exists. What only snapshots own comes on top, at
// most what the image had when the last of them was taken.
func Bound(g format.Geometry, size int64) int64 {
	cs := g.ClusterSize()
	data := g.Clusters(size)
	l1 := g.L1Entries(size)
	clusters := 1 + g.Clusters(l1*8) + l1 + data
	var blocks, table int64
	for {
		n := clusters + blocks + 2*table
		b := (n + g.RefcountsPerBlock() - 1) / g.RefcountsPerBlock()
		// A table grows by half at a time.
		t := g.Clusters((b + b/2 + 1) * 8)
		if b == blocks && t == table {
			return n * cs
		}
		blocks, table = b, t
	}
}

// bound is how many clusters the image needs at most when its disk is of that
// size. Snapshots own at most what there was when the image was opened.
func (im *Image) bound(size int64) int64 {
	n := Bound(im.geo, size) >> im.geo.ClusterBits
	if len(im.snapshots) > 0 {
		n += im.alloc.openEnd
	}
	return n
}
