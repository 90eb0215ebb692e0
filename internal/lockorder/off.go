//go:build !lockcheck

package lockorder

import "sync"

// Enabled says whether the order is checked: the build tag lockcheck.
const Enabled = false

// A Mutex is a sync.Mutex with a place in an order.
type Mutex struct{ sync.Mutex }

// SetRank gives the mutex its place, before it is used.
func (m *Mutex) SetRank(Rank) {}

// Waits says that the calling goroutine is about to wait for something that others
// may need these locks for.
func Waits(string) {}
