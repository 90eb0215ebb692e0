package nbd

import (
	"context"
	"errors"
	"fmt"
	"math"

	"tidemark/internal/block"
)

// Info describes the export. It does not change.
func (c *Client) Info() DeviceInfo { return c.info }

// ReadAt reads len(p) bytes.
func (c *Client) ReadAt(ctx context.Context, p []byte, off int64, f Flags) error {
	if err := c.check(int64(len(p)), off, f); err != nil {
		return fmt.Errorf("nbd: read %d bytes at %d: %w", len(p), off, err)
	}
	for len(p) > 0 {
		n := min(len(p), c.piece())
		h := requestHeader{cmd: cmdRead, offset: uint64(off), length: uint64(n)}
		if _, err := c.roundTrip(ctx, h, nil, p[:n]); err != nil {
			return fmt.Errorf("nbd: read %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteLater begins nothing.
func (c *Client) WriteLater([]byte, int64, block.Later) bool { return false }

// WriteAt writes p.
func (c *Client) WriteAt(ctx context.Context, p []byte, off int64, f Flags) error {
	if err := c.checkWrite(int64(len(p)), off, f); err != nil {
		return fmt.Errorf("nbd: write %d bytes at %d: %w", len(p), off, err)
	}
	for len(p) > 0 {
		n := min(len(p), c.piece())
		h := requestHeader{cmd: cmdWrite, flags: wireFlags(f), offset: uint64(off), length: uint64(n)}
		if _, err := c.roundTrip(ctx, h, p[:n], nil); err != nil {
			return fmt.Errorf("nbd: write %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// WriteZeroes makes n bytes read zero; ErrUnsupported if the server has no such
// command.
func (c *Client) WriteZeroes(ctx context.Context, off, n int64, f Flags) error {
	flags := wireFlags(f)
	if !f.Has(block.MayUnmap) {
		flags |= cmdFlagNoHole
	}
	if f.Has(block.Fast) {
		flags |= cmdFlagFastZero
		if !c.info.CanFastZero {
			return fmt.Errorf("nbd: zero %d bytes at %d: %w", n, off, block.ErrNotFast)
		}
	}
	return c.effect(ctx, cmdWriteZeroes, flags, off, n, f, c.info.CanZero)
}

// Discard tells that n bytes are not needed; ErrUnsupported if the server has
// no such command.
func (c *Client) Discard(ctx context.Context, off, n int64, f Flags) error {
	return c.effect(ctx, cmdTrim, wireFlags(f), off, n, f, c.info.CanDiscard)
}

// Cache asks the server to have n bytes ready for reading soon.
func (c *Client) Cache(ctx context.Context, off, n int64) error {
	if err := c.check(n, off, 0); err != nil {
		return fmt.Errorf("nbd: cache %d bytes at %d: %w", n, off, err)
	}
	return c.pieces(ctx, cmdCache, 0, off, n)
}

// effect sends a command that changes n bytes without a payload.
func (c *Client) effect(ctx context.Context, cmd command, flags cmdFlags, off, n int64, f Flags, able bool) error {
	err := c.checkWrite(n, off, f)
	if err == nil && !able {
		err = block.ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("nbd: command %d for %d bytes at %d: %w", cmd, n, off, err)
	}
	return c.pieces(ctx, cmd, flags, off, n)
}

func (c *Client) pieces(ctx context.Context, cmd command, flags cmdFlags, off, n int64) error {
	for n > 0 {
		m := min(n, c.effectMax())
		h := requestHeader{cmd: cmd, flags: flags, offset: uint64(off), length: uint64(m)}
		if _, err := c.roundTrip(ctx, h, nil, nil); err != nil {
			return fmt.Errorf("nbd: command %d for %d bytes at %d: %w", cmd, m, off, err)
		}
		off, n = off+m, n-m
	}
	return nil
}

// Flush makes completed writes durable. A server without FLUSH has nothing to do.
func (c *Client) Flush(ctx context.Context) error {
	if err := c.broken(); err != nil || !c.info.CanFlush {
		return err
	}
	if _, err := c.roundTrip(ctx, requestHeader{cmd: cmdFlush}, nil, nil); err != nil {
		return fmt.Errorf("nbd: flush: %w", err)
	}
	return nil
}

// AppendExtents tells what base:allocation says; without it everything is data.
func (c *Client) AppendExtents(ctx context.Context, dst []Extent, off, n int64) ([]Extent, error) {
	if err := c.check(n, off, 0); err != nil {
		return dst, fmt.Errorf("nbd: extents of %d bytes at %d: %w", n, off, err)
	}
	if !c.allocation && n > 0 {
		return append(dst, Extent{Off: off, Len: n, State: block.Allocated | block.Data, Host: -1}), nil
	}
	room := cap(dst) // if dst is full already, there is no limit
	for start, end := len(dst), off+n; off < end; {
		h := requestHeader{cmd: cmdBlockStatus, offset: uint64(off), length: uint64(min(end-off, c.effectMax()))}
		k, err := c.roundTrip(ctx, h, nil, nil)
		if err != nil {
			return dst, fmt.Errorf("nbd: extents of %d bytes at %d: %w", h.length, off, err)
		}
		var more bool
		if dst, more = appendDescriptors(dst, start, room, k.descriptors, &off, end); !more {
			return dst, nil
		}
		if len(dst)-start > clientExtentsMax {
			return dst, errors.New("nbd: extents: too many for one call; give it a slice with a capacity")
		}
	}
	return dst, nil
}

// appendDescriptors adds extents from off on, joined with those from start on,
// and moves off. It reports false when dst has reached room.
func appendDescriptors(dst []Extent, start, room int, ds []descriptor, off *int64, end int64) ([]Extent, bool) {
	for _, d := range ds {
		n, s := min(int64(d.length), end-*off), d.state.extentState()
		switch last := len(dst) - 1; {
		case n <= 0:
			return dst, true
		case last >= start && dst[last].State == s:
			dst[last].Len += n
		case len(dst) > start && len(dst) == room:
			return dst, false
		default:
			dst = append(dst, Extent{Off: *off, Len: n, State: s, Host: -1})
		}
		*off += n
	}
	return dst, true
}

func (c *Client) check(n, off int64, f Flags) error {
	if err := c.broken(); err != nil {
		return err
	}
	if err := block.CheckRange(off, n, c.info.Size); err != nil {
		return err
	}
	if f.Has(block.NoWait) {
		return block.ErrWouldBlock // everything waits for the network
	}
	return nil
}

func (c *Client) checkWrite(n, off int64, f Flags) error {
	if err := c.check(n, off, f); err != nil {
		return err
	}
	if c.info.ReadOnly {
		return block.ErrReadOnly
	}
	if f.Has(block.FUA) && !c.info.CanFUA {
		return fmt.Errorf("FUA: %w", block.ErrUnsupported)
	}
	return nil
}

// effectMax is the longest range of a request without a payload, a multiple of
// every minimum block.
func (c *Client) effectMax() int64 {
	if c.extended {
		return math.MaxInt64 &^ (minBlockMax - 1)
	}
	return 1<<32 - minBlockMax
}

// piece is the largest payload of a request.
func (c *Client) piece() int { return c.info.MaxTransfer }

func wireFlags(f Flags) cmdFlags {
	if f.Has(block.FUA) {
		return cmdFlagFUA
	}
	return 0
}
