// Command tidemark serves thin virtual disks: QCOW2 images over NBD and as files,
// which ask their storage pool for more space before they need it.
//
// This package is the only one that knows all others. It wires them: an image
// engine over a file or a thin volume, behind a front end. Nothing here decides
// anything about bytes.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends at once
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line. It is main without the process: ctx ends as on
// a signal.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	return exitCode(root.ExecuteContext(ctx), stderr)
}
