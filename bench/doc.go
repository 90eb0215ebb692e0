// Package bench measures the hot paths: the engine by itself here, and over NBD
// against its peers.
//
// Absolute times are those of a machine and a moment; what is compared is compared
// in one run.
package bench
