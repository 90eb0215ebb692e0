package qcow2_test

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestSlowRequestAgainstReuse (design review 2.8): a request has looked up its host
// cluster and its I/O is slow. Meanwhile the guest overwrites, or discards, what it
// works on; two flushes and many allocations follow. The cluster must not be another
// guest cluster's before the request has ended: a read would return that one's bytes,
// a write would overwrite them.
func TestSlowRequestAgainstReuse(t *testing.T) {
	const cs = 4096
	plain := subject{name: "plain, 4k", size: 1 << 20, options: "cluster_size=4k", script: []string{"write -P 1 0 300k"}}
	compressed := subject{name: "compressed, 4k", size: 1 << 20, options: "cluster_size=4k", convert: []string{"-c"}}
	overwrite := func(im *qcow2.Image, b []byte) error { return im.WriteAt(t.Context(), b, 0, 0) }
	discard := func(im *qcow2.Image, b []byte) error {
		clear(b)
		return im.Discard(t.Context(), 0, cs, 0)
	}
	read := func(im *qcow2.Image, b []byte) error { return im.ReadAt(t.Context(), b, 0, 0) }
	write := func(im *qcow2.Image, b []byte) error {
		copy(b, bytes.Repeat([]byte{0x77}, cs))
		return im.WriteAt(t.Context(), b, 0, 0)
	}
	for _, c := range []struct {
		name     string
		subject  subject
		slow     func(im *qcow2.Image, b []byte) error
		kind     faultfile.Kind
		meantime func(im *qcow2.Image, b []byte) error
	}{
		{"read, discard", plain, read, faultfile.Read, discard},
		{"write, discard", plain, write, faultfile.Write, discard},
		{"read of compressed, overwrite", compressed, read, faultfile.Read, overwrite},
		{"read of compressed, discard", compressed, read, faultfile.Read, discard},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, dir := c.subject.make(t), t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := faultfile.New(m.disk, faultfile.Fault{})
				im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: dir, ReserveBytes: 4 * cs})
				ctx := context.Background()
				m.put(t, im, bytes.Repeat([]byte{3}, cs), 900<<10) // makes the ring
				require.NoError(t, im.ReadAt(ctx, make([]byte, sector), cs, 0))
				old := bytes.Clone(m.content[:cs])

				slow := stopsOf(f).at(kindOf(c.kind))
				got, ended := make([]byte, cs), make(chan error, 1)
				go func() { ended <- c.slow(im, got) }()
				synctest.Wait()
				<-slow.reached
				now := bytes.Repeat([]byte{9}, cs)
				require.NoError(t, c.meantime(im, now))
				rest := make(chan error, 1)
				go func() { // it may have to wait for the slow one
					rest <- func() error {
						fill := func(from, n int64) error {
							for i := range n {
								p := bytes.Repeat([]byte{byte(100 + i)}, cs)
								copy(m.content[from+i*cs:], p)
								if err := im.WriteAt(ctx, p, from+i*cs, 0); err != nil {
									return err
								}
							}
							return nil
						}
						if c.subject.convert != nil { // the others in its host cluster
							if err := fill(cs, 15); err != nil {
								return err
							}
						}
						for range 2 {
							if err := im.Flush(ctx); err != nil {
								return err
							}
						}
						return fill(400<<10, 40)
					}()
				}()
				synctest.Wait()
				slow.release()
				require.NoError(t, <-ended)
				require.NoError(t, <-rest)
				if c.kind == faultfile.Read {
					require.True(t, bytes.Equal(got, old) || bytes.Equal(got, now), "read %x...", got[:8])
				}
				at := make([]byte, m.size)
				require.NoError(t, im.ReadAt(ctx, at, 0, 0))
				require.True(t, bytes.Equal(at[:cs], now) || c.kind == faultfile.Write && bytes.Equal(at[:cs], got), "holds %x...", at[:8])
				copy(m.content, at[:cs])
				requireSame(t, m.content, at, "the disk")
				require.NoError(t, im.Close())
			})
			m.judge(t, m.disk)
		})
	}
}
