// Package nbd serves any [block.Device] over the Network Block Device protocol,
// and contains the client that speaks to such a server.
//
// [Server] is given listeners and exports; [Dial] gives back a Device. The
// package knows the protocol (doc/proto.md of the NBD project, called "the
// specification" below) and block.Device; it does not know what an image, a
// volume or a pool is, and it opens no socket on its own.
//
// # One request, from the socket to the Device
//
//	reader ── header ── decide ── budget ── payload ── goroutine ── Device ── reply
//	 (one per           (pure)    (waits)              (bounded)             (one lock)
//	connection)
//
// A request is validated once, by the pure function decide, which yields an
// action or an [Errno]; it is executed; its error is translated once (errno).
// wire.go is the only file that knows byte offsets.
//
// Each request of the transmission phase runs in a goroutine of its own. The
// reader is the only one that starts them, and it does so after the request got
// a place in the connection's budget (requests and bytes). The place is given
// back when the reply has been written, so a client that does not read its
// replies stops its own reader and nobody else.
//
// # Invariants
//
//   - Nothing is allocated by a length that was not compared with a limit
//     before (limits.go has all limits, each with its reason).
//   - Whatever bytes arrive, the process goes on; a panic in a request or a
//     handshake ends its connection only.
//   - Every request that was read completely is answered once, or its
//     connection ends.
//   - No request outlives its connection unnoticed. When a connection is dead
//     its context is cancelled, which ends requests that wait; a new GO or
//     EXPORT_NAME of the same export is answered only after all requests of its
//     dead connections have ended. A reconnecting client thus never has an old
//     write land on a new one. Death is noticed when the reader sees the end of
//     the stream, and at GO also by asking the kernel (hangup_linux.go), because
//     a reader may still be busy with what came before the end.
//   - A write that waits for space is bounded in time by Options.Patience,
//     counted from when the request was received, and in number by Options.MaxHeld
//     per connection. While it waits it is in no budget, so reads, overwrites and
//     flushes pass it. One above that number stays in the budget and is ended
//     after overGrace (rule 20 says at once; but who waits may wait for a pool
//     that is only slow, which is no lack of space). A flush carries no deadline.
//
// The memory of a connection is at most inFlightBytesMax plus MaxHeld payloads;
// that of all of them Options.MaxInFlightBytes for requests in progress, as much
// for held ones, and ownBytes for each connection. What a connection has within
// ownBytes never waits for another connection.
//
// # Names
//
// The empty name is the default export: the one that was added with the empty
// name, otherwise the first that was added of those that are there.
//
// # Stopping
//
// [Server.Shutdown] accepts no more connections, answers options with
// ERR_SHUTDOWN and new requests with ESHUTDOWN, cancels held writes (ESHUTDOWN),
// lets requests in progress finish, and then closes the connections. It flushes
// nothing: the Device belongs to its owner. [Server.RemoveExport] does the same
// for one export.
//
// # Lock order
//
// Server.mu, then export.mu, then session.mu, then pool.mu, then budget.mu.
// session.wmu and the client's locks are leaves of their own: nothing is acquired
// under them.
// Device methods are called with no lock held; Hold.Begin and Hold.End, which
// the Device calls, take the last three for a moment and never wait.
//
// # What is left for later
//
// Requests that are able to finish in memory will run inline on the reader with
// block.NoWait; the place for it is session.dispatch. Sparse reads (OFFSET_HOLE)
// are understood by the client but not sent yet; the place is session.read.
package nbd
