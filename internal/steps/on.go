//go:build crashlab

package steps

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Enabled says whether At tells anybody: the build tag crashlab.
const Enabled = true

type observer struct{ see func(step string) }

var (
	mu   sync.Mutex // held while the list changes
	list atomic.Pointer[[]*observer]
)

// At says that a step has been done. It tells every observer, on the goroutine
// of the caller and under its locks.
func At(step string) {
	if l := list.Load(); l != nil {
		for _, o := range *l {
			o.see(step)
		}
	}
}

// Observe registers see until stop is called. Every At of the process tells it:
// who observes several engines at once cannot tell them apart.
func Observe(see func(step string)) (stop func()) {
	o := &observer{see}
	change(func(l []*observer) []*observer { return append(l, o) })
	return func() {
		change(func(l []*observer) []*observer {
			return slices.DeleteFunc(l, func(have *observer) bool { return have == o })
		})
	}
}

func change(f func([]*observer) []*observer) {
	mu.Lock()
	defer mu.Unlock()
	var l []*observer
	if old := list.Load(); old != nil {
		l = slices.Clone(*old)
	}
	l = f(l)
	list.Store(&l)
}
