package verbs

import "tidemark/spm"

// A code is an error of ours with the number that it has in a reply: VDSM's, with
// the name of VDSM's exception, or ours.
type code struct {
	Code   spm.Code
	Number int
	Name   string
	Doc    string
}

// codes are all errors. The numbers are those of lib/vdsm/storage/exception.py;
// ours, beyond 1001, are none of VDSM's.
var codes = []code{
	{spm.CodeInternal, 200, "StorageException", "an I/O error, or one of the manager: see its log"},
	{spm.CodeInvalid, 1000, "InvalidParameterException", "the arguments are not right"},
	{spm.CodeNewerVersion, 395, "CurrentVersionTooAdvancedError", "made by a newer version"},
	{spm.CodeNotFound, 201, "VolumeDoesNotExist", "no such volume"},
	{spm.CodeExists, 212, "VolumeAlreadyExists", "there is one already"},
	{spm.CodeInUse, 203, "VolumeIsBusy", "somebody uses it"},
	{spm.CodePoolFull, 397, "NoSpaceLeftOnDomain", "the domain has not the space"},
	{spm.CodeBound, 1007, "", "the volume may not be larger"},
	{spm.CodeStale, 911, "GenerationMismatch", "the request is about an older generation"},
	{spm.CodeWrongPool, 309, "StoragePoolUnknown", "the request is for another pool"},
	{spm.CodeStopping, 3001, "ShuttingDownError", "the manager is going away"},
	{spm.CodeDamaged, 207, "VolumeMetadataReadError", "the metadata, or the image, is damaged"},
	{spm.CodeUnknownDomain, 358, "StorageDomainDoesNotExist", "no such domain is connected"},
	{spm.CodeUnknownPool, 309, "StoragePoolUnknown", "no such pool"},
	{spm.CodeUnknownImage, 268, "ImageDoesNotExistInSD", "no such image in the domain"},
	{spm.CodeUnknownTask, 401, "UnknownTask", "no such task, or it has been cleared"},
	{spm.CodeWrongState, 347, "StorageDomainIllegalStateError", "in another state than the verb needs"},
	{spm.CodeNotSPM, 654, "SpmStatusError", "this host does not manage the pool"},
	{spm.CodeWrongMaster, 324, "StoragePoolWrongMaster", "another domain is the master"},
	{spm.CodeWrongVersion, 324, "StoragePoolWrongMaster", "the master has another version"},
	{spm.CodeNotConnected, 309, "StoragePoolUnknown", "the pool is not connected"},
	{spm.CodeForeign, 361, "StorageDomainNotEmpty", "something else lies there; nothing was written"},
	{spm.CodeOutsideRoots, 1022, "", "the place lies beneath none of the host's roots"},
	{spm.CodeTooManyTasks, 405, "AddTaskError", "there are too many tasks: clear some"},
	{spm.CodeUnfinished, 403, "TaskNotFinished", "a task has not ended"},
	{spm.CodeHasChildren, 204, "VolumeImageHasChildren", "others are based on the volume"},
	{spm.CodeIllegal, 227, "prepareIllegalVolumeError", "the volume's data are not whole"},
	{spm.CodeNotInPool, 353, "StorageDomainNotInPool", "the domain is of no pool, or of another"},
	{spm.CodeAttached, 380, "StorageDomainAlreadyAttached", "the domain is of a pool"},
	{spm.CodeActive, 382, "StorageDomainActive", "it is active"},
	{spm.CodeIsMaster, 383, "CannotDetachMasterStorageDomain", "the domain is the master"},
	{spm.CodeOtherPool, 323, "CannotConnectMultiplePools", "the host is connected to another pool"},
	{spm.CodeAborted, 411, "TaskAborted", "the task was stopped, and rolled back"},
	{spm.CodeNotPrepared, 230, "VolumeWasNotPreparedBeforeTeardown", "the image is not served"},
	{spm.CodeUnsupported, 2009, "UnsupportedOperation", "VDSM has it, and we do not"},
	{spm.CodeDomainTooSmall, 1035, "", "the place is too small for a domain"},
	{spm.CodeNotActive, 369, "StorageDomainNotActive", "the domain is not active"},
}

// numbersOfVerbs are the numbers that a code has in some verbs only.
var numbersOfVerbs = []code{
	{spm.CodeNotFound, 453, "StorageServerValidationError", "there is no such directory"},
	{spm.CodeInvalid, 229, "createVolumeSizeError", "a volume without a parent needs a size"},
	{spm.CodeExists, 365, "StorageDomainAlreadyExists", "there is a domain already"},
	{spm.CodeExists, 316, "StoragePoolAlreadyExists", "there is a pool already"},
	{spm.CodeWrongState, 381, "StorageDomainStateTransitionIllegal", "the domain is in another state"},
	{spm.CodeWrongState, 922, "UnexpectedVolumeState", "the volume is in another state"},
	{spm.CodeWrongState, 410, "TaskStateError", "the task is in another state"},
	{spm.CodeUnfinished, 406, "TaskInProgress", "tasks of the pool have not ended"},
	{spm.CodeIllegal, 226, "createIllegalVolumeSnapshotError", "the parent's data are not whole"},
	{spm.CodeAttached, 391, "CannotFormatAttachedStorageDomain", "the domain is of a pool"},
	{spm.CodeActive, 656, "IsSpm", "this host manages the pool"},
	{spm.CodeActive, 325, "StoragePoolConnected", "the pool is connected"},
	{spm.CodeIsMaster, 310, "StoragePoolHasPotentialMaster", "another domain must become the master first"},
	{spm.CodeNotConnected, 360, "StorageDomainFSNotMounted", "the place is not connected"},
	{spm.CodeDamaged, 753, "MetaDataValidationError", "the domain's metadata is damaged"},
	{spm.CodeUnsupported, 372, "StorageDomainTypeError", "there are no domains of that type"},
	{spm.CodeUnsupported, 386, "StorageDomainClassError", "there are no domains of that class"},
	{spm.CodeUnsupported, 394, "UnsupportedDomainVersion", "there are no domains of that version"},
}

// Number is the number of a code in a reply, outside the verbs that have another, and in
// what a task says of itself.
func Number(c spm.Code) int {
	for _, e := range codes {
		if e.Code == c {
			return e.Number
		}
	}
	return int(c)
}
