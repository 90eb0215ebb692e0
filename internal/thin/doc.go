// Package thin makes any block.File thin: a volume that is a little larger than
// what its writer has used, and that asks a pool for more before the writer
// gets there.
//
//	engine -> File.Grow(need) -> policy -> Extender.Extend -> pool
//	                                  \-> inner.Grow (adopt the new size)
//
// It knows two sizes and nothing else: what the pool has granted (Size) and how
// far the writer has come (the end, the largest need of a Grow that succeeded;
// engines call Grow for every reservation, also when the file is large enough).
// It does not know what the bytes mean, what a pool is made of or how it is
// reached. What to ask for, and when, is decided by [Policy], which is pure.
//
// # Invariants
//
//   - Size grows only after the pool has said so durably and the file below has
//     adopted the size. It shrinks only when its writer gives space back
//     (Shrink), never while it asks for some.
//   - At most one extension is in flight, issued by the only goroutine a File
//     has. Extensions are absolute sizes, so one whose answer was lost is simply
//     asked for again, for as long as a Grow waits or the headroom is too small:
//     the pool manager may be dead for a while.
//   - Nobody waits under a lock. A Grow that waits does so with its own context.
//   - Only a final error (see [IsFinal]) ends a wait from below; everything else
//     is retried until the context of the waiting Grow ends.
//
// # What is asked for
//
// A request carries need and want. When Grows wait, need is the smallest of
// theirs, so that what is left of a pool goes to whoever it suffices for, and
// want covers all of them and the headroom. When none waits, need is the present
// size, which every pool can grant at once. When a smaller need arrives while a
// larger one is in flight, or the last one that waited has gone, the request is
// cancelled and decided again.
//
// # Holds
//
// A Grow that has waited for Options.HoldAfter reports to the Hold of its
// context. An extension that takes less than that is the normal course of
// things: a front end which refuses the ninth held write (ENOSPC, which pauses a
// guest) must not do so because a healthy pool needed some milliseconds.
//
// # Time
//
// Latencies, rates and pauses between attempts use the monotonic clock. How long
// a Grow waits is not decided here but by its context; where that is a promise
// to a guest, whoever makes the context measures with CLOCK_BOOTTIME, which
// counts the time a host was suspended. Here, suspended time would only be an
// extension that took too long, so the clock that stands still is the right one.
//
// # Locks
//
// One: File.mu, which guards the fields below it. It is never held across a call
// of the inner file, the Extender, a Hold or the logger.
package thin
