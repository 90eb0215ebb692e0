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

// Verify reads a block at each of offs and gives it to check.
func Verify(path, name string, block int, offs []int64, check func(off int64, found []byte) error) error {
	if len(offs) == 0 {
		return nil
	}
	c, err := dial(path, name)
	if err != nil {
		return err
	}
	l := newNBDLine(c, Job{Op: Read, Block: block, Depth: verified})
	for len(offs) > 0 && err == nil {
		batch := offs[:min(len(offs), verified)]
		offs = offs[len(batch):]
		err = l.verify(batch, check)
	}
	return errors.Join(err, c.close())
}

// verified is how many blocks are asked for at a time.
const verified = 32

// verify reads a batch of blocks.
func (l *nbdLine) verify(offs []int64, check func(off int64, found []byte) error) error {
	for i, off := range offs {
		l.add(uint64(i), off)
	}
	if err := l.send(); err != nil {
		return err
	}
	for range offs {
		reply := l.in[:replyLen+l.job.Block]
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

// Sample is where blocks begin that a Job has written: of more than some number at least
// so many, spread over all of them.
func (r *Result) Sample(j Job, some int) []int64 { return r.sample(j, some, true) }

// Untouched is where places are that a Job has not written to, as many as of Sample.
func (r *Result) Untouched(j Job, some int) []int64 { return r.sample(j, some, false) }

func (r *Result) sample(j Job, some int, written bool) (offs []int64) {
	j = j.withDefaults()
	var all []int64
	for i := range j.places() {
		if r.Written.Has(i) == written {
			all = append(all, j.From+i*j.Stride)
		}
	}
	step := max(len(all)/some, 1)
	for i := int(j.Seed % uint64(step)); i < len(all); i += step {
		offs = append(offs, all[i])
	}
	return offs
}

// CheckStamp requires that found is a block of a Job's with that seed, or what such a block
// begins with.
func CheckStamp(seed uint64) func(off int64, found []byte) error {
	var want []byte
	return func(off int64, found []byte) error {
		if len(want) != len(found) {
			want = make([]byte, len(found))
			fill(want, seed)
		}
		stamp(want, off, seed)
		return same(want, found)
	}
}

// CheckFormer requires that each byte of what was not written to is value.
func CheckFormer(value byte) func(off int64, found []byte) error {
	var want []byte
	return func(_ int64, found []byte) error {
		if len(want) != len(found) {
			want = bytes.Repeat([]byte{value}, len(found))
		}
		if err := same(want, found); err != nil {
			return fmt.Errorf("not written to: %w", err)
		}
		return nil
	}
}

// same tells the first place where found is not what is wanted.
func same(want, found []byte) error {
	if bytes.Equal(want, found) {
		return nil
	}
	at := 0
	for want[at] == found[at] {
		at++
	}
	at &^= 15
	end := min(at+16, len(want))
	return fmt.Errorf("expected % x at byte %d of the block, found % x", want[at:end], at, found[at:end])
}
