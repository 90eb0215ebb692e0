package qcow2

import (
	"fmt"
	"slices"

	"tidemark/qcow2/format"
)

// listMetadata lists the clusters that hold metadata and refuses an image in which
// they overlap each other: writing it would destroy it. What data entries name is
// checked against the list when they are loaded. A snapshot's L2 tables may be
// the disk's, or another snapshot's.
func (im *Image) listMetadata() error {
	list, err := im.ownMetadata()
	if err != nil {
		return err
	}
	tables, err := im.allTables()
	if err != nil {
		return err
	}
	for _, off := range tables {
		list = append(list, off>>im.geo.ClusterBits)
	}
	slices.Sort(list)
	for i := 1; i < len(list); i++ {
		if list[i] == list[i-1] {
			return &format.CorruptError{What: "metadata", Off: list[i] << im.geo.ClusterBits, Want: "one owner for each cluster", Got: "two"}
		}
	}
	im.refs.metadata = list
	return im.checkSharing()
}

// ownMetadata lists everything but L2 tables.
func (im *Image) ownMetadata() ([]int64, error) {
	var list []int64
	add := func(off, n int64) {
		for c := off >> im.geo.ClusterBits; c < im.geo.Clusters(off+n); c++ {
			list = append(list, c)
		}
	}
	h, cs := im.header, im.geo.ClusterSize()
	add(0, cs)
	add(h.L1Offset, int64(h.L1Size)*8)
	add(h.RefcountTableOffset, int64(h.RefcountTableClusters)*cs)
	for _, e := range im.refs.table {
		if e != 0 {
			add(e.Offset(), cs)
		}
	}
	snapshots, n, err := ReadSnapshots(im.file, h)
	if err != nil {
		return nil, err
	}
	im.snapshots = snapshots
	add(h.SnapshotsOffset, n)
	for _, s := range snapshots {
		add(s.L1Offset, int64(s.L1Size)*8)
	}
	return list, nil
}

// checkSharing refuses two L1 entries of the disk that name one L2 table, and, if
// there are no snapshots, one that is not marked as the only one.
func (im *Image) checkSharing() error {
	seen := map[int64]bool{}
	for i, e := range im.tab.l1 {
		if e == 0 {
			continue
		}
		if seen[e.Offset()] || !e.Copied() && len(im.snapshots) == 0 {
			return &format.CorruptError{What: fmt.Sprintf("L1 entry %d", i), Off: im.header.L1Offset + int64(i)*8,
				Want: "an L2 table that no other entry of the disk refers to", Got: fmt.Sprintf("0x%016x", uint64(e))}
		}
		seen[e.Offset()] = true
	}
	return nil
}

// addMetadata adds a cluster to the list, while the image is opened.
func (im *Image) addMetadata(c int64) {
	if at, has := slices.BinarySearch(im.refs.metadata, c); !has {
		im.refs.metadata = slices.Insert(im.refs.metadata, at, c)
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.clearedLocked(c, 1)
}
