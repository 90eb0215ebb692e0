// Package block defines the two seams of Tidemark.
//
//	guest -> front end (nbd, fusefs) -> Device -> image engine (qcow2) -> File -> storage
//
// Every byte below an image goes through a [File]; every disk above it is a
// [Device]. A wrapper (thin volume, recorder, fault injector, simulated disk) is
// one more implementation of one of the two, so it can be put anywhere.
//
// The package imports nothing of the project's and holds no policy. What an
// implementation is able to do is data in [FileInfo] and [DeviceInfo], never an
// optional interface: a wrapper cannot lose a capability by forgetting a method.
// Package blocktest holds the conformance suite of each seam.
//
// # Durability
//
// The fault model of everything above a File: after a power cut any subset of
// the 512-byte sectors that were written since the last successful [File.Sync]
// has landed, in any order; a sector is old or new, never torn. A failed Sync
// means that the data may be gone, although reads may still return it: no
// success may be reported for it afterwards, so the error is final.
//
// # Waiting for space
//
// The only thing that may wait without a bound is space ([File.Grow]). The
// context of a request bounds that wait and nothing else: I/O that was issued is
// never abandoned. A deadline that passes while a request waits for space
// becomes [ErrNoSpace], a cancellation stays a cancellation. A front end limits
// how many of its requests may wait at a time with [WithHold].
package block
