//go:build linux

package main_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"tidemark/nbd"
)

var blankID = uuid.Nil.String()

// crowdSize is the virtual size of the images, and crowdBlocks how many blocks of it
// are written: two to a cluster, and a large one for which a volume is extended.
const (
	crowdSize   = 1 * gib
	crowdBlocks = 17
)

func crowdBlock(n int) (off, size int64) {
	if n == crowdBlocks-1 {
		return crowdSize - 100*mib, 96 * mib
	}
	return int64(n/2)*37*mib + int64(n%2)*32<<10, 32 << 10
}

// A crowd is of clients of the domains of one pool.
type crowd struct {
	t       testing.TB
	h       *vdsmHost
	places  []place
	domains []string // in the order of places
	images  int      // that a client has at most
	layers  int      // that an image has at most

	left      atomic.Int64   // volumes to be made
	mu        sync.Mutex     // guards what follows
	done      map[string]int // how often something was done
	templates []*crowdTemplate
}

// newCrowd makes the pool, with a domain in each place.
func newCrowd(h *vdsmHost, images, layers int, places ...place) *crowd {
	return &crowd{t: h.t, h: h, places: places, domains: h.newDomains(places...), images: images, layers: layers, done: map[string]int{}}
}

func (c *crowd) count(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done[what]++
}

// take reports whether one more volume is to be made.
func (c *crowd) take() bool { return c.left.Add(-1) >= 0 }

// A crowdImage is an image by the model: what each volume has written, from the base
// up.
type crowdImage struct {
	id     string
	domain int
	base   *crowdTemplate // nil: it is based on none
	layers []crowdLayer
	conn   *nbd.Client // nil: it is not served
}

type crowdLayer struct {
	id     string
	blocks [crowdBlocks]int // 0: not written; otherwise what, and 256 is zeroes
}

func (i *crowdImage) leaf() *crowdLayer { return &i.layers[len(i.layers)-1] }

// shows is what a layer shows.
func (i *crowdImage) shows(layer int) (out [crowdBlocks]byte) {
	if i.base != nil {
		out = i.base.shows
	}
	for _, l := range i.layers[:layer+1] {
		for n, s := range l.blocks {
			if s != 0 {
				out[n] = byte(s)
			}
		}
	}
	return out
}
