//go:build !linux

package nbd

import (
	"net"
	"sync/atomic"
)

// openStream uses every connection as it is.
func openStream(c net.Conn, _ *atomic.Int32) stream { return plain{c} }

// hungUp: without the kernel's help, death is noticed by reading.
func hungUp(net.Conn) bool { return false }
