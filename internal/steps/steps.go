// Package steps tells the crash lab where an engine is in its write order.
//
// An engine's package comment lists its numbered steps (R1 .., W1 .., C1 ..), one
// a line. Where step W3 has been done the code says
//
//	steps.At("W3")
//
// right behind it, before anything else happens. In a normal build At is empty
// and inlined: it costs nothing. With the build tag crashlab it tells the
// registered observer, which marks the moment in the recording of what happens at
// the File, so that the lab can print how many crash points fell before and
// behind every step.
//
// The package knows no engine and no list: a step is a name.
package steps
