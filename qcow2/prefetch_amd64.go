package qcow2

// prefetch has the processor load the cache lines at a and b. They may be anywhere: it
// reads nothing and cannot fail. The language has nothing for that.
//
//go:noescape
func prefetch(a, b uintptr)
