package qcow2_test

import (
	"bytes"
	"context"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// A failingDevice fails the n-th read of a backing file, counted from 1.
type failingDevice struct {
	block.Device
	at, reads atomic.Int64
}

func (d *failingDevice) ReadAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if d.reads.Add(1) == d.at.Load() {
		clear(p) // what a careless caller would go on with
		return syscall.EIO
	}
	return d.Device.ReadAt(ctx, p, off, f)
}

// TestCopyIgnoresAnError (CVE-2022-0485, nbdcopy): what could not be read is copied as
// zeroes, and nobody is told. Here every read that a copy needs fails in turn, of the
// backing file and of the image: the request fails, and the disk reads what it did.
func TestCopyIgnoresAnError(t *testing.T) {
	for _, s := range []subject{
		{name: "copy fails, backing", size: 256 << 10, options: "cluster_size=16k", backing: 256 << 10},
		{name: "copy fails, backing, extended L2", size: 256 << 10, options: "cluster_size=16k,extended_l2=on", backing: 256 << 10},
		{name: "copy fails, snapshot", size: 256 << 10, options: "cluster_size=16k", script: []string{"write -P 1 0 256k"}},
		{name: "copy fails, compressed", size: 256 << 10, options: "cluster_size=16k", convert: []string{"-c"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			m := s.make(t)
			if s.script != nil {
				m.snapshot(t, "last")
			}
			f := faultfile.New(m.disk, faultfile.Fault{})
			o := qcow2.Options{CommitInterval: -1}
			var below failingDevice
			if m.below != nil {
				d := blocktest.NewMemDevice(int64(len(m.below)))
				require.NoError(t, d.WriteAt(t.Context(), m.below, 0, 0))
				below.Device, o.Backing = d, &below
			}
			im, err := qcow2.Open(t.Context(), f, o)
			require.NoError(t, err)
			m.put(t, im, []byte{1}, 0) // the tables are in memory
			failed := 0
			for c := int64(1); c < 15; c++ {
				off, n := c<<14+100, int64(3000)
				for i := 1; ; i++ {
					f.SetFault(faultfile.Fault{At: i, Kinds: faultfile.Read, Err: syscall.EIO})
					below.reads.Store(0)
					below.at.Store(int64(i))
					p := bytes.Repeat([]byte{byte(c), 0x99}, int(n/2))
					err := im.WriteAt(t.Context(), p, off, 0)
					met := f.Injected() > 0 || below.reads.Load() >= int64(i)
					f.SetFault(faultfile.Fault{})
					below.at.Store(0)
					if !met {
						require.NoError(t, err)
						copy(m.content[off:], p)
						break
					}
					require.ErrorIs(t, err, syscall.EIO, "cluster %d, read %d", c, i)
					failed++
					requireRead(t, im, m.content[c<<14:(c+1)<<14], c<<14)
				}
				requireRead(t, im, m.content[c<<14:(c+1)<<14], c<<14)
			}
			require.GreaterOrEqual(t, failed, 14)
			require.NoError(t, im.Close())
			m.judge(t, m.disk)
		})
	}
}
