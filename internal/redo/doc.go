// Package redo keeps a ring of small records in shared memory, so that what a
// process has completed survives its death.
//
// A guest does not lose its memory when the process that serves its disk dies: it
// reconnects and goes on, and never writes again what was completed. What the
// process wrote is in the host's page cache then; what it only had in its own
// memory is lost. The ring is for the latter: a record is in the page cache as
// soon as it is stored, without a system call.
//
// It says nothing about a power cut. A ring belongs to the boot in which it was
// made; in another one it is not opened, but removed.
//
// # File
//
// A ring is the file DIR/ID (16 hexadecimal digits), mapped and shared; DIR should
// be on a tmpfs. All words are of the machine's own byte order:
//
//	0      magic, which has the version in its last byte
//	8      boot id, 16 bytes
//	24     number of slots
//	32     tail: records up to this sequence number are no longer needed
//	40     not 0: what the records say must not be believed (Distrust)
//	64     slots of 32 bytes: sequence number, A, B, C
//
// The record with sequence number q is in slot q modulo the number of slots. Its
// sequence number is stored last, so a record that the death of the process cut
// short is not there.
//
// # Marks
//
// Beside the rings are marks: DIR/distrust-HASH says that storage of that name is not
// to be trusted before the host's cache of it is dropped, for images that have no
// ring. It holds the boot id; a mark of another boot is none.
//
// # Concurrency
//
// Append may be called by many goroutines; each reserves room first, so it never
// waits. Who calls it sees to it that records which depend on their order are
// appended in that order.
package redo
