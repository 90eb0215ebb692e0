package crashtest

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"tidemark/internal/block"
	"tidemark/internal/crashlab"
)

// The audit looks at an image with eyes of its own: it shares no code with the
// engine, so that a mistake in the engine's view of the format is not taken for
// the truth. It knows version 2 and 3, extended L2, internal snapshots, compressed
// clusters (deflate).
type auditor struct {
	f                          block.File
	clusterBits, refcountOrder uint
	extended                   bool
	size                       int64 // of the disk, bytes
	l1At, l1N                  int64
	tableAt, tableN            int64 // of the refcount table, bytes and clusters
	snapshotsAt                int64
	snapshots                  int

	name   string           // of the tree that is walked
	active bool             // it is the disk's, whose marks for single references are kept
	owners map[int64]string // by host cluster
	shared map[int64]int    // references by host cluster
	counts map[int64][]byte // refcount blocks by their number
}

// audit returns a function that finds clusters with two owners, with a count
// below their references, or outside the file, and snapshots that are not what
// they were: sums are the hashes of their content.
func audit(sums [][32]byte) func(context.Context, block.File) error {
	return func(_ context.Context, f block.File) error {
		a := &auditor{f: f, owners: map[int64]string{}, shared: map[int64]int{}, counts: map[int64][]byte{}}
		if err := a.header(); err != nil {
			return err
		}
		if err := a.metadata(); err != nil {
			return err
		}
		a.active = true
		if err := a.tree("the disk", a.l1At, a.l1N, nil); err != nil {
			return err
		}
		a.active = false
		if err := a.auditSnapshots(sums); err != nil {
			return err
		}
		return a.countsSuffice()
	}
}

func (a *auditor) cluster() int64 { return 1 << a.clusterBits }

func (a *auditor) read(off, n int64) ([]byte, error) {
	p := make([]byte, n)
	got, err := a.f.ReadAt(p, off)
	if int64(got) < n && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return p, nil
}

func (a *auditor) header() error {
	h, err := a.read(0, 112)
	if err != nil {
		return err
	}
	if !bytes.Equal(h[:4], []byte("QFI\xfb")) {
		return fmt.Errorf("no QCOW2 image: %x", h[:4])
	}
	u32 := func(at int) int64 { return int64(binary.BigEndian.Uint32(h[at:])) }
	u64 := func(at int) int64 { return int64(binary.BigEndian.Uint64(h[at:])) }
	a.clusterBits, a.refcountOrder = uint(u32(20)), 4
	a.size, a.l1N, a.l1At = u64(24), u32(36), u64(40)
	a.tableAt, a.tableN = u64(48), u32(56)
	a.snapshots, a.snapshotsAt = int(u32(60)), u64(64)
	if u32(4) >= 3 {
		a.refcountOrder, a.extended = uint(u32(96)), u64(72)&16 != 0
	}
	return nil
}

// own notes the owner of the clusters of n bytes at off; a second one is a fault.
func (a *auditor) own(owner string, off, n int64) error {
	if off < 0 || off+n > (a.f.Size()+a.cluster()-1)&^(a.cluster()-1) {
		return fmt.Errorf("%s: %d bytes at %d are outside the file of %d bytes", owner, n, off, a.f.Size())
	}
	for c := off >> a.clusterBits; c <= (off+n-1)>>a.clusterBits; c++ {
		if other, ok := a.owners[c]; ok {
			return fmt.Errorf("host cluster %d has two owners: %s, and %s", c, other, owner)
		}
		if a.shared[c] > 0 {
			return fmt.Errorf("host cluster %d has two owners: an entry, and %s", c, owner)
		}
		a.owners[c] = owner
	}
	return nil
}

// metadata is what exists once: header, refcount table and blocks, L1 table.
func (a *auditor) metadata() error {
	if err := a.own("the header", 0, a.cluster()); err != nil {
		return err
	}
	if err := a.own("the refcount table", a.tableAt, a.tableN<<a.clusterBits); err != nil {
		return err
	}
	table, err := a.read(a.tableAt, a.tableN<<a.clusterBits)
	if err != nil {
		return err
	}
	for i := int64(0); i*8 < int64(len(table)); i++ {
		at := int64(binary.BigEndian.Uint64(table[i*8:]))
		if at == 0 {
			continue
		}
		if err := a.own(fmt.Sprintf("refcount block %d", i), at, a.cluster()); err != nil {
			return err
		}
		if a.counts[i], err = a.read(at, a.cluster()); err != nil {
			return err
		}
	}
	return a.own("the L1 table", a.l1At, max(a.l1N*8, 1))
}

// count is the reference count of a host cluster.
func (a *auditor) count(c int64) uint64 {
	bits := int64(1) << a.refcountOrder
	per := a.cluster() * 8 / bits
	b := a.counts[c/per]
	if b == nil {
		return 0
	}
	at := c % per * bits
	if bits < 8 {
		return uint64(b[at/8]) >> (at % 8) & (1<<bits - 1)
	}
	var v uint64
	for _, x := range b[at/8 : at/8+bits/8] {
		v = v<<8 | uint64(x)
	}
	return v
}

// refer notes a reference to a host cluster that a tree may share with others.
func (a *auditor) refer(seen map[int64]bool, kind string, n, off int64, copied bool) error {
	c := off >> a.clusterBits
	if other, ok := a.owners[c]; ok {
		return fmt.Errorf("host cluster %d has two owners: %s, and %s %d of %s", c, other, kind, n, a.name)
	}
	if off&(a.cluster()-1) != 0 || off <= 0 || off >= a.f.Size() {
		return fmt.Errorf("%s %d of %s: offset %d in a file of %d bytes", kind, n, a.name, off, a.f.Size())
	}
	if seen[c] {
		return fmt.Errorf("host cluster %d is named twice, by %s %d of %s the second time", c, kind, n, a.name)
	}
	seen[c] = true
	a.shared[c]++
	if count := a.count(c); a.active && copied != (count == 1) {
		return fmt.Errorf("%s %d of %s: its mark for a single reference is %t, and the count of host cluster %d is %d", kind, n, a.name, copied, c, count)
	}
	return nil
}

const offsetMask = 0x00fffffffffffe00

// tree walks an L1 table. visit, if not nil, is told of every guest cluster that
// has an entry.
func (a *auditor) tree(name string, l1At, l1N int64, visit func(guest int64, entry, bitmap uint64) error) error {
	a.name = name
	l1, err := a.read(l1At, l1N*8)
	if err != nil {
		return err
	}
	entryBytes := int64(8)
	if a.extended {
		entryBytes = 16
	}
	per := a.cluster() / entryBytes
	seen, packed := map[int64]bool{}, map[int64]int{}
	for i := range l1N {
		e := binary.BigEndian.Uint64(l1[i*8:])
		if e&offsetMask == 0 {
			continue
		}
		at := int64(e & offsetMask)
		if err := a.refer(seen, "L1 entry", i, at, e>>63 == 1); err != nil {
			return err
		}
		l2, err := a.read(at, a.cluster())
		if err != nil {
			return err
		}
		for k := range per {
			e := binary.BigEndian.Uint64(l2[k*entryBytes:])
			var bitmap uint64
			if a.extended {
				bitmap = binary.BigEndian.Uint64(l2[k*entryBytes+8:])
			}
			if e == 0 && bitmap == 0 {
				continue
			}
			guest := i*per + k
			if err := a.entry(seen, packed, guest, e, bitmap); err != nil {
				return err
			}
			if visit != nil {
				if err := visit(guest, e, bitmap); err != nil {
					return err
				}
			}
		}
	}
	for c, n := range packed {
		if seen[c] {
			return fmt.Errorf("host cluster %d holds compressed data and something else of %s", c, name)
		}
		a.shared[c] += n
	}
	return nil
}

func (a *auditor) entry(seen map[int64]bool, packed map[int64]int, guest int64, e, bitmap uint64) error {
	if e>>62&1 == 1 {
		at, n := a.compressed(e)
		if at+n > a.f.Size() {
			return fmt.Errorf("guest cluster %d of %s: compressed data to %d in a file of %d bytes", guest, a.name, at+n, a.f.Size())
		}
		for c := at >> a.clusterBits; c <= (at+n-1)>>a.clusterBits; c++ {
			packed[c]++
		}
		return nil
	}
	if alloc, zero := uint32(bitmap), uint32(bitmap>>32); alloc&zero != 0 || e&offsetMask == 0 && alloc != 0 {
		return fmt.Errorf("guest cluster %d of %s: subclusters %016x that cannot be, host offset %d", guest, a.name, bitmap, e&offsetMask)
	}
	if e&offsetMask == 0 {
		return nil
	}
	return a.refer(seen, "guest cluster", guest, int64(e&offsetMask), e>>63 == 1)
}

// compressed is where the data of a compressed cluster lies.
func (a *auditor) compressed(e uint64) (at, n int64) {
	x := 62 - (a.clusterBits - 8)
	at = int64(e & (1<<x - 1))
	sectors := int64(e>>x&(1<<(62-x)-1)) + 1
	return at, sectors*512 - at%512
}

// countsSuffice compares the counts with the references that were found.
func (a *auditor) countsSuffice() error {
	for c, owner := range a.owners {
		if a.count(c) == 0 {
			return fmt.Errorf("host cluster %d, %s, is counted 0", c, owner)
		}
	}
	for c, n := range a.shared {
		if a.count(c) < uint64(n) {
			return fmt.Errorf("host cluster %d has %d references and is counted %d", c, n, a.count(c))
		}
	}
	return nil
}

// auditSnapshots walks every snapshot's tables and compares its content.
func (a *auditor) auditSnapshots(sums [][32]byte) error {
	if a.snapshots != len(sums) {
		return &crashlab.Fault{Oracle: 4, Text: fmt.Sprintf("%d snapshots; expected %d", a.snapshots, len(sums))}
	}
	at := a.snapshotsAt
	for i := range a.snapshots {
		h, err := a.read(at, 56)
		if err != nil {
			return err
		}
		size := a.size
		if binary.BigEndian.Uint32(h[36:]) >= 16 { // the disk may have grown since
			size = int64(binary.BigEndian.Uint64(h[48:]))
		}
		l1At, l1N := int64(binary.BigEndian.Uint64(h)), int64(binary.BigEndian.Uint32(h[8:]))
		name := fmt.Sprintf("snapshot %d", i)
		got, err := a.content(name, l1At, l1N, size)
		if err != nil {
			return &crashlab.Fault{Oracle: 4, Text: err.Error()}
		}
		if got != sums[i] {
			return &crashlab.Fault{Oracle: 4, Text: name + " has changed"}
		}
		if err := a.own("the L1 table of "+name, l1At, l1N*8); err != nil {
			return err
		}
		n := 40 + int64(binary.BigEndian.Uint32(h[36:])) + int64(binary.BigEndian.Uint16(h[12:])) + int64(binary.BigEndian.Uint16(h[14:]))
		at += (n + 7) &^ 7
	}
	if a.snapshots > 0 {
		return a.own("the snapshot table", a.snapshotsAt, at-a.snapshotsAt)
	}
	return nil
}

// content is the hash of what a tree maps of a disk of size bytes.
func (a *auditor) content(name string, l1At, l1N, size int64) ([32]byte, error) {
	disk := make([]byte, size+a.cluster())
	err := a.tree(name, l1At, l1N, func(guest int64, e, _ uint64) error {
		to := guest << a.clusterBits
		if to >= size {
			return nil
		}
		p, err := a.guestCluster(e)
		copy(disk[to:to+a.cluster()], p)
		return err
	})
	return sha256.Sum256(disk[:size]), err
}

func (a *auditor) guestCluster(e uint64) ([]byte, error) {
	switch {
	case e>>62&1 == 1:
		at, n := a.compressed(e)
		p, err := a.read(at, n)
		if err != nil {
			return nil, err
		}
		out := make([]byte, a.cluster())
		_, err = io.ReadFull(flate.NewReader(bytes.NewReader(p)), out)
		return out, err
	case e&1 == 1 || e&offsetMask == 0:
		return nil, nil
	}
	return a.read(int64(e&offsetMask), a.cluster())
}
