package qcow2_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/qcow2"
)

// Owners is a File that knows which host clusters of an image over it hold the guest's
// bytes and which hold metadata, by what is written into them: the guest's sectors are
// stamped. What held one never holds the other before it was discarded or zeroed.
type owners struct {
	block.File
	cs int64

	mu     sync.Mutex
	of     map[int64]owner // by cluster
	faults []string
}

type owner uint8

const (
	nobody owner = iota
	guestOwns
	metadata
)

func (o owner) String() string { return [...]string{"nobody", "the guest", "metadata"}[o] }

// guestMark begins every 8 bytes that the tests here write.
const guestMark = 0x6775657374 << 24

// stampGuest fills p with version n of the guest's bytes.
func stampGuest(p []byte, n int) {
	for i := 0; i+8 <= len(p); i += 8 {
		binary.BigEndian.PutUint64(p[i:], guestMark|uint64(n))
	}
}

// ownersOf watches the image of clusters of cs bytes in f.
func ownersOf(f block.File, cs int64) *owners {
	return &owners{File: f, cs: cs, of: map[int64]owner{}}
}

func (o *owners) WriteAt(p []byte, off int64) (int, error) {
	o.claim(p, off)
	return o.File.WriteAt(p, off)
}

func (o *owners) WriteAtSync(p []byte, off int64) (int, error) {
	o.claim(p, off)
	return o.File.WriteAtSync(p, off)
}

func (o *owners) WriteZeroes(off, n int64) error {
	o.drop(off, n)
	return o.File.WriteZeroes(off, n)
}

func (o *owners) Discard(off, n int64) error {
	o.drop(off, n)
	return o.File.Discard(off, n)
}

func (o *owners) claim(p []byte, off int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for at := off; at < off+int64(len(p)); at = (at/o.cs + 1) * o.cs {
		b := p[at-off : min((at/o.cs+1)*o.cs, off+int64(len(p)))-off]
		by := metadata
		switch {
		case len(b) >= 8 && binary.BigEndian.Uint64(b)>>24 == guestMark>>24:
			by = guestOwns
		case allZero(b):
			continue // nobody's yet
		}
		if was := o.of[at/o.cs]; was != nobody && was != by || at < o.cs && by == guestOwns {
			o.faults = append(o.faults, fmt.Sprintf("cluster %d, of %v, is overwritten by %v", at/o.cs, was, by))
		}
		o.of[at/o.cs] = by
	}
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func (o *owners) drop(off, n int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := (off + o.cs - 1) / o.cs; (c+1)*o.cs <= off+n; c++ {
		delete(o.of, c)
	}
}

// require wants that nobody has taken another one's cluster, and that every cluster
// has one owner in the tables too.
func (o *owners) require(t *testing.T) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	require.Empty(t, o.faults)
	requireClean(t, o.File)
}

// TestHeaderOverwrittenByGuestData (cloud-hypervisor issue 8358): the guest's bytes
// land in the image's first cluster.
// TestTablesOverwritten (issue 8606): of 200 L2 tables most are overwritten by refcount
// blocks, or by the guest's bytes. Both write everywhere in a disk of 200 tables whose
// refcount blocks come one after the other, discard, open it again, and watch who
// writes where.
func TestHeaderOverwrittenByGuestData(t *testing.T) { manyTables(t, 8) }

func TestTablesOverwritten(t *testing.T) { manyTables(t, 200) }

func manyTables(t *testing.T, tables int64) {
	const cs = 1 << 10
	coverage := int64(cs * cs / 8)
	ctx := context.Background()
	d := newDisk(t, qcow2.CreateOptions{Size: tables * coverage, ClusterSize: cs, RefcountBits: 64})
	o := ownersOf(d, cs)
	versions := map[int64]int{}
	p := make([]byte, cs)
	for life := range 4 {
		im, err := qcow2.Open(ctx, o, qcow2.Options{ReserveBytes: 32 << 10, CacheBytes: 16 << 10})
		require.NoError(t, err)
		for i := range tables * 8 {
			gc := i%tables*(cs/8) + (i/tables*5+int64(life)*3)%(cs/8)
			versions[gc] = life*10000 + int(i) + 1
			stampGuest(p, versions[gc])
			require.NoError(t, im.WriteAt(ctx, p, gc*cs, 0))
			if i%7 == 3 {
				require.NoError(t, im.Discard(ctx, gc*cs, cs, 0))
				delete(versions, gc)
			}
			if i%50 == 49 {
				require.NoError(t, im.Flush(ctx))
			}
		}
		for gc, v := range versions {
			require.NoError(t, im.ReadAt(ctx, p, gc*cs, 0))
			require.Equal(t, uint64(guestMark)|uint64(v), binary.BigEndian.Uint64(p[cs-8:]), "guest cluster %d", gc)
		}
		require.NoError(t, im.Close())
		o.require(t)
	}
}
