package nbd

import (
	"fmt"
	"testing"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
)

// A client of a real server is a Device like any other.
func TestClientConformance(t *testing.T) {
	for _, o := range []ClientOptions{{}, {Extended: true}, {NoStructured: true, UseExportName: true, MaxInFlight: 1}} {
		t.Run(fmt.Sprintf("%+v", o), func(t *testing.T) {
			t.Parallel()
			blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
				return serve(t, Options{}, Export{Device: blocktest.NewMemDevice(size)}).dial(t, o)
			})
		})
	}
}
