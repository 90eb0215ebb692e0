// Package blocktest holds the conformance suites of the two seams: [TestFile]
// and [TestDevice]. Whatever implements a seam runs its suite, wrappers too.
//
// A suite tests the sentences of package block's documentation: ranges that do
// not overflow, io.EOF, zeroes, discards, growing and shrinking, errors after
// Close, concurrent use (run it with -race), and at last a long random sequence
// of operations against a plain array of bytes. That sequence prints its seed
// and takes one from TIDEMARK_SEED.
//
// What a suite cannot see is durability; that is the subject of simdisk.
package blocktest
