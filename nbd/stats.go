package nbd

import "sync/atomic"

// Stats are the numbers of a Server. All but Connections and HeldNow count from
// its start.
type Stats struct {
	Connections      int    `json:"connections"` // now, with those in the handshake
	ConnectionsTotal uint64 `json:"connectionsTotal"`
	Refused          uint64 `json:"refused"` // connections above the limit

	Requests RequestStats `json:"requests"`
	BytesIn  uint64       `json:"bytesIn"`  // payloads received
	BytesOut uint64       `json:"bytesOut"` // payloads sent
	Errors   uint64       `json:"errors"`   // requests answered with an error
	Panics   uint64       `json:"panics"`

	HeldNow   int    `json:"heldNow"` // requests that wait for space
	HeldTotal uint64 `json:"heldTotal"`
}

// RequestStats counts the requests of each command.
type RequestStats struct {
	Read        uint64 `json:"read"`
	Write       uint64 `json:"write"`
	Flush       uint64 `json:"flush"`
	Trim        uint64 `json:"trim"`
	Cache       uint64 `json:"cache"`
	WriteZeroes uint64 `json:"writeZeroes"`
	BlockStatus uint64 `json:"blockStatus"`
	Unknown     uint64 `json:"unknown"`
}

// counters are what Stats is made of.
type counters struct {
	connections, refused atomic.Uint64
	requests             [len(commandRules) + 1]atomic.Uint64 // the last one: unknown
	bytesIn, bytesOut    atomic.Uint64
	failures, panics     atomic.Uint64
	held                 atomic.Int64
	heldTotal            atomic.Uint64
}

func (c *counters) requestStats() RequestStats {
	n := func(cmd command) uint64 { return c.requests[cmd].Load() }
	return RequestStats{
		Read: n(cmdRead), Write: n(cmdWrite), Flush: n(cmdFlush), Trim: n(cmdTrim), Cache: n(cmdCache),
		WriteZeroes: n(cmdWriteZeroes), BlockStatus: n(cmdBlockStatus), Unknown: n(cmdBlockStatus + 1),
	}
}
