package spm

import "time"

// WireVersion is the version of the structs in this file. A newer one is refused
// by saying so; 0, which is what a request made by hand has, means 1.
const WireVersion = 1

// The names of the methods.
const (
	MethodVolumeCreate  = "Volume.create"
	MethodVolumeList    = "Volume.list"
	MethodVolumeGetInfo = "Volume.getInfo"
	MethodVolumeExtend  = "Volume.extend"
	MethodVolumeReduce  = "Volume.reduce"
	MethodVolumeRemove  = "Volume.remove"
	MethodPoolGetInfo   = "Pool.getInfo"
	MethodPoolWatch     = "Pool.watch"
)

// Header identifies the parties of a request or reply. While there is one host
// its host id and generation are constants. What is left out is not checked.
type Header struct {
	Version        int    `json:"version"`
	RequestID      string `json:"request_id,omitempty"`
	PoolUUID       string `json:"pool_uuid,omitempty"`
	SPMEpoch       int64  `json:"spm_epoch,omitempty"`
	HostID         int    `json:"host_id,omitempty"`
	HostGeneration int64  `json:"host_generation,omitempty"`
}

// VolumeRef names a volume in a request: by a name, an image UUID (then its leaf
// is meant) or a volume UUID. Generation, if given, must be the volume's. A volume that
// has been copied is in several domains under the same name and UUIDs: DomainUUID says
// which is meant. Who has a volume open always says so; a person may leave it out as
// long as there is one only.
type VolumeRef struct {
	Volume     string `json:"volume"`
	Generation *int   `json:"volume_generation,omitempty"`
	DomainUUID string `json:"domain_uuid,omitempty"`
}

// A VolumeCreateRequest asks for a volume of virtual size Size. Format is
// "qcow2", the default, or "raw"; DomainUUID names a domain of the pool, by default
// the master.
type VolumeCreateRequest struct {
	Header
	Name       string `json:"name"`
	Size       int64  `json:"size"`
	Format     string `json:"format,omitempty"`
	DomainUUID string `json:"domain_uuid,omitempty"`
}

// A VolumeListRequest asks for all volumes.
type VolumeListRequest struct {
	Header
}

// A VolumeInfoRequest asks for one volume.
type VolumeInfoRequest struct {
	Header
	VolumeRef
}

// A VolumeExtendRequest asks that the volume be at least Need bytes and, as far
// as the pool has the space, Want bytes long. Both are absolute. WaitMS bounds
// how long a full pool may hold the request; 0 asks for an answer at once.
type VolumeExtendRequest struct {
	Header
	VolumeRef
	Need   int64 `json:"need"`
	Want   int64 `json:"want,omitempty"`
	WaitMS int64 `json:"wait_ms,omitempty"`
}

// A VolumeReduceRequest asks its holder's manager to make the volume shorter, to
// To bytes or as little more as its grain allows: compare and set. It must have
// exactly From bytes, and the manager's epoch (in the header) and the volume's
// Changes must be those that the caller was told last, so that a late duplicate
// does nothing. Nothing beyond To may be in use any more.
type VolumeReduceRequest struct {
	Header
	VolumeRef
	From    int64 `json:"from"`
	To      int64 `json:"to"`
	Changes int64 `json:"changes"`
}

// A VolumeRemoveRequest asks that the volume be removed.
type VolumeRemoveRequest struct {
	Header
	VolumeRef
}

// A PoolInfoRequest asks for the state of the pool.
type PoolInfoRequest struct {
	Header
}

// A Volume is what the pool knows of a volume. Sizes are in bytes.
type Volume struct {
	Name       string `json:"name"`
	ImageUUID  string `json:"image_uuid"`
	VolumeUUID string `json:"volume_uuid"`
	Generation int    `json:"volume_generation"`
	DomainUUID string `json:"domain_uuid"`
	// ParentUUID is the volume that it is based on, and ParentImage the image of
	// that one, which is another one if it is a template; "" if there is none.
	ParentUUID  string `json:"parent_uuid,omitempty"`
	ParentImage string `json:"parent_image_uuid,omitempty"`
	Format      string `json:"format"`
	Size        int64  `json:"size"`      // virtual
	Granted     int64  `json:"granted"`   // the length of the file
	Bound       int64  `json:"bound"`     // Granted never exceeds it
	Allocated   int64  `json:"allocated"` // what the host's file system has allocated
	Path        string `json:"path"`
	// Beneath is the directory beneath which the file at Path is opened, without
	// following a symbolic link: others may write to what lies there.
	Beneath string `json:"beneath,omitempty"`
	// Mapping is where a volume on a volume group lies.
	Mapping    *Mapping  `json:"mapping,omitempty"`
	Created    time.Time `json:"created"`
	Extensions int64     `json:"extensions"` // since the manager started
	// Changes of Granted since the manager started, of any kind.
	Changes int64 `json:"changes"`
	// Damaged says why nothing can be known of it, and it cannot be opened. Its
	// name is its UUID then.
	Damaged string `json:"damaged,omitempty"`
	// Illegal says that an operation on it was not completed, or is in progress: it is
	// read below a volume that is based on it, and nobody opens it for itself.
	Illegal bool `json:"illegal,omitempty"`
	// ReadOnly says why nobody may begin to write to it: others are based on it, or may be, a
	// task changes its image, or it is becoming shorter.
	ReadOnly string `json:"read_only,omitempty"`
	// Waiting says that it waits for space.
	Waiting *Waiting `json:"waiting,omitempty"`
	// PatienceMS is what Options.Patience says, in milliseconds; 0: nothing.
	PatienceMS int64 `json:"patience_ms,omitempty"`
}

// A VolumeReply is about one volume.
type VolumeReply struct {
	Header
	Volume
}

// A VolumeListReply holds all volumes, in the order of their names.
type VolumeListReply struct {
	Header
	Volumes []Volume `json:"volumes"`
}

// A VolumeExtendReply tells the durable size of the volume.
type VolumeExtendReply struct {
	Header
	VolumeUUID string `json:"volume_uuid"`
	Generation int    `json:"volume_generation"`
	Size       int64  `json:"size"`
	Bound      int64  `json:"bound"`
	// Mapping is where a volume on a volume group lies now.
	Mapping *Mapping `json:"mapping,omitempty"`
}

// A VolumeRemoveReply tells what has been removed, and the bytes that are free
// again.
type VolumeRemoveReply struct {
	Header
	VolumeUUID string `json:"volume_uuid"`
	Freed      int64  `json:"freed"`
}

// A PoolReply is the state of the pool. Sizes are in bytes.
type PoolReply struct {
	Header
	DomainUUID string      `json:"domain_uuid"`
	Dir        string      `json:"dir,omitempty"`   // of a pool in a directory
	Group      *GroupReply `json:"group,omitempty"` // of one on a volume group
	Volumes    int         `json:"volumes"`
	Capacity   int64       `json:"capacity"`
	Granted    int64       `json:"granted"`
	Free       int64       `json:"free"`      // Capacity - Granted, not below 0
	HostFree   int64       `json:"host_free"` // what the host's file system could carry beyond Granted
	// Domains are the active domains of a pool of several, the master first, of which the
	// sizes above are the sums. Dir and Group are the master's.
	Domains []DomainUse `json:"domains,omitempty"`

	Waiting []Waiting `json:"waiting"`
	// Tight says that headroom is recalled: idle volumes should give theirs back.
	Tight bool `json:"tight"`

	Extensions    int64   `json:"extensions"`     // since the manager started
	LastExtension float64 `json:"last_extension"` // seconds it took
	LastExtended  string  `json:"last_extended"`  // the name of its volume
	SPMStarted    string  `json:"spm_started"`    // RFC 3339, UTC
	SPMPID        int     `json:"spm_process_id"`
}

// A DomainUse is how one domain of several is used, as the members of the same names in a
// PoolReply say of all.
type DomainUse struct {
	DomainUUID string      `json:"domain_uuid"`
	Dir        string      `json:"dir,omitempty"`
	Group      *GroupReply `json:"group,omitempty"`
	Capacity   int64       `json:"capacity"`
	Granted    int64       `json:"granted"`
	Free       int64       `json:"free"`
	HostFree   int64       `json:"host_free"`
}

// use is a pool's as that of its only domain.
func (p PoolReply) use() DomainUse {
	return DomainUse{DomainUUID: p.DomainUUID, Dir: p.Dir, Group: p.Group, Capacity: p.Capacity, Granted: p.Granted, Free: p.Free, HostFree: p.HostFree}
}

// A GroupReply is the volume group of a pool.
type GroupReply struct {
	Name       string `json:"name"`
	UUID       string `json:"uuid"`
	ExtentSize int64  `json:"extent_size"`
	GroupUse
}

// Waiting is a place in the queue of a full pool: a volume, how many bytes more
// it needs, and since when.
type Waiting struct {
	Name       string    `json:"name"`
	VolumeUUID string    `json:"volume_uuid"`
	Bytes      int64     `json:"bytes"`
	Since      time.Time `json:"since"`
}

// A PoolWatchRequest asks for the events after the one of that number, 0 for all
// that the manager remembers. While there is none it waits for WaitMS.
type PoolWatchRequest struct {
	Header
	After  int64 `json:"after"`
	WaitMS int64 `json:"wait_ms,omitempty"`
}

// A PoolWatchReply holds the events, the oldest first. Last is the number of the
// newest that has happened; it begins anew with each manager.
type PoolWatchReply struct {
	Header
	Events []Event `json:"events"`
	Last   int64   `json:"last"`
	Tight  bool    `json:"tight"` // as in PoolReply
}

// The kinds of events.
const (
	EventWaits       = "waits"         // a volume waits for space
	EventWaitsNoMore = "waits-no-more" // it has it (Granted), or has given up
	EventTight       = "tight"         // headroom is recalled
	EventTightNoMore = "tight-no-more"
	EventTask        = "task"     // a task has gone to State
	EventExtended    = "extended" // a volume has been granted Bytes more
	EventLevel       = "level"    // what is granted of a domain has passed a watermark: Level
	EventNoSpace     = "no-space" // a request for Bytes more was refused: the domain is full
)

// EventKinds are all of them.
var EventKinds = []string{EventWaits, EventWaitsNoMore, EventTight, EventTightNoMore, EventTask, EventExtended, EventLevel, EventNoSpace}

// An Event is something that has happened to the pool. A volume that waits, or did,
// needs Bytes more than it has, since when; of a domain that has become tight, or no
// more, or has passed a watermark, Bytes are free.
type Event struct {
	Number     int64     `json:"number"`
	Time       time.Time `json:"time"`
	Kind       string    `json:"kind"`
	Name       string    `json:"name,omitempty"`
	VolumeUUID string    `json:"volume_uuid,omitempty"`
	Bytes      int64     `json:"bytes"`
	Since      time.Time `json:"since,omitzero"`
	Granted    bool      `json:"granted,omitempty"`
	DomainUUID string    `json:"domain_uuid,omitempty"`
	TaskUUID   string    `json:"task_uuid,omitempty"`
	State      string    `json:"state,omitempty"` // of the task
	Level      string    `json:"level,omitempty"` // ok, warn or critical
}
