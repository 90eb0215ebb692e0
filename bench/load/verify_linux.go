package load

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// fill gives a block what all blocks of a run have behind their stamps.
func fill(b []byte, seed uint64) {
	for at := 0; at+8 <= len(b); at += 8 {
		binary.LittleEndian.PutUint64(b[at:], seed)
	}
}

// stamp marks a block that is filled: where it belongs.
func stamp(b []byte, off int64, seed uint64) {
	binary.LittleEndian.PutUint64(b, uint64(off)|1) // not zero
	binary.LittleEndian.PutUint64(b[8:], seed)
}

// Verify reads the sectors at offs and gives each to check.
func Verify(path, name string, offs []int64, check func(off int64, sector []byte) error) error {
	c, err := dial(path, name)
	if err != nil {
		return err
	}
	l := newNBDLine(c, Job{Op: Read, Block: sectorSize, Depth: verified})
	for len(offs) > 0 && err == nil {
		batch := offs[:min(len(offs), verified)]
		offs = offs[len(batch):]
		err = l.verify(batch, check)
	}
	return errors.Join(err, c.close())
}

const (
	sectorSize = 512
	verified   = 32 // at a time
)

// verify reads a batch of sectors.
func (l *nbdLine) verify(offs []int64, check func(off int64, sector []byte) error) error {
	for i, off := range offs {
		l.add(uint64(i), off)
	}
	if err := l.send(); err != nil {
		return err
	}
	for range offs {
		reply := l.in[:replyLen+sectorSize]
		if err := l.readFull(reply[:replyLen]); err != nil {
			return err
		}
		cookie, err := l.reply(reply)
		if err != nil {
			return fmt.Errorf("read at one of %d: %w", offs, err)
		}
		if err := l.readFull(reply[replyLen:]); err != nil {
			return err
		}
		if err := check(offs[cookie], reply[replyLen:]); err != nil {
			return fmt.Errorf("at %d: %w", offs[cookie], err)
		}
	}
	return nil
}

// Sample is where up to most of the blocks begin that a Job has written, spread over
// all of them.
func (r *Result) Sample(j Job, most int) []int64 { return r.sample(j, most, true) }

// Untouched is where up to most of the places are that a Job has not written to.
func (r *Result) Untouched(j Job, most int) []int64 { return r.sample(j, most, false) }

func (r *Result) sample(j Job, most int, written bool) (offs []int64) {
	j = j.withDefaults()
	var all []int64
	for i := range j.places() {
		if r.Written.Has(i) == written {
			all = append(all, j.From+i*j.Stride)
		}
	}
	step := max(len(all)/most, 1)
	for i := int(j.Seed % uint64(step)); i < len(all); i += step {
		offs = append(offs, all[i])
	}
	return offs
}

// CheckStamp requires that a block of a Job's with that seed begins with sector.
func CheckStamp(seed uint64) func(off int64, sector []byte) error {
	return func(off int64, sector []byte) error {
		want := make([]byte, len(sector))
		fill(want, seed)
		stamp(want, off, seed)
		if !bytes.Equal(want, sector) {
			return fmt.Errorf("expected % x and its seed to the end, found % x", want[:16], sector)
		}
		return nil
	}
}

// CheckFormer requires that each byte of a sector is value.
func CheckFormer(value byte) func(off int64, sector []byte) error {
	return func(_ int64, sector []byte) error {
		if want := bytes.Repeat([]byte{value}, len(sector)); !bytes.Equal(want, sector) {
			return fmt.Errorf("not written to: expected %d in every byte, found % x", value, sector)
		}
		return nil
	}
}
