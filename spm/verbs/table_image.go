package verbs

import (
	"context"

	"github.com/google/uuid"

	"tidemark/spm"
)

var imageVerbs = []Verb{
	{
		Name: "copyImage", VDSM: true, Doc: "Copy a volume, with everything below it, to one new volume of a new image.",
		Args: argsOf(argDomain, argPool, argVM,
			Arg{Name: "srcImgUUID", Kind: kindUUID, Doc: "the image of the volume"},
			Arg{Name: "srcVolUUID", Kind: kindUUID, Doc: "the volume; blank: the leaf"},
			Arg{Name: "dstImgUUID", Kind: kindNewUUID, Doc: "the new image"},
			Arg{Name: "dstVolUUID", Kind: kindNewUUID, Doc: "the new volume"},
			Arg{Name: "description", Kind: kindString, Optional: true, Doc: "of the new volume, as desc of createVolume"},
			Arg{Name: "dstSdUUID", Kind: kindUUID, Optional: true, Doc: "the domain of the new image; blank: the same"},
			Arg{Name: "volType", Kind: kindVolType, Optional: true, Default: spm.Shared, Doc: "SHARED if it is not given"},
			Arg{Name: "volFormat", Kind: kindFormatOrSame, Optional: true, Doc: "of the new volume"},
			Arg{Name: "preallocate", Kind: kindAllocOrSame, Optional: true, Doc: "of the new volume"}, argZero, argForce),
		Methods: []Method{{"Volume.copy", "volumeID=srcVolUUID storagepoolID storagedomainID imageID=srcImgUUID dstSdUUID dstImgUUID dstVolUUID " +
			"desc=description volType volFormat preallocate postZero force discard", "uuid"}},
		Reply: taskReply, As: volumeNumbers,
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeExists, spm.CodePoolFull, spm.CodeUnsupported, spm.CodeTooManyTasks),
		call:  copyImage,
	},
	{
		Name: "moveImage", VDSM: true, Doc: "Move or copy an image with its chain to another domain of the pool.",
		Args: argsOf(argPool,
			Arg{Name: "srcDomUUID", Kind: kindUUID, Doc: "the domain that has it"},
			Arg{Name: "dstDomUUID", Kind: kindUUID, Doc: "the domain that gets it"}, argImage, argVM,
			Arg{Name: "op", Kind: kindOperation, Doc: "what becomes of the original"}, argZero, argForce),
		Methods: []Method{{"Image.move", "imageID storagepoolID storagedomainID=srcDomUUID dstSdUUID=dstDomUUID operation=op postZero force discard", "uuid"}},
		Reply:   taskReply, As: volumeNumbers,
		Codes: with(imageCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeHasChildren, spm.CodeExists, spm.CodePoolFull,
			spm.CodeUnsupported, spm.CodeTooManyTasks),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.MoveImage(ctx, spm.MoveImage{
				Pool: get[uuid.UUID](a, "spUUID"), From: get[uuid.UUID](a, "srcDomUUID"), To: get[uuid.UUID](a, "dstDomUUID"),
				Image: get[uuid.UUID](a, "imgUUID"), Copy: get[bool](a, "op"), PostZero: get[bool](a, "postZero"), Force: get[bool](a, "force"),
			}))
		},
	},
	{
		Name: "deleteImage", VDSM: true,
		Doc: "Remove an image with all its volumes. With force also what is illegal or damaged, and a task that has the image and does not go on (recovering) " +
			"is given up, as by stopTask.",
		Args:    argsOf(argDomain, argPool, argImage, argZero, argForce),
		Methods: []Method{{"Image.delete", "imageID storagepoolID storagedomainID postZero force discard", "uuid"}},
		Reply:   taskReply, Codes: with(imageCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeHasChildren, spm.CodeTooManyTasks), As: volumeNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.DeleteImage(ctx, spm.DeleteImage{
				Pool: get[uuid.UUID](a, "spUUID"), Domain: get[uuid.UUID](a, "sdUUID"), Image: get[uuid.UUID](a, "imgUUID"),
				PostZero: get[bool](a, "postZero"), Force: get[bool](a, "force"),
			}))
		},
	},
	{
		Name: "mergeSnapshots", VDSM: true,
		Doc: "Merge a volume into one that it is based on. The ancestor stays, with the data of the successor; the successor goes, " +
			"with what is between them. If the image is served, the successor must be its leaf and the ancestor the leaf's parent.",
		Args: argsOf(argDomain, argPool, argVM, argImage,
			Arg{Name: "ancestor", Kind: kindNewUUID, Doc: "the volume that stays"},
			Arg{Name: "successor", Kind: kindNewUUID, Doc: "the volume that goes"}, argZero),
		Reply: taskReply, As: volumeNumbers,
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeInUse, spm.CodeHasChildren, spm.CodeStale, spm.CodeUnfinished, spm.CodePoolFull,
			spm.CodeBound, spm.CodeUnsupported, spm.CodeTooManyTasks),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.MergeVolumes(ctx, spm.MergeVolumes{
				Pool: get[uuid.UUID](a, "spUUID"), Domain: get[uuid.UUID](a, "sdUUID"), Image: get[uuid.UUID](a, "imgUUID"),
				Ancestor: get[uuid.UUID](a, "ancestor"), Successor: get[uuid.UUID](a, "successor"), PostZero: get[bool](a, "postZero"),
			}))
		},
	},
	{
		Name: "getImagesList", VDSM: true, Doc: "The images of a domain.",
		Args:    argsOf(argDomain, argOptions),
		Methods: []Method{{"StorageDomain.getImages", "storagedomainID", "imageslist"}},
		Reply:   []Member{{"imageslist", "array of UUIDs"}}, Codes: activeCodes,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			images, err := s.Images(ctx, get[uuid.UUID](a, "sdUUID"))
			return Reply{"imageslist": texts(images)}, err
		},
	},
	{
		Name: "prepareImage", VDSM: true,
		Doc: "Serve a volume of an image over NBD, or find that it is served already. What serves it extends it, and outlives the manager.",
		Args: argsOf(argPool, argDomain, argImage, argVolume,
			Arg{Name: "allowIllegal", Kind: kindBool, Optional: true, Doc: "also a volume that is illegal"},
			Arg{Name: "readOnly", Kind: kindBool, Optional: true, Doc: "ours: nobody may write"}),
		Methods: []Method{{"Image.prepare", "storagepoolID storagedomainID imageID volumeID allowIllegal", "*"}},
		Reply: []Member{
			{"path", "the address: nbd+unix:///?socket=PATH"},
			{"info", "object: type (network), protocol (nbd), path, socket, control, pid, domainID, imageID, volumeID"},
			{"imgVolumesInfo", "array of objects, from the base to the leaf: domainID, imageID, volumeID, path"},
		},
		Codes: with(volumeCodes, spm.CodeDamaged, spm.CodeIllegal, spm.CodeHasChildren, spm.CodeInUse, spm.CodeUnfinished, spm.CodeUnsupported), As: volumeNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			p, err := s.PrepareImage(ctx, at(a), spm.PrepareOptions{ReadOnly: get[bool](a, "readOnly"), AllowIllegal: get[bool](a, "allowIllegal")})
			return prepared(p), err
		},
	},
	{
		Name: "teardownImage", VDSM: true, Doc: "Serve an image no more. One that is not served is no error.",
		Args:    argsOf(argPool, argDomain, argImage, Arg{Name: "volUUID", Kind: kindUUID, Optional: true, Doc: "the volume; blank: whichever is served"}),
		Methods: []Method{{"Image.teardown", "storagepoolID storagedomainID imageID volumeID", ""}},
		Codes:   with(imageCodes, spm.CodeInUse, spm.CodeUnfinished),
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.TeardownImage(ctx, at(a)))
		},
	},
}

func copyImage(ctx context.Context, s spm.Storage, a args) (Reply, error) {
	from := spm.VolumeAt{Pool: get[uuid.UUID](a, "spUUID"), Domain: get[uuid.UUID](a, "sdUUID"),
		Image: get[uuid.UUID](a, "srcImgUUID"), Volume: get[uuid.UUID](a, "srcVolUUID")}
	to := spm.VolumeAt{Pool: from.Pool, Domain: get[uuid.UUID](a, "dstSdUUID"),
		Image: get[uuid.UUID](a, "dstImgUUID"), Volume: get[uuid.UUID](a, "dstVolUUID")}
	if to.Domain == uuid.Nil {
		to.Domain = from.Domain
	}
	return begun(s.CopyImage(ctx, spm.CopyImage{
		From: from, To: to, Description: get[string](a, "description"),
		Format: get[string](a, "volFormat"), Alloc: get[string](a, "preallocate"), Type: get[string](a, "volType"),
	}))
}
