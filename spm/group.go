package spm

import (
	"context"

	"github.com/google/uuid"

	"tidemark/internal/block"
)

// A VolumeGroup is a volume group of LVM as a pool needs one. Every change is
// durable when it returns. It is safe for concurrent use.
type VolumeGroup interface {
	// State returns the group as last read, and never waits. It must not be
	// changed. Read reads it again: others may have changed it.
	State() *GroupState
	Read(ctx context.Context) error

	// Retag changes the tags of the group, RetagVolume those of a volume, in
	// one change each.
	Retag(ctx context.Context, remove, add []string) error
	RetagVolume(ctx context.Context, name string, remove, add []string) error

	// Create makes a volume of size bytes whose content is whatever there was.
	// grows says that it will be extended.
	Create(ctx context.Context, name string, tags []string, size int64, grows bool) (Mapping, error)
	// Extend makes a volume at least target bytes long and, where that keeps it
	// in fewer pieces, up to most. An error that wraps block.ErrNoSpace says
	// that there is too little.
	Extend(ctx context.Context, name string, target, most int64) (Mapping, error)
	// Reduce makes a volume of exactly from bytes one of to bytes, a multiple of
	// the extent size. Its holder has asked for it.
	Reduce(ctx context.Context, name string, from, to int64) (Mapping, error)
	// Remove removes a volume. One that is not there is no error.
	Remove(ctx context.Context, name string) error

	// Open opens a volume that nobody else uses, to be closed by the caller.
	Open(ctx context.Context, name string) (block.File, error)
	// Hold takes a volume so that nobody else can open it, or fails with an
	// error that wraps block.ErrInUse. It works without the volume.
	Hold(m Mapping) (release func() error, err error)
	// RunDir is a directory that everybody on this host uses for the group; the
	// manager's lock is in it.
	RunDir() string
}

// A GroupState is a volume group at one moment. Sizes are in bytes.
type GroupState struct {
	Name, UUID string
	Tags       []string
	ExtentSize int64
	Free       int64 // what can be given to volumes
	Use        GroupUse
	Volumes    []GroupVolume
}

// A GroupVolume is a logical volume. Mapping is its place, or Unusable says why
// it has none that could be used.
type GroupVolume struct {
	Name     string
	Tags     []string
	Size     int64
	Mapping  Mapping
	Unusable error
}

// volume reports whether it is a volume of the pool: it has the name of one, and the tag.
func (l GroupVolume) volume() (volumeTags, bool) {
	tags, ours := parseVolumeTags(l.Tags)
	_, err := uuid.Parse(l.Name)
	return tags, ours && err == nil
}

// GroupUse is how far the metadata area of a group is used: in bytes, and in
// segments of volumes.
type GroupUse struct {
	MetadataUsed  int64 `json:"metadata_used"`
	MetadataLimit int64 `json:"metadata_limit"`
	Segments      int64 `json:"segments"`
	SegmentsLimit int64 `json:"segments_limit"`
}

// A Mapping says where the bytes of a volume lie: in which logical volume, and
// in which state of the group it is in which pieces of which physical volumes.
// The UUIDs are LVM's.
type Mapping struct {
	Group     string   `json:"group"` // its name; the logical volume has the volume's UUID for a name
	GroupUUID string   `json:"group_uuid"`
	LVUUID    string   `json:"lv_uuid"`
	Seqno     int64    `json:"seqno"`    // of the group
	Devices   []string `json:"devices"`  // those of the group
	LockDir   string   `json:"lock_dir"` // who has the volume open has a lock there
	Segments  []Piece  `json:"segments"`
}

// A Piece is a run of bytes of a volume on a physical volume.
type Piece struct {
	Start  int64  `json:"start"` // byte of the volume
	Size   int64  `json:"size"`
	PV     string `json:"pv_uuid"`
	Device string `json:"device"` // where the physical volume was seen last
	Offset int64  `json:"offset"` // byte of the physical volume
}

// Size is the length of the volume in bytes.
func (m Mapping) Size() (n int64) {
	for _, p := range m.Segments {
		n += p.Size
	}
	return n
}
