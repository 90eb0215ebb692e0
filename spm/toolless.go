package spm

import (
	"context"
	"fmt"
	"io/fs"
)

// noJobs and noServers are those of a host that was given none: nothing is served, and
// what needs a look into an image is refused.
type (
	noJobs    struct{}
	noServers struct{}
)

func noTool(what string) error {
	return errorf(CodeUnsupported, "%s: this host has no tool for what is in images", what)
}

func (noJobs) Measure(context.Context, []Place, string) (Measure, error) {
	return Measure{}, noTool("measure")
}

func (noJobs) Use(context.Context, []Place) (ImageUse, error) {
	return ImageUse{}, noTool("read an image")
}

func (noJobs) Check(context.Context, []Place) error { return noTool("check") }

func (noJobs) Copy(context.Context, []Place, Place, *BackingRef, Progress) error {
	return noTool("copy")
}

func (noJobs) Commit(context.Context, []Place, int, Progress) error { return noTool("commit") }
func (noJobs) Rebase(context.Context, Place, *BackingRef) error     { return noTool("rebase") }
func (noJobs) Resize(context.Context, []Place, int64) error         { return noTool("resize") }

// Settle has nothing to do: nothing is served, so that nobody has died over it.
func (noJobs) Settle(context.Context, []Place, Progress) error { return nil }

func (noServers) Start(context.Context, Serve) (Server, error) { return Server{}, noTool("serve") }

func (noServers) Find(_ context.Context, image string) (Server, error) {
	return Server{}, fmt.Errorf("image %s is not served: %w", image, fs.ErrNotExist)
}

func (noServers) Adopt(context.Context, string) error               { return noTool("adopt") }
func (noServers) Stop(context.Context, string) error                { return nil }
func (noServers) Snapshot(context.Context, string, string) error    { return noTool("snapshot") }
func (noServers) MergeStart(context.Context, string, string) error  { return noTool("merge") }
func (noServers) MergePivot(context.Context, string, string) error  { return noTool("merge") }
func (noServers) MergeCancel(context.Context, string, string) error { return nil }
func (noServers) Resize(context.Context, string, int64) error       { return noTool("resize") }
