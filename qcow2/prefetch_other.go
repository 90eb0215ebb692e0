//go:build !amd64

package qcow2

// prefetch is a hint that other processors are not given.
func prefetch(_, _ uintptr) {}
