package spm

import (
	"context"
	"errors"
)

// A Place is a volume as those open it who read what is in it.
type Place struct {
	VolumeUUID string   `json:"volume_uuid"`
	Path       string   `json:"path,omitempty"`    // of a file
	Beneath    string   `json:"beneath,omitempty"` // of a file: see [Volume]
	Mapping    *Mapping `json:"mapping,omitempty"` // of a logical volume
	Format     string   `json:"format"`            // FormatQCOW2 or FormatRaw
	Granted    int64    `json:"granted"`           // bytes that it has
	Size       int64    `json:"size,omitempty"`    // virtual, of a raw one; 0: what it was granted
}

// A Progress is told how much of a job is done, in bytes of the virtual disk.
type Progress func(done, total int64)

// ImageJobs is the tool for what is in volumes. The manager itself reads no image:
// a job runs in a child of its own. A chain is a volume with everything below it,
// from the base to the top. Every job may be repeated after a crash.
type ImageJobs interface {
	// Measure says what a copy of the chain would take in format. Of its upper part
	// alone it says what a copy would take of that.
	Measure(ctx context.Context, chain []Place, format string) (Measure, error)
	// Use says what an image is: its virtual size, and the end of its data, also if it is
	// corrupt, as far as it can be opened.
	Use(ctx context.Context, chain []Place) (ImageUse, error)
	// Check fails if the top of the chain is corrupt, or must not be written to.
	Check(ctx context.Context, chain []Place) error
	// Copy fills to, a volume whose content does not matter, with what the chain
	// shows; if backing is not nil, with what its top has above the rest of it.
	Copy(ctx context.Context, chain []Place, to Place, backing *BackingRef, p Progress) error
	// Commit writes what the volumes above chain[base] have into that one, which
	// becomes as large as the top.
	Commit(ctx context.Context, chain []Place, base int, p Progress) error
	// Rebase lets an image say that it is based on something else with the same
	// content; nil: on nothing. Only its header is changed.
	Rebase(ctx context.Context, at Place, backing *BackingRef) error
	// Resize sets the virtual size of the top of the chain.
	Resize(ctx context.Context, chain []Place, size int64) error
	// Settle leaves nothing in the top of the chain that its next writer would have to put
	// in order: what one that died had completed is there, and what it had reserved is
	// given back. An image without such is not written to.
	Settle(ctx context.Context, chain []Place, p Progress) error
}

// ErrUnfit is wrapped by the error of a job that no repetition avoids: the image
// contradicts itself, or cannot have what was asked for.
var ErrUnfit = errors.New("the image is not fit for that")

// A BackingRef is what an image says it is based on.
type BackingRef struct {
	Name   string `json:"name"` // as in the header: relative to the image
	Format string `json:"format"`
}

// ImageUse is what an image says of itself, in bytes.
type ImageUse struct {
	VirtualSize int64 `json:"virtual_size"`
	BackingSize int64 `json:"backing_size,omitempty"` // virtual, of what is right below it; 0: nothing is, or it was not given
	End         int64 `json:"end"`                    // of its data: a volume may not be shorter
}

// ImageServers starts and steers what serves images. A server outlives the
// manager, and is found again by its key, which is the image's UUID: of an image that
// is in several domains one copy is served at a time, and who asks about another finds
// out by Server.Domain.
type ImageServers interface {
	// Start serves the chain of a volume, unless the image is served already as
	// that says; then it only returns who serves it.
	Start(ctx context.Context, s Serve) (Server, error)
	// Find returns the server of an image, or an error that wraps fs.ErrNotExist.
	Find(ctx context.Context, image string) (Server, error)
	// Adopt lets a server ask this manager from now on, for space and for the volumes that
	// it is to open.
	Adopt(ctx context.Context, image string) error
	// Stop ends a server, after a flush. Without one it does nothing.
	Stop(ctx context.Context, image string) error
	// Snapshot lets a server write to a new leaf from now on, which is empty and
	// based on its present one. If it does so already, nothing happens.
	Snapshot(ctx context.Context, image string, leaf string) error
	// MergeStart lets a server copy its leaf into the volume below. From the moment
	// at which Find says Ready on, every write goes to both, so that the chain with
	// and without the leaf shows the same. It goes on so for as long as it takes,
	// until MergePivot drops the leaf or MergeCancel ends it.
	MergeStart(ctx context.Context, image string, leaf string) error
	MergePivot(ctx context.Context, image string, leaf string) error
	MergeCancel(ctx context.Context, image string, leaf string) error
	// Resize sets the virtual size of a served image, never to less.
	Resize(ctx context.Context, image string, size int64) error
}

// Serve says what to serve, and how.
type Serve struct {
	Domain   string // in which the image is meant, and everything below it lies
	Image    string
	Leaf     string // volume UUID; what is below it says the pool
	ReadOnly bool
	// AllowIllegal serves a leaf whose data are not whole.
	AllowIllegal bool
}

// A Server is what serves an image.
type Server struct {
	Domain   string `json:"domain"` // "": it does not say
	Image    string `json:"image"`
	Leaf     string `json:"leaf"`
	End      int64  `json:"end"` // of the image in the leaf, with what is reserved there, in bytes
	ReadOnly bool   `json:"read_only"`
	URI      string `json:"uri"`
	Socket   string `json:"socket"`
	Control  string `json:"control"`
	PID      int    `json:"process_id"`
	// Foreign says that it asks another manager than this one, who has started it and has
	// gone, or has the role no more.
	Foreign bool  `json:"foreign,omitempty"`
	Used    int64 `json:"used"`           // bytes of the leaf that its image uses
	Size    int64 `json:"size,omitempty"` // of the disk; 0: it does not say
	// Merge is what becomes of a merge: "", copying, ready or failed.
	Merge      string `json:"merge,omitempty"`
	MergeError string `json:"merge_error,omitempty"`
	MergeDone  int64  `json:"merge_done,omitempty"`
	MergeTotal int64  `json:"merge_total,omitempty"`
}
