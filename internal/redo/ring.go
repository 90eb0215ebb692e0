//go:build linux

package redo

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	magic      = 0x746d2d7265646f01
	headerLen  = 64
	slotWords  = 4
	slotLen    = slotWords * 8
	slotsMax   = 1 << 20
	wordMagic  = 0
	wordBoot   = 1
	wordSlots  = 3
	wordTail   = 4
	wordTrust  = 5
	firstWord  = headerLen / 8
	bootIDPath = "/proc/sys/kernel/random/boot_id"
)

// DefaultSlots is a ring of 512 KiB.
const DefaultSlots = 1 << 14

// ErrNone: there is no ring of that name of this boot.
var ErrNone = errors.New("no redo ring of this boot")

// A Record is what its writer makes of it.
type Record struct{ A, B, C uint64 }

// A Ring holds records until they are trimmed. Its methods are safe for
// concurrent use.
type Ring struct {
	path  string
	mem   []byte
	words []uint64
	slots uint64

	head atomic.Uint64 // sequence number of the last record
	used atomic.Int64  // slots that hold records or are reserved
}

// Create makes an empty ring with room for slots records in dir, which it makes
// if it is missing.
func Create(dir string, id uint64, slots int) (*Ring, error) {
	if slots < 1 || slots > slotsMax {
		return nil, fmt.Errorf("redo ring: %d slots, expected 1 to %d", slots, slotsMax)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("redo ring: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	path := ringPath(dir, id)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("redo ring: %w", err)
	}
	defer f.Close()
	size := int64(headerLen + slots*slotLen)
	// Allocated now: a store into a hole of a full file system is a SIGBUS.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("redo ring %s: allocate %d bytes: %w", path, size, err)
	}
	r, err := mapRing(f, path, size)
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	r.slots = uint64(slots)
	r.words[wordSlots] = r.slots
	copy(r.mem[wordBoot*8:], boot)
	atomic.StoreUint64(&r.words[wordMagic], magic)
	return r, nil
}

// Open opens the ring id of dir and returns the records that were not trimmed, in
// their order. A ring of another boot is removed; for that, and where there is
// none, the error is ErrNone.
func Open(dir string, id uint64) (*Ring, []Record, error) {
	path := ringPath(dir, id)
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, ErrNone
	}
	if err != nil {
		return nil, nil, fmt.Errorf("redo ring: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("redo ring: %w", err)
	}
	if st.Size() < headerLen+slotLen || st.Size() > headerLen+slotsMax*slotLen {
		return nil, nil, fmt.Errorf("redo ring %s: %d bytes, expected %d to %d", path, st.Size(), headerLen+slotLen, headerLen+slotsMax*slotLen)
	}
	r, err := mapRing(f, path, st.Size())
	if err != nil {
		return nil, nil, err
	}
	records, err := r.load()
	if err != nil {
		_ = r.unmap()
		if errors.Is(err, ErrNone) {
			_ = os.Remove(path)
		}
		return nil, nil, err
	}
	return r, records, nil
}

func ringPath(dir string, id uint64) string { return filepath.Join(dir, fmt.Sprintf("%016x", id)) }

func bootID() ([]byte, error) {
	text, err := os.ReadFile(bootIDPath)
	if err != nil {
		return nil, fmt.Errorf("redo ring: boot id: %w", err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("redo ring: boot id %q of %s: expected 32 hexadecimal digits", text, bootIDPath)
	}
	return b, nil
}

func mapRing(f *os.File, path string, size int64) (*Ring, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("redo ring %s: map: %w", path, err)
	}
	return &Ring{path: path, mem: mem, words: unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), len(mem)/8)}, nil
}

// load validates the header and collects the records.
func (r *Ring) load() ([]Record, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if r.words[wordMagic] != magic || !bytes.Equal(r.mem[wordBoot*8:wordSlots*8], boot) {
		return nil, ErrNone
	}
	r.slots = r.words[wordSlots]
	if r.slots == 0 || r.slots > slotsMax || int(headerLen+r.slots*slotLen) > len(r.mem) {
		return nil, fmt.Errorf("redo ring %s: %d slots in %d bytes", r.path, r.slots, len(r.mem))
	}
	tail := r.words[wordTail]
	type found struct {
		seq uint64
		rec Record
	}
	var all []found
	head := tail
	for i := range r.slots {
		w := r.words[firstWord+i*slotWords:]
		if seq := w[0]; seq > tail && seq-tail <= r.slots && seq%r.slots == i {
			all = append(all, found{seq, Record{w[1], w[2], w[3]}})
			head = max(head, seq)
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].seq < all[j].seq })
	records := make([]Record, len(all))
	for i, f := range all {
		records[i] = f.rec
	}
	r.head.Store(head)
	r.used.Store(int64(head - tail))
	return records, nil
}

// Reserve sets room for n records aside and reports whether there was enough.
func (r *Ring) Reserve(n int) bool {
	if r.used.Add(int64(n)) > int64(r.slots) {
		r.used.Add(-int64(n))
		return false
	}
	return true
}

// Release gives back room for n records that was reserved and not used.
func (r *Ring) Release(n int) { r.used.Add(-int64(n)) }

// Append adds a record to the room that its caller has reserved.
func (r *Ring) Append(rec Record) {
	seq := r.head.Add(1)
	w := r.words[firstWord+seq%r.slots*slotWords:]
	w[1], w[2], w[3] = rec.A, rec.B, rec.C
	atomic.StoreUint64(&w[0], seq)
}

// Head is the sequence number of the last record so far.
func (r *Ring) Head() uint64 { return r.head.Load() }

// Trim forgets the records up to sequence number upTo. Calls must not overlap.
func (r *Ring) Trim(upTo uint64) {
	tail := r.words[wordTail]
	if upTo <= tail {
		return
	}
	atomic.StoreUint64(&r.words[wordTail], upTo)
	r.used.Add(-int64(upTo - tail))
}

// Crowded reports whether more than half of the slots are in use.
func (r *Ring) Crowded() bool { return r.used.Load() > int64(r.slots)/2 }

// Slots is how many records there is room for.
func (r *Ring) Slots() int { return int(r.slots) }

// Distrust marks the ring: what its writer did last may be lost below it, so the
// records must not be replayed over what reads return.
func (r *Ring) Distrust() { atomic.StoreUint64(&r.words[wordTrust], 1) }

// Distrusted reports whether Distrust was called, in this process or before.
func (r *Ring) Distrusted() bool { return atomic.LoadUint64(&r.words[wordTrust]) != 0 }

// Close unmaps the ring and leaves its file. Nothing may be called afterwards.
func (r *Ring) Close() error { return r.unmap() }

// Remove unmaps the ring and removes its file.
func (r *Ring) Remove() error { return errors.Join(r.unmap(), os.Remove(r.path)) }

func (r *Ring) unmap() error {
	err := unix.Munmap(r.mem)
	r.mem, r.words = nil, nil
	return err
}
