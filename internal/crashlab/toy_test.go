package crashlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"tidemark/internal/block"
)

// A toy is a small engine with every mistake that a test asks for. Its image is a
// header sector and the disk's sectors behind it, as far as they were written
// to: the header says how far, and how large the disk is.
type toy struct{ mistake string }

// The mistakes of a toy, and the rules that each breaks.
var toyMistakes = map[string][]int{
	"flush without a sync":                 {2},
	"FUA is ignored":                       {2},
	"the header is not synced":             {2},
	"a write goes to the next sector":      {2},
	"going on after a failed sync":         {2, 3},
	"fresh space is zeroed too late":       {3},
	"the header comes before the space":    {1},
	"leaks are not mended":                 {1},
	"the check says leaks for none":        {1},
	"the audit finds a second owner":       {5},
	"the bound is passed":                  {5},
	"opening rewrites what it finds":       {2, 6},
	"opening cleans up before it switches": {2, 6},
}

type toyDisk struct {
	toy    toy
	f      block.File
	mu     sync.Mutex // guards what follows
	size   int64      // sectors
	used   int64      // sectors
	failed error
}

const toyMagic = 0x746f7921

func (t toy) engine() Engine {
	e := Engine{Open: t.open, Check: t.check, Limit: func(f block.File, _ int) (int64, error) {
		size, _, err := toyHeader(f)
		if t.mistake == "the bound is passed" {
			size /= 2
		}
		return (1 + size) * sector, err
	}}
	e.Audit = func(_ context.Context, f block.File) error {
		if _, used, err := toyHeader(f); err != nil || t.mistake == "the audit finds a second owner" && used > 3 {
			return errors.Join(err, errors.New("a second owner"))
		}
		return nil
	}
	return e
}

func toyCreate(f block.File, sectors int64) error {
	if _, err := f.Grow(context.Background(), sector, sector); err != nil {
		return err
	}
	if err := writeToyHeader(f, sectors, 0); err != nil {
		return err
	}
	return f.Sync()
}

func toyHeader(f block.File) (size, used int64, err error) {
	b := make([]byte, sector)
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, 0, err
	}
	if m := binary.BigEndian.Uint32(b); m != toyMagic {
		return 0, 0, fmt.Errorf("no toy: %x", m)
	}
	return int64(binary.BigEndian.Uint64(b[8:])), int64(binary.BigEndian.Uint64(b[16:])), nil
}

func writeToyHeader(f block.File, size, used int64) error {
	b := make([]byte, sector)
	binary.BigEndian.PutUint32(b, toyMagic)
	binary.BigEndian.PutUint64(b[8:], uint64(size))
	binary.BigEndian.PutUint64(b[16:], uint64(used))
	_, err := f.WriteAt(b, 0)
	return err
}

func (t toy) open(ctx context.Context, f block.File, _ string) (Disk, error) {
	size, used, err := toyHeader(f)
	if err != nil {
		return nil, err
	}
	d := &toyDisk{toy: t, f: f, size: size, used: used}
	if end := (1 + used) * sector; f.Size() > end && t.mistake != "leaks are not mended" {
		err = f.Shrink(ctx, f.Size(), end)
	}
	if used > 0 && t.mistake == "opening rewrites what it finds" {
		p := make([]byte, used*sector)
		_, err = f.ReadAt(p, sector)
		err = errors.Join(err, f.WriteZeroes(sector, used*sector), f.Sync())
		if err == nil {
			_, err = f.WriteAt(p, sector)
		}
	}
	if used > 0 && t.mistake == "opening cleans up before it switches" {
		p := make([]byte, sector)
		if _, err = f.ReadAt(p, used*sector); err == nil && p[3] != 0 {
			err = errors.Join(writeToyHeader(f, size, used-1), f.Sync(), writeToyHeader(f, size, used))
		}
	}
	return d, err
}

func (t toy) check(ctx context.Context, f block.File, mend bool) (Finding, error) {
	size, used, err := toyHeader(f)
	if err != nil {
		return Finding{}, err
	}
	have := f.Size()/sector - 1
	res := Finding{Leaks: max(have-used, 0), Details: fmt.Sprintf("%d sectors, %d used, %d there", size, used, have)}
	if used > have || used > size {
		res.Corruptions = 1
	}
	if t.mistake == "the check says leaks for none" && used > 4 {
		res.Leaks = 0
	}
	if mend && res.Leaks > 0 && t.mistake != "leaks are not mended" {
		res.Leaks = 0
		return res, f.Shrink(ctx, f.Size(), (1+used)*sector)
	}
	return res, nil
}

func (d *toyDisk) WriteLater([]byte, int64, block.Later) bool { return false }

func (d *toyDisk) ReadAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := max(min(int64(len(p)), d.used*sector-off), 0)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	_, err := d.f.ReadAt(p[:n], sector+off)
	return err
}

func (d *toyDisk) WriteAt(ctx context.Context, p []byte, off int64, fl block.Flags) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.useLocked(ctx, (off+int64(len(p)))/sector); err != nil {
		return err
	}
	if d.toy.mistake == "a write goes to the next sector" && off > 20*sector && d.used*sector > off+int64(len(p)) {
		off += sector
	}
	if d.failed != nil {
		return d.failed
	}
	if fl.Has(block.FUA) && d.toy.mistake != "FUA is ignored" {
		_, d.failed = d.f.WriteAtSync(p, sector+off)
		return d.failed
	}
	_, err := d.f.WriteAt(p, sector+off)
	return err
}

// useLocked makes the first end sectors used: space, zeroes, Sync, header, Sync.
func (d *toyDisk) useLocked(ctx context.Context, end int64) error {
	if end <= d.used {
		return nil
	}
	m := d.toy.mistake
	want := (1 + end) * sector
	header := func() error { return writeToyHeader(d.f, d.size, end) }
	zero := func() error { return d.f.WriteZeroes((1+d.used)*sector, (end-d.used)*sector) }
	var err error
	if m == "the header comes before the space" {
		err = header()
	}
	if _, gerr := d.f.Grow(ctx, want, want); gerr != nil {
		return gerr
	}
	if m == "fresh space is zeroed too late" {
		err = errors.Join(err, header(), zero())
	} else {
		err = errors.Join(err, zero(), d.syncLocked())
	}
	if err != nil && m != "going on after a failed sync" {
		return err
	}
	if err = errors.Join(err, header()); err != nil && m != "going on after a failed write" {
		d.failed = err
	}
	if m != "the header is not synced" {
		err = errors.Join(err, d.syncLocked())
	}
	d.used = end
	return err
}

// syncLocked never succeeds again once it has failed.
func (d *toyDisk) syncLocked() error {
	if d.failed == nil || d.toy.mistake == "going on after a failed sync" {
		d.failed = d.f.Sync()
	}
	return d.failed
}

func (d *toyDisk) WriteZeroes(ctx context.Context, off, n int64, fl block.Flags) error {
	return d.WriteAt(ctx, make([]byte, n), off, fl)
}

func (d *toyDisk) Discard(ctx context.Context, off, n int64, fl block.Flags) error {
	return d.WriteZeroes(ctx, off, n, fl)
}

func (d *toyDisk) Flush(context.Context) error {
	if d.toy.mistake == "flush without a sync" {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.toy.mistake == "the header is not synced" { // but the one who flushes first
		return nil
	}
	return d.syncLocked()
}

func (d *toyDisk) AppendExtents(_ context.Context, dst []block.Extent, off, n int64) ([]block.Extent, error) {
	return append(dst, block.Extent{Off: off, Len: n, State: block.Data, Host: -1}), nil
}

func (d *toyDisk) Info() block.DeviceInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	return block.DeviceInfo{Size: d.size * sector}
}

func (d *toyDisk) Close() error                 { return d.Flush(context.Background()) }
func (d *toyDisk) Settle(context.Context) error { return nil }

func (d *toyDisk) GiveBack(context.Context) (int64, error) { return 0, block.ErrUnsupported }

func (d *toyDisk) Resize(_ context.Context, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = size / sector
	if err := writeToyHeader(d.f, d.size, d.used); err != nil {
		return err
	}
	return d.syncLocked()
}
