// Package verbs is the edge of the pool manager: one table of verbs, spoken in two
// protocols on one socket, and the events. It knows [spm.Storage] and nothing of
// what is behind it.
//
// # The table
//
// A [Verb] is a name, its arguments in order, the members of its reply, the errors
// that it can answer, and a function that turns decoded arguments into a call of
// the storage. Names, order of arguments, members and numbers are those of VDSM's
// storage API where VDSM has the verb, so that what was written for VDSM works
// here. The reference (docs/api.md) is made from the table, and a test fails when it
// is stale.
//
// # The protocols
//
//	POST /RPC2, or Content-Type: text/xml    XML-RPC: the verbs by their names
//	POST, Content-Type: application/json     JSON-RPC 2.0: the verbs by their names;
//	                                         VDSM's Class.method where our own method
//	                                         has not that name; our own methods
//	GET /events                              server-sent events
//
// Arguments are given by position, and in JSON-RPC also by name. A reply is an
// object with the member status, {code: 0, message: "OK"}, beside those of the
// verb. A verb that fails answers in XML-RPC with a status whose code is not 0, and
// in JSON-RPC with an error object of that code; a fault, or an error with a negative
// code, means that the request was not understood. The code is VDSM's where VDSM
// has the error, else ours (codes.go); in JSON-RPC ours is in data.code as well.
//
// Sizes in replies are decimal strings of bytes in both protocols, because an
// integer of XML-RPC has 32 bits.
//
// # Validation
//
// Everything that needs no look at the storage is checked here, once: number, names
// and types of the arguments, words and VDSM's numbers for them. The storage checks
// what needs its state.
package verbs
