package spm

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
)

// Storage is what the storage of a host can be asked for: domains, pools, images,
// volumes and tasks. [Host] implements it; the API's table of verbs is its only
// other user. Sizes are in bytes. An error is an [*Error].
//
// A method that returns a task's id has checked its request and persisted the
// task; what becomes of it says the task.
type Storage interface {
	ConnectServer(ctx context.Context, t DomainType, c []Connection) ([]ConnectionResult, error)
	DisconnectServer(ctx context.Context, t DomainType, c []Connection) ([]ConnectionResult, error)

	CreateDomain(ctx context.Context, r CreateDomain) error
	FormatDomain(ctx context.Context, domain uuid.UUID) error
	AttachDomain(ctx context.Context, pool, domain uuid.UUID) error
	DetachDomain(ctx context.Context, pool, domain uuid.UUID) error
	ActivateDomain(ctx context.Context, pool, domain uuid.UUID) error
	// DeactivateDomain of the master moves that role to newMaster, with the
	// version, first.
	DeactivateDomain(ctx context.Context, pool, domain, newMaster uuid.UUID, masterVersion int64) error
	DomainInfo(ctx context.Context, domain uuid.UUID) (DomainInfo, error)
	DomainStats(ctx context.Context, domain uuid.UUID) (DomainStats, error)
	// Domains are those of a pool, or with uuid.Nil all that are connected; with
	// their states.
	Domains(ctx context.Context, pool uuid.UUID) (map[uuid.UUID]DomainState, error)

	CreatePool(ctx context.Context, r CreatePool) error
	// ReconstructMaster makes another domain the master of a pool that has lost its own.
	ReconstructMaster(ctx context.Context, r ReconstructMaster) error
	DestroyPool(ctx context.Context, pool uuid.UUID) error
	ConnectPool(ctx context.Context, pool, master uuid.UUID, masterVersion int64) error
	DisconnectPool(ctx context.Context, pool uuid.UUID) error
	PoolInfo(ctx context.Context, pool uuid.UUID) (PoolInfo, error)
	Pools(ctx context.Context) ([]uuid.UUID, error)                  // connected
	StartSPM(ctx context.Context, pool uuid.UUID) (uuid.UUID, error) // a task
	StopSPM(ctx context.Context, pool uuid.UUID) error
	SPMStatus(ctx context.Context, pool uuid.UUID) (RoleStatus, error)

	CreateImageVolume(ctx context.Context, r NewVolume) (uuid.UUID, error)
	DeleteVolumes(ctx context.Context, r DeleteVolumes) (uuid.UUID, error)
	CopyImage(ctx context.Context, r CopyImage) (uuid.UUID, error)
	MoveImage(ctx context.Context, r MoveImage) (uuid.UUID, error)
	DeleteImage(ctx context.Context, r DeleteImage) (uuid.UUID, error)
	MergeVolumes(ctx context.Context, r MergeVolumes) (uuid.UUID, error)
	ExtendVolumeSize(ctx context.Context, at VolumeAt, size int64) (uuid.UUID, error) // virtual
	// ReduceImageVolume gives back what a volume has been granted beyond its data.
	ReduceImageVolume(ctx context.Context, at VolumeAt) (uuid.UUID, error)
	VolumeInfo(ctx context.Context, at VolumeAt) (VolumeInfo, error)
	MeasureVolume(ctx context.Context, at VolumeAt, format string) (Measure, error)
	// VolumesOf lists a domain's volumes, of one image unless that is uuid.Nil.
	VolumesOf(ctx context.Context, domain, image uuid.UUID) ([]VolumeInfo, error)
	Images(ctx context.Context, domain uuid.UUID) ([]uuid.UUID, error)
	// SetPriority says who waits first in a full pool: the lower.
	SetPriority(ctx context.Context, at VolumeAt, priority int) error

	// PrepareImage starts what serves a volume, its leaf if the volume is
	// uuid.Nil, or finds that it is served already.
	PrepareImage(ctx context.Context, at VolumeAt, o PrepareOptions) (Prepared, error)
	TeardownImage(ctx context.Context, at VolumeAt) error

	TaskStatus(ctx context.Context, id uuid.UUID) (TaskStatus, error)
	TaskInfo(ctx context.Context, id uuid.UUID) (TaskInfo, error)
	Tasks(ctx context.Context) ([]TaskInfo, error)
	StopTask(ctx context.Context, id uuid.UUID) error
	RevertTask(ctx context.Context, id uuid.UUID) error
	ClearTask(ctx context.Context, id uuid.UUID) error

	// WatchStorage returns the events after a number, 0 for all that are kept;
	// while there is none it waits, until ctx ends.
	WatchStorage(ctx context.Context, after int64) ([]Event, error)
}

// DomainType is VDSM's word for where a domain lies.
type DomainType string

// The types that there are.
const (
	DomainLocal DomainType = typeDir   // a directory of this host
	DomainBlock DomainType = typeGroup // a volume group on devices that the host has
)

// A Connection makes storage known to the host: a directory, or the devices of a
// volume group, separated by commas. It must lie beneath one of the host's roots.
type Connection struct {
	ID      uuid.UUID // the client's
	Address string
}

// A ConnectionResult says what became of a connection.
type ConnectionResult struct {
	ID  uuid.UUID
	Was bool // it was so before: there was nothing to do
	Err error
}

// DomainState is a domain's place in its pool.
type DomainState string

// The states, in VDSM's words.
const (
	DomainUnattached DomainState = "Unattached" // of no pool
	DomainAttached   DomainState = "Attached"   // of a pool, and not in use
	DomainActive     DomainState = "Active"     // in use
	DomainUnknown    DomainState = "Unknown"    // in use, as its pool says, and in no place that is connected
)

// CreateDomain describes a new domain.
type CreateDomain struct {
	Type DomainType
	ID   uuid.UUID
	Name string
	// Where is the directory, connected before, or the name of the volume group.
	Where string
	// Capacity is what volumes may be granted together, in a directory; 0 is what
	// its file system has. A volume group is as large as it is.
	Capacity int64
	Version  int // 0 is the newest, 5
}

// DomainInfo is what a domain's metadata says.
type DomainInfo struct {
	ID      uuid.UUID   `json:"domain_uuid"`
	Type    DomainType  `json:"type"`
	Class   string      `json:"class"` // Data
	Name    string      `json:"name"`
	Role    string      `json:"role"` // Master or Regular
	Version int         `json:"version"`
	Pool    uuid.UUID   `json:"pool_uuid"` // uuid.Nil: unattached
	State   DomainState `json:"state"`
	Master  int64       `json:"master_version"`
	Where   string      `json:"where"` // directory, or volume group
	VGUUID  string      `json:"vg_uuid,omitempty"`
	Lver    int64       `json:"spm_epoch"` // of a master
}

// DomainStats is how a domain is used, or a pool. Virtual is what its leaves and
// templates promise, Granted what its volumes have; Used is what their images use
// of that, as far as those who serve them have told.
type DomainStats struct {
	Capacity   int64   `json:"capacity"`
	Granted    int64   `json:"granted"`
	Free       int64   `json:"free"`
	Reserve    int64   `json:"reserve"` // of Free: kept for merging and removing
	Virtual    int64   `json:"virtual"`
	Used       int64   `json:"used"`
	Ratio      float64 `json:"ratio"`        // Virtual / Capacity
	Growth     float64 `json:"growth"`       // of Granted, bytes per second, over the last hour at most
	TimeToFull float64 `json:"time_to_full"` // seconds at that growth; 0: never
	Volumes    int     `json:"volumes"`
	Level      string  `json:"level"` // ok, warn, critical
	Waiting    int     `json:"waiting"`
	// State is the domain's; of a pool it is "". Of one that is Unknown nothing is free.
	State DomainState `json:"state,omitempty"`
}

// CreatePool describes a new pool.
type CreatePool struct {
	ID            uuid.UUID
	Name          string
	Master        uuid.UUID
	Domains       []uuid.UUID // Master among them
	MasterVersion int64
}

// ReconstructMaster says what a pool is from now on.
type ReconstructMaster struct {
	Pool          uuid.UUID
	Name          string // "": as it is known
	Master        uuid.UUID
	Domains       map[uuid.UUID]DomainState // Active or Attached; Master among them
	MasterVersion int64                     // higher than that of the master that is lost
}

// PoolInfo is a pool's state.
type PoolInfo struct {
	ID            uuid.UUID                 `json:"pool_uuid"`
	Name          string                    `json:"name"`
	Master        uuid.UUID                 `json:"master_uuid"`
	MasterVersion int64                     `json:"master_version"`
	SPM           RoleStatus                `json:"spm"`
	Domains       map[uuid.UUID]DomainState `json:"domains"`
	Stats         DomainStats               `json:"stats"` // of its active domains
}

// RoleStatus says who manages a pool.
type RoleStatus struct {
	Role  string `json:"role"`    // Free, Contend or SPM, in VDSM's words
	ID    int    `json:"host_id"` // -1: nobody
	Epoch int64  `json:"epoch"`
}

// The kinds of volumes, in VDSM's words.
const (
	Cow          = "COW"
	Raw          = "RAW"
	Sparse       = "SPARSE"
	Preallocated = "PREALLOCATED"
	Leaf         = "LEAF"
	Internal     = "INTERNAL"
	Shared       = "SHARED" // a template: others may be based on it, nobody writes to it
	Legal        = "LEGAL"
	Illegal      = "ILLEGAL"
)

// VolumeAt names a volume. Where Volume is uuid.Nil, the image's leaf is meant.
type VolumeAt struct {
	Pool, Domain, Image, Volume uuid.UUID
}

// NewVolume describes a new volume: a blank one, or one on a parent, of the same
// image (a snapshot) or of another (on a template). Its size may be 0 then.
type NewVolume struct {
	VolumeAt
	Size        int64  // virtual
	Initial     int64  // what it is granted at first; 0: the pool's choice
	Format      string // Cow or Raw
	Alloc       string // Sparse or Preallocated
	Type        string // Leaf or Shared
	DiskType    string
	Description string
	ParentImage uuid.UUID
	Parent      uuid.UUID // uuid.Nil: blank
	Priority    int
}

// DeleteVolumes removes volumes that no other volume is based on, or all above
// which go with them.
type DeleteVolumes struct {
	Pool, Domain, Image uuid.UUID
	Volumes             []uuid.UUID
	PostZero            bool
	Force               bool // also an illegal one
}

// DeleteImage removes an image with all its volumes.
type DeleteImage struct {
	Pool, Domain, Image uuid.UUID
	PostZero            bool
	Force               bool
}

// CopyImage copies a volume, with everything below it, to one new volume.
type CopyImage struct {
	From        VolumeAt
	To          VolumeAt // in the same pool
	Description string
	Format      string // "": as it is
	Alloc       string
	Type        string // Leaf or Shared
}

// MoveImage moves or copies an image with its chain to another domain.
type MoveImage struct {
	Pool, From, To, Image uuid.UUID
	Copy                  bool // leave the original
	PostZero              bool
	Force                 bool
}

// MergeVolumes merges a volume into the one that it is based on, which stays;
// what is between them goes as well. If the image is served, Successor must be
// its leaf, and Ancestor the leaf's parent.
type MergeVolumes struct {
	Pool, Domain, Image uuid.UUID
	Ancestor, Successor uuid.UUID
	PostZero            bool
}

// VolumeInfo is what is known of a volume.
type VolumeInfo struct {
	VolumeAt
	ParentImage, Parent uuid.UUID
	Capacity            int64 // virtual
	Granted             int64 // of the pool: apparent size
	Used                int64 // true size, as far as it is known
	Bound               int64
	Format, Alloc, Type string
	DiskType            string
	Legality            string
	Generation          int
	Sequence            int64
	Created             time.Time
	Description         string
	Name                string // its image's, if it is the leaf
	Priority            int
	Children            []uuid.UUID
	Path                string
	Damaged             string
	Served              bool
	// ServedUnknown says why it is not known whether the volume is served, as it seems to
	// be: its server does not answer. "": it is known.
	ServedUnknown string
}

// Measure is what a copy of a volume would take.
type Measure struct{ Required, FullyAllocated, Bitmaps int64 }

// PrepareOptions say how an image is served.
type PrepareOptions struct {
	ReadOnly     bool
	AllowIllegal bool
}

// Prepared is a served image.
type Prepared struct {
	VolumeAt
	URI     string // nbd+unix:///?socket=..., its address
	Socket  string
	Control string
	PID     int
	Chain   []VolumeInfo // from the base to the leaf
}

// TaskStatus is how far a task is. State is one of package task's.
type TaskStatus struct {
	ID      uuid.UUID       `json:"task_uuid"`
	Kind    string          `json:"kind"` // the verb, and behind a dot how it is done
	State   string          `json:"state"`
	Success bool            `json:"success"`
	GivenUp bool            `json:"given_up,omitempty"` // it has failed, and was not rolled back: some of what it has done stays
	Code    Code            `json:"code,omitempty"`     // of its error; 0: none
	Message string          `json:"message,omitempty"`
	Done    int64           `json:"done"` // of Total, in the unit of the step
	Total   int64           `json:"total"`
	Step    string          `json:"step"`
	Result  json.RawMessage `json:"result,omitempty"`
}

// TaskInfo is what a task is.
type TaskInfo struct {
	TaskStatus
	Args    json.RawMessage `json:"args"`
	Pool    uuid.UUID       `json:"pool_uuid"`
	Created time.Time       `json:"created"`
	Ended   time.Time       `json:"ended,omitzero"`
}
