package qcow2_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"tidemark/internal/faultfile"
	"tidemark/qcow2"
)

// TestConcurrentCopiesOfOneCluster (cloud-hypervisor issue 8621): 8 clients write 8
// parts of a cluster whose content is in the backing file, in a snapshot, or compressed.
// The first one's copy is held at the file until the others have come as far as they
// can. All parts are there, and around them what was there before: nobody has copied
// the cluster past another's bytes.
func TestConcurrentCopiesOfOneCluster(t *testing.T) {
	const clients, part = 8, 600 // bytes; across sectors and sub-clusters
	for _, s := range []subject{
		{name: "copied, backing", size: 512 << 10, options: "cluster_size=16k", backing: 512 << 10},
		{name: "copied, backing, extended L2", size: 512 << 10, options: "cluster_size=16k,extended_l2=on", backing: 512 << 10},
		{name: "copied, snapshot", size: 512 << 10, options: "cluster_size=16k", script: []string{"write -P 1 0 300k"}},
		{name: "copied, compressed", size: 512 << 10, options: "cluster_size=16k", convert: []string{"-c"}},
	} {
		for _, held := range []faultfile.Kind{faultfile.Read, faultfile.Write} {
			if held == faultfile.Read && s.backing > 0 {
				continue // it is read from another file
			}
			t.Run(fmt.Sprintf("%s, %v held", s.name, held), func(t *testing.T) {
				m := s.make(t)
				if s.script != nil {
					m.snapshot(t, "last")
				}
				dir := t.TempDir()
				synctest.Test(t, func(t *testing.T) {
					f := faultfile.New(m.disk, faultfile.Fault{})
					im := m.open(t, f, qcow2.Options{CommitInterval: -1, RedoDir: dir})
					stops := stopsOf(f)
					for off := int64(0); off < 128<<10; off += 16 << 10 {
						m.put(t, im, []byte{1}, off+15<<10) // makes the ring, and loads the table
						if off == 0 {
							continue
						}
						cluster := off + 128<<10
						first := stops.at(func(op faultfile.Op) bool { return op.Kind == held && (held == faultfile.Read || op.Len >= 512) })
						var wg sync.WaitGroup
						for c := range int64(clients) {
							b := bytes.Repeat([]byte{byte(0x80 + c)}, part)
							at := cluster + 100 + c*1500
							copy(m.content[at:], b)
							wg.Go(func() {
								if err := im.WriteAt(t.Context(), b, at, 0); err != nil {
									t.Error(err)
								}
							})
						}
						synctest.Wait()
						<-first.reached
						first.release()
						wg.Wait()
						requireRead(t, im, m.content[cluster:cluster+16<<10], cluster)
					}
					require.NoError(t, im.Close())
				})
				m.judge(t, m.disk)
			})
		}
	}
}
