package qcow2

import (
	"errors"

	"tidemark/internal/block"
	"tidemark/qcow2/format"
)

// errBadEntry says that the entry must not be used; badEntryError describes it.
var errBadEntry = errors.New("bad entry")

// A piece is a run of guest bytes that the tables treat alike: one kind, one
// owner, one run of host bytes.
type piece struct {
	situation
	off, n int64 // guest bytes
	host   int64 // where off is in the file, -1 if nowhere
	backed bool  // what the kind leaves open comes from the backing file
	// pair is the entry of the piece's first cluster.
	pair format.L2Pair
}

func (p piece) end() int64 { return p.off + p.n }

// backedAt reports whether the cluster at guest offset off has content in the
// backing file.
func (im *Image) backedAt(off int64) bool {
	return off&^(im.geo.ClusterSize()-1) < im.backingSize()
}

// missing is the piece at off, of at most n bytes, where there is no L2 table.
func (im *Image) missing(off, n int64) piece {
	cover := im.geo.L2Coverage()
	p := piece{off: off, n: min(n, (off/cover+1)*cover-off), host: -1}
	return im.open(p)
}

// open fills in what the backing file means for a piece without host cluster: it
// ends where that does.
func (im *Image) open(p piece) piece {
	p.backed = im.backedAt(p.off)
	p.plain = !p.backed
	if p.backed && (p.kind == format.Unallocated || p.kind == format.UnallocatedAlloc) {
		end := im.geo.Clusters(im.backingSize()) << im.geo.ClusterBits
		p.n = min(p.n, end-p.off)
	}
	return p
}

// locate is the piece at off, of at most n bytes, in slice s. It ends with the
// slice at the latest.
func (im *Image) locate(s *slice, off, n int64) (piece, error) {
	gc := off >> im.geo.ClusterBits
	_, i := im.sliceOf(gc)
	p, err := im.inCluster(s.load(i), off)
	if err != nil {
		return p, err
	}
	for k := i + 1; p.kind != format.Compressed && p.n < n && k < s.entries() && p.end()&(im.geo.ClusterSize()-1) == 0; k++ {
		next, err := im.inCluster(s.load(k), p.end())
		if err != nil || next.situation != p.situation || next.backed != p.backed || !follows(p.host, p.n, next.host) {
			break
		}
		p.n += next.n
	}
	p.n = min(p.n, n)
	return p, nil
}

// inCluster is the piece at off as far as it lies in the cluster with this entry.
func (im *Image) inCluster(pair format.L2Pair, off int64) (piece, error) {
	cs := im.geo.ClusterSize()
	in := off & (cs - 1)
	sub := im.geo.SubclusterBits()
	kind, run := im.geo.SubclusterRun(pair.Entry, pair.Sub, int(in>>sub))
	if kind == format.Invalid {
		return piece{}, errBadEntry
	}
	p := piece{off: off, host: -1, pair: pair}
	p.kind, p.owned = kind, pair.Entry.Copied()
	p.n = min((in>>sub+int64(run))<<sub, cs) - in
	p = im.open(p)
	host := int64(0)
	if kind != format.Compressed {
		host = pair.Entry.Offset()
	}
	switch {
	case host == 0 && im.geo.ExtendedL2:
		p.plain = kind != format.Compressed && (!p.backed || pair.Sub == format.AllZero)
	case host == 0:
		p.plain = kind != format.Compressed && (!p.backed || kind == format.ZeroPlain)
	default:
		p.host = host + in
		p.plain = kind == format.ZeroAllocated && !im.geo.ExtendedL2
	}
	return p, nil
}

// follows reports whether the host place next continues n bytes at host.
func follows(host, n, next int64) bool {
	if host < 0 || next < 0 {
		return host == next
	}
	return next == host+n
}

// find is the piece at off, of at most n bytes, wherever it is.
func (im *Image) find(off, n int64) (piece, error) {
	gc := off >> im.geo.ClusterBits
	s, err := im.slice(gc)
	if err != nil {
		return piece{}, err
	}
	if s == nil {
		return im.missing(off, n), nil
	}
	p, err := im.locate(s, off, n)
	if errors.Is(err, errBadEntry) {
		err = im.badEntryError(s, gc)
	}
	return p, err
}

// extent describes a piece for who asks about the disk. What is in the backing
// file is asked of that.
func (p piece) extent() block.Extent {
	e := block.Extent{Off: p.off, Len: p.n, Host: -1}
	switch p.kind {
	case format.ZeroPlain:
		e.State = block.Allocated | block.Zero
	case format.ZeroAllocated:
		e.State, e.Host = block.Allocated|block.Zero, p.host
	case format.Compressed:
		e.State = block.Allocated | block.Data | block.Compressed
	case format.Data:
		e.State, e.Host = block.Allocated|block.Data, p.host
	default:
		e.State = block.Zero
	}
	return e
}
