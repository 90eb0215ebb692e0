package verbs

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm"
)

// volumeNumbers are the numbers of the verbs about volumes.
var volumeNumbers = map[spm.Code]int{spm.CodeWrongState: 922}

var oneVolume = argsOf(argDomain, argPool, argImage, argVolume)

const (
	volumeDoc = "uuid, type (SPARSE, PREALLOCATED), format (COW, RAW), disktype, voltype (LEAF, INTERNAL, SHARED), capacity, apparentsize, truesize (bytes), " +
		"parent, children (array of UUIDs), description, pool, domain, image, ctime (seconds since 1970), mtime (0), legality (LEGAL, ILLEGAL), " +
		"status (OK, ILLEGAL, INVALID), generation, sequence; ours: bound (bytes), priority, served, path, parentImage, and name and damaged if there is one, and servedUnknown if its server does not answer (why; served is true then)"
	sizesDoc    = "bytes"
	priorityDoc = "from -1000 to 1000"
)

var volumeVerbs = []Verb{
	{
		Name: "createVolume", VDSM: true,
		Doc: "Make a volume: a blank one, or one on a parent, of the same image (a snapshot) or of another (on a template).",
		Args: argsOf(argDomain, argPool,
			Arg{Name: "imgUUID", Kind: kindNewUUID, Doc: "the image; it is made if there is none"},
			Arg{Name: "size", Kind: kindSectors, Doc: "virtual size; 0 on a parent: the parent's"},
			Arg{Name: "volFormat", Kind: kindFormat, Doc: "COW on a parent"},
			Arg{Name: "preallocate", Kind: kindAlloc, Doc: "PREALLOCATED: it is granted all that it can ever need"},
			Arg{Name: "diskType", Kind: kindDiskType, Doc: "what is in it"},
			Arg{Name: "volUUID", Kind: kindNewUUID, Doc: "the new volume"},
			Arg{Name: "desc", Kind: kindString, Doc: "a description; DiskAlias, if it is JSON with that, is the name of the image, which no other image of the pool may have: that is found by the task"},
			Arg{Name: "srcImgUUID", Kind: kindUUID, Optional: true, Doc: "the parent's image; blank: the same"},
			Arg{Name: "srcVolUUID", Kind: kindUUID, Optional: true, Doc: "the parent; blank: none"},
			Arg{Name: "initialSize", Kind: kindSectors, Optional: true, Doc: "what it is granted at first; what is less than a chunk, or 0, is the pool's choice"},
			Arg{Name: "addBitmaps", Kind: kindNone, Optional: true, Doc: "bitmaps of the parent are not taken over"},
			Arg{Name: "legal", Kind: kindTrue, Optional: true, Doc: "a volume that is there is legal"},
			ignored("sequence"),
			Arg{Name: "bitmap", Kind: kindNone, Optional: true, Doc: "there are no bitmaps"},
			Arg{Name: "priority", Kind: kindInt, Optional: true, Doc: "ours: who waits first in a full pool, the lower; " + priorityDoc}),
		Reply: taskReply,
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeHasChildren, spm.CodeExists, spm.CodeUnfinished,
			spm.CodePoolFull, spm.CodeUnsupported, spm.CodeTooManyTasks),
		As:   map[spm.Code]int{spm.CodeWrongState: 922, spm.CodeIllegal: 226},
		Also: []int{noSize},
		call: createVolume,
	},
	{
		Name: "deleteVolume", VDSM: true, Doc: "Remove volumes that no other is based on, or only those that go with them.",
		Args: argsOf(argDomain, argPool, argImage, Arg{Name: "volumes", Kind: kindUUIDs, Doc: "the volumes"}, argZero, argForce),
		Methods: []Method{
			{"Image.deleteVolumes", "imageID storagepoolID storagedomainID volumeList postZero force discard", "uuid"},
			{"Volume.delete", "volumeID=volumes storagepoolID storagedomainID imageID postZero force discard", "uuid"},
		},
		Reply: taskReply, As: volumeNumbers,
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeHasChildren, spm.CodeTooManyTasks),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.DeleteVolumes(ctx, spm.DeleteVolumes{
				Pool: get[uuid.UUID](a, "spUUID"), Domain: get[uuid.UUID](a, "sdUUID"), Image: get[uuid.UUID](a, "imgUUID"),
				Volumes: get[[]uuid.UUID](a, "volumes"), PostZero: get[bool](a, "postZero"), Force: get[bool](a, "force"),
			}))
		},
	},
	{
		Name: "extendVolumeSize", VDSM: true, Doc: "Make the virtual size of a leaf larger.",
		Args:    argsOf(argPool, argDomain, argImage, argVolume, Arg{Name: "newSize", Kind: kindSize, Doc: "the new virtual size"}),
		Methods: []Method{{"Volume.extendSize", "storagepoolID storagedomainID imageID volumeID newSize", "uuid"}},
		Reply:   taskReply, As: volumeNumbers,
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeHasChildren, spm.CodeStale, spm.CodeUnfinished, spm.CodePoolFull,
			spm.CodeBound, spm.CodeUnsupported, spm.CodeTooManyTasks),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.ExtendVolumeSize(ctx, at(a), get[int64](a, "newSize")))
		},
	},
	{
		Name: "reduceVolume", VDSM: true, Doc: "Give back what a volume has been granted beyond its data.",
		Args:    argsOf(argPool, argDomain, argImage, argVolume, ignored("allowActive")),
		Methods: []Method{{"StoragePool.reduceVolume", "storagepoolID storagedomainID imageID volumeID allowActive", "uuid"}},
		Reply:   taskReply, As: volumeNumbers,
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeStale, spm.CodeUnsupported, spm.CodeTooManyTasks),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.ReduceImageVolume(ctx, at(a)))
		},
	},
	{
		Name: "getVolumeInfo", VDSM: true, Doc: "What is known of a volume.",
		Args: oneVolume, Reply: []Member{{"info", "object: " + volumeDoc}}, Codes: volumeCodes,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			i, err := s.VolumeInfo(ctx, at(a))
			return Reply{"info": volumeInfo(i)}, err
		},
	},
	{
		Name: "getVolumeSize", VDSM: true, Doc: "How large a volume is in its domain.",
		Args:    oneVolume,
		Methods: []Method{{"Volume.getSize", "volumeID storagepoolID storagedomainID imageID", "*"}},
		Reply:   []Member{{"apparentsize", sizesDoc + ": what it has been granted"}, {"truesize", sizesDoc + ": what it uses of that, as far as it is known"}},
		Codes:   volumeCodes,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			i, err := s.VolumeInfo(ctx, at(a))
			return Reply{"apparentsize": decimal(i.Granted), "truesize": decimal(i.Used)}, err
		},
	},
	{
		Name: "measureVolume", VDSM: true, Doc: "What a copy of a volume, with everything below it, would take.",
		Args: append(slices.Clone(oneVolume), Arg{Name: "volFormat", Kind: kindFormat, Doc: "of the copy"},
			Arg{Name: "backing", Kind: kindTrue, Optional: true, Doc: "with everything below it"},
			Arg{Name: "baseUUID", Kind: kindNone, Optional: true, Doc: "down to its base"}),
		Methods: []Method{{"Volume.measure", "volumeID storagepoolID storagedomainID imageID dstVolFormat backing_chain baseID", "result"}},
		Reply:   []Member{{"result", "object: required, fully-allocated, bitmaps (bytes)"}}, Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeInUse, spm.CodeUnsupported),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			m, err := s.MeasureVolume(ctx, at(a), get[string](a, "volFormat"))
			return Reply{"result": map[string]any{"required": decimal(m.Required), "fully-allocated": decimal(m.FullyAllocated), "bitmaps": decimal(m.Bitmaps)}}, err
		},
	},
	{
		Name: "getVolumesList", VDSM: true, Doc: "The volumes of a domain, or of an image.",
		Args: argsOf(argDomain, argPool, Arg{Name: "imgUUID", Kind: kindUUID, Optional: true, Doc: "the image; blank: all"}),
		Methods: []Method{
			{"StorageDomain.getVolumes", "storagedomainID storagepoolID imageID", "uuidlist"},
			{"Image.getVolumes", "imageID storagepoolID storagedomainID", "uuidlist"},
		},
		Reply: []Member{{"uuidlist", "array of UUIDs"}}, Codes: with(activeCodes, spm.CodeUnknownImage),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			volumes, err := s.VolumesOf(ctx, get[uuid.UUID](a, "sdUUID"), get[uuid.UUID](a, "imgUUID"))
			ids := make([]string, len(volumes))
			for i, v := range volumes {
				ids[i] = v.Volume.String()
			}
			return Reply{"uuidlist": ids}, err
		},
	},
	{
		Name: "getVolumesDetails", Doc: "The volumes of a domain, or of an image, with all that is known of them.",
		Args:  argsOf(argDomain, Arg{Name: "imgUUID", Kind: kindUUID, Optional: true, Doc: "the image; blank: all"}),
		Reply: []Member{{"volumes", "array of objects as info in getVolumeInfo"}}, Codes: with(activeCodes, spm.CodeUnknownImage),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			volumes, err := s.VolumesOf(ctx, get[uuid.UUID](a, "sdUUID"), get[uuid.UUID](a, "imgUUID"))
			list := make([]any, len(volumes))
			for i, v := range volumes {
				list[i] = volumeInfo(v)
			}
			return Reply{"volumes": list}, err
		},
	},
	{
		Name: "setVolumePriority", Doc: "Say who waits first in a full pool: the lower.",
		Args:  append(slices.Clone(oneVolume), Arg{Name: "priority", Kind: kindInt, Doc: priorityDoc + "; a new volume has 0"}),
		Codes: with(volumeCodes, spm.CodeDamaged),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.SetPriority(ctx, at(a), int(get[int64](a, "priority"))))
		},
	},
}

// noSize is VDSM's number for a size of 0.
const noSize = 229

func createVolume(ctx context.Context, s spm.Storage, a args) (Reply, error) {
	v := spm.NewVolume{
		VolumeAt: at(a), Size: get[int64](a, "size"), Initial: get[int64](a, "initialSize"),
		Format: get[string](a, "volFormat"), Alloc: get[string](a, "preallocate"), Type: spm.Leaf, DiskType: get[string](a, "diskType"),
		Description: get[string](a, "desc"), ParentImage: get[uuid.UUID](a, "srcImgUUID"), Parent: get[uuid.UUID](a, "srcVolUUID"),
		Priority: int(get[int64](a, "priority")),
	}
	if v.Parent != uuid.Nil && v.ParentImage == uuid.Nil {
		v.ParentImage = v.Image
	}
	if v.Parent == uuid.Nil && v.Size == 0 {
		return nil, refuse(spm.CodeInvalid, noSize, "argument size: a volume without a parent needs one")
	}
	return begun(s.CreateImageVolume(ctx, v))
}
