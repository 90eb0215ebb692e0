// Package format is the bytes of the QCOW2 format: values to bytes and back. It
// does no I/O, starts no goroutine and imports the standard library only; it
// neither knows nor decides in which order anything is written.
//
// The authority is docs/interop/qcow2.txt in QEMU's tree, called "the
// specification" here; comments name its sections. All integers are big-endian.
//
//	offset 0          header (version 2: 72 bytes, version 3: header_length bytes)
//	                  header extensions, up to the backing file name or the end
//	                  of the first cluster
//	L1 table          8 bytes an entry -> L2 tables, one cluster each
//	L2 table          8 bytes an entry -> data clusters
//	refcount table    8 bytes an entry -> refcount blocks, one cluster each
//	refcount block    1 to 64 bits an entry, one for each host cluster
//
// Bytes come from outside and may be hostile: decoding checks the length before
// it reads, limits before it allocates, and tells three failures apart:
// [ErrNotQCOW2], [UnsupportedError] (a feature, by its name) and [CorruptError]
// (what, where, expected, found).
package format
