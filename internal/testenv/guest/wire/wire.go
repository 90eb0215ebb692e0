// Package wire is what a test and the agent in its guest both know: how they
// talk, and what the files that the agent writes have in them.
//
// They talk over a serial port, one JSON value a line. The agent says one Reply
// that is Done when it is up; from then on each Request is answered by any number
// of replies that tell how far it is, and one that is Done. There is one request
// at a time.
package wire

// A Request asks the agent for one thing.
type Request struct {
	Op   string
	Args []string
}

// What can be asked for, and with which arguments.
const (
	// Run runs a program to its end: PROGRAM ARGS... The output is its standard
	// output and standard error.
	Run = "run"
	// Start starts a program that goes on beside the next requests: PROGRAM
	// ARGS... Its output goes to the console. The output is its process number.
	Start = "start"
	// Stop asks such a program to end and waits for it: PID SIGNAL.
	Stop = "stop"
	// Await waits until a file is there: PATH.
	Await = "await"
	// Fill writes a [Tree] below a directory: DIR TREE, the tree as JSON. It tells
	// the number of files that are written.
	Fill = "fill"
	// Remove removes a file or a directory with all below it: PATH. What was freed
	// is in the file system's journal when it returns.
	Remove = "remove"
	// Network brings up the loopback device, and eth0 with an address: ADDRESS.
	Network = "network"
	// Connect makes an NBD device of the kernel a client: DEVICE NETWORK ADDRESS
	// EXPORT CONNECTIONS.
	Connect = "connect"
	// Disconnect ends that: DEVICE.
	Disconnect = "disconnect"
	// PowerOff ends the guest. It is not answered.
	PowerOff = "poweroff"
)

// A Reply tells what became of a request.
type Reply struct {
	Progress int    `json:",omitempty"`
	Done     bool   `json:",omitempty"`
	Output   string `json:",omitempty"`
	Error    string `json:",omitempty"` // of a request that failed
}
