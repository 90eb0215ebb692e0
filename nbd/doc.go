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
//	stream -> inbox -> decide -> inline -------------------> replies -> outbox -> stream
//	                   (pure)    (Device, NoWait)            (one write for a batch)
//	                               | ErrWouldBlock, or large
//	                               v
//	                             budget -> begin --------> Device ----> outbox
//	                             (waits)   (WriteLater)
//	                                        | not begun, or to be done again
//	                                        v
//	                                       goroutine ----> Device ----> outbox
//	                                       (bounded)
//
// A request is validated once, by the pure function decide, which yields an
// action or an [Errno]; it is executed; its error is translated once (errno).
// wire.go is the only file that knows byte offsets.
//
// The reader, one goroutine for each connection, takes in what has arrived (a
// batch) and executes it itself, straight from the receive buffer, as long as
// the Device is able to finish with block.NoWait; data that is read goes straight
// to its place in the replies. When the batch is over, its replies leave in one
// write. Measured, every hand-off to another goroutine costs more than the 4 KiB
// that are written to the page cache.
//
// What the Device answers with block.ErrWouldBlock, what has no NoWait (flush,
// extents, prefetching) and what is larger than inlineBytesMax runs in a goroutine
// of its own, the off-load. Only the reader starts them, after the request got a
// place in the connection's budget (requests and bytes); only then is a payload
// copied, or received into a buffer of its own. The place is given back when the
// reply has been written: who has executed a request leaves it, with its reply, in
// the outbox, and whoever is writing there takes all that has come in one write.
//
// A write that would only have to wait for the storage is begun by the reader
// (block.Device.WriteLater, later.go): no goroutine waits for it, and whoever notices its
// end leaves the reply in the outbox. It is in the budget, and in progress for a drain and
// for the connection, until then. It never waits for space: what has not worked, for
// whatever reason, is done again by a goroutine, which may be held, and has the error. A
// write that is alone is left to a goroutine at once: there is nothing to do meanwhile, and
// who waits in the system call is told sooner. After every begunTogether of them the
// reader yields, so that the storage has these while it takes in the rest of the batch.
//
// # Who may wait
//
// The reader waits for the client to send (inbox) and for its budget, and before
// both it lets go of the replies that it has. It never waits for the client to
// read: a client that sends before it reads would wait for it in turn. What the
// socket does not take at once is left to a goroutine that may wait; while the
// replies of a batch lie there the reader executes nothing inline. Everything goes
// to the off-load, which waits for its replies to leave, so that a client that
// does not read stops its own reader at its budget and nobody else, and is thrown
// out after WriteTimeout; or sooner, when one that reads waits for what all share
// (crowd.go).
//
// # Streams
//
// A socket of the kernel is taken over for transmission (stream_linux.go): its
// descriptor becomes a blocking one that the runtime's poller does not know,
// because waiting there costs a failed read and two wake-ups for every request
// of a client that sends one at a time. It keeps a thread, so blockingMax
// connections have it and further ones stay with the poller; a client that does not
// read gives its place to others (socket.stalled). What is no bare
// socket (TLS, pipes, wrappers that do not say what they wrap) is used as it is.
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
//     its context is cancelled, which ends requests that wait, and what has not
//     reached the Device never does; a new GO or EXPORT_NAME of the same export is
//     answered only after all requests of its dead connections have ended. A
//     reconnecting client thus never has an old write land on a new one. Death is
//     noticed when the reader sees the end of the stream, and at GO also by asking
//     the kernel (hungUp), because a reader may still be busy with what came
//     before the end.
//   - A write that waits for space is bounded in time by Options.Patience,
//     counted from when the request was received, and in number by Options.MaxHeld
//     per connection. While it waits it is in no budget, so reads, overwrites and
//     flushes pass it. One above that number stays in the budget and is ended
//     after overGrace (rule 20 says at once; but who waits may wait for a pool
//     that is only slow, which is no lack of space). A flush carries no deadline.
//   - A request that ran inline allocated nothing (alloc_test.go).
//
// The memory of an idle connection is inboxBytes. That of a busy one is at most
// inFlightBytesMax plus MaxHeld payloads plus four buffers of batchBytes (what is
// received, what is answered, what waits to be sent, what is being sent); that of
// all of them Options.MaxInFlightBytes for requests in progress, as much for held
// ones, and for each connection ownBytes and the four buffers. What a connection
// has within ownBytes never waits for another connection.
//
// # TLS
//
// With Options.TLS every connection has to begin with STARTTLS (the
// specification's FORCEDTLS). Until then every option but ABORT is refused, no
// export is looked up and no Device touched; afterwards the handshake begins anew,
// with nothing of what was said or received before (tls.go). Its time limit
// includes TLS. Connections without TLS do not notice any of this.
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
// for one export. What a batch has begun with counts as in progress.
//
// # Lock order
//
// Server.mu, then export.mu, then session.mu, then pool.mu, then budget.mu.
// outbox.mu, the mutex of a stream and the client's locks are leaves of their own:
// nothing is acquired under them. The right to write to a stream (outbox.busy) is
// passed on, not locked: whoever has it holds no lock while it writes.
// Device methods are called with no lock held; Hold.Begin and Hold.End, which
// the Device calls, take the last three for a moment and never wait.
//
// # What is left for later
//
// A read that the off-load finds to be all zero is answered with a hole; one that is
// so in parts is answered with data, and what runs inline always: the places are
// session.read and session.inlineRead. A flush that has nothing to do
// could be answered inline if Device.Flush took block.NoWait; the place is
// session.inline.
package nbd
