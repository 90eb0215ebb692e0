//go:build !linux

// Package vsock listens on a socket between a virtual machine and its host, which
// only Linux has here.
package vsock

import (
	"errors"
	"fmt"
	"net"
)

// Listen is not supported.
func Listen(port uint32) (net.Listener, error) {
	return nil, fmt.Errorf("vsock port %d: %w on this system", port, errors.ErrUnsupported)
}
