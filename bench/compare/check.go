package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"tidemark/bench/load"
)

// This file has what is read back after a turn.

// How much is read back: so many blocks or more, all of each in up to so many bytes, and of
// the others the first sector.
const (
	mostChecked = 20000
	mostWhole   = 256 * mib
	sector      = 512
)

// judge checks what an arm has left: the image by qemu-img, and a sample of its blocks
// through qemu-nbd.
func (m *bench) judge(ctx context.Context, c cell, a arm, b bed, j load.Job, r *load.Result) (int, error) {
	image, err := a.image(ctx, &b)
	if err != nil {
		return 0, err
	}
	if !a.raw {
		if err := run(ctx, "qemu-img", append([]string{"check", "-q"}, image...)...); err != nil {
			return 0, err
		}
	}
	reader := arm{name: "reader", args: func(b bed) []string {
		return append([]string{"qemu-nbd", "-r", "-t", "-k", b.socket}, image...)
	}}
	again := b
	again.socket = b.socket + "r"
	srv, err := reader.start(ctx, again)
	if err != nil {
		return 0, err
	}
	n, err := verify(c, again.socket, j, r)
	if c.exempt(a) {
		err = nil
	}
	return n, errors.Join(err, srv.stop(reader))
}

// verify reads blocks back, as many as it says: those that were written, and where it
// is known what was there before, those that were not.
func verify(c cell, socket string, j load.Job, r *load.Result) (int, error) {
	check := load.CheckStamp(j.Seed)
	if c.fio != nil {
		check = checkFio
	}
	written := r.Sample(j, mostChecked)
	err := readBack(socket, j.Block, written, check)
	if c.prefill > 0 {
		return len(written), err
	}
	rest := r.Untouched(j, mostChecked/4)
	return len(written) + len(rest), errors.Join(err, readBack(socket, j.Block, rest, load.CheckFormer(c.image.former())))
}

// verifyReads asks the server itself, which has answered a cell's reads, for a sample of
// what it may have been asked for.
func verifyReads(c cell, socket string, j load.Job) (int, error) {
	offs := anywhere(j, min(mostChecked, int(mostWhole)/j.Block))
	return len(offs), readBack(socket, j.Block, offs, load.CheckFormer(c.image.former()))
}

// readBack verifies blocks, as many as may be as a whole.
func readBack(socket string, block int, offs []int64, check func(off int64, found []byte) error) error {
	whole, heads := split(offs, int(mostWhole)/block)
	return errors.Join(load.Verify(socket, "", block, whole, check), load.Verify(socket, "", sector, heads, check))
}

// split takes up to most out of a list, spread over all of it.
func split(list []int64, most int) (taken, rest []int64) {
	step := max((len(list)+most-1)/most, 1)
	for i, n := range list {
		if i%step == 0 {
			taken = append(taken, n)
		} else {
			rest = append(rest, n)
		}
	}
	return taken, rest
}

// image is how QEMU is told where what an arm has left is.
func (a arm) image(ctx context.Context, b *bed) ([]string, error) {
	switch {
	case a.raw:
		return []string{"-f", "raw", b.image}, nil
	case a.at != onLVM:
		return []string{"-f", "qcow2", b.image}, nil
	}
	if a.ours() {
		p, err := b.pool.where(ctx)
		if err != nil {
			return nil, err
		}
		b.part = p
	}
	return []string{"--image-opts", b.part.options("native")}, nil
}

// anywhere are up to most places of a Job, at random.
func anywhere(j load.Job, most int) (offs []int64) {
	stride := max(j.Stride, int64(j.Block))
	rng := rand.New(rand.NewPCG(j.Seed, 3))
	for range most {
		offs = append(offs, rng.Int64N(j.Set/stride)*stride)
	}
	return offs
}

// checkFio requires what fio writes at off: its offset, again and again.
func checkFio(off int64, found []byte) error {
	var mark [8]byte
	binary.LittleEndian.PutUint64(mark[:], uint64(off))
	if bytes.Equal(bytes.Repeat(mark[:], len(found)/8), found) {
		return nil
	}
	return fmt.Errorf("expected its offset in all of the block, found % x to % x", found[:16], found[len(found)-16:])
}
