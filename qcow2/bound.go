package qcow2

import "tidemark/qcow2/format"

// Bound is the number of bytes that an image of this geometry and virtual size
// needs when every cluster is allocated: header, L1 table, all L2 tables, all
// data, the refcounts for all of it, and the room that growing a refcount table
// takes while the old one still exists. Snapshots, bitmaps and VM state are not
// in it; images that have them are not written yet.
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
