package verbs

import (
	"context"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm"
)

// Table is every verb, in the order of the reference.
var Table = slices.Concat(domainVerbs, poolVerbs, imageVerbs, volumeVerbs, taskVerbs)

// everywhere are the errors that every verb can answer.
var everywhere = []spm.Code{spm.CodeInvalid, spm.CodeInternal, spm.CodeStopping}

// The errors that many verbs have in common. A verb that begins a task has those of the
// task as well.
var (
	domainCodes = []spm.Code{spm.CodeUnknownDomain, spm.CodeDamaged, spm.CodeForeign, spm.CodeNewerVersion, spm.CodeUnsupported} // looks at a domain
	editCodes   = with(domainCodes, spm.CodeNotFound, spm.CodeOutsideRoots, spm.CodeInUse)                                       // changes one: its place may have gone
	poolCodes   = with(domainCodes, spm.CodeNotConnected, spm.CodeWrongMaster)                                                   // reads what the master says of its pool
	memberCodes = with(editCodes, spm.CodeNotConnected, spm.CodeNotSPM, spm.CodeWrongState)                                      // changes a domain of a pool
	activeCodes = []spm.Code{spm.CodeNotConnected, spm.CodeNotSPM, spm.CodeWrongState, spm.CodeUnknownDomain, spm.CodeNotActive} // looks at what is in a domain
	imageCodes  = with(activeCodes, spm.CodeWrongPool, spm.CodeUnknownImage)
	volumeCodes = with(imageCodes, spm.CodeNotFound)
)

// with adds codes to those that several verbs have.
func with(codes []spm.Code, more ...spm.Code) []spm.Code { return slices.Concat(codes, more) }

// The arguments that many verbs have in common.
var (
	argPool    = Arg{Name: "spUUID", Kind: kindUUID, Doc: "the pool"}
	argDomain  = Arg{Name: "sdUUID", Kind: kindUUID, Doc: "the domain"}
	argImage   = Arg{Name: "imgUUID", Kind: kindUUID, Doc: "the image"}
	argVolume  = Arg{Name: "volUUID", Kind: kindUUID, Doc: "the volume; blank: the leaf of the image"}
	argVM      = Arg{Name: "vmUUID", Kind: kindIgnored, Doc: "of VDSM"}
	argZero    = Arg{Name: "postZero", Kind: kindBool, Optional: true, Doc: "overwrite the data with zeros first"}
	argForce   = Arg{Name: "force", Kind: kindBool, Optional: true, Doc: "also if it is illegal; what it has of its image is lost with it"}
	argOptions = ignored("options")
)

// ignored is an argument of VDSM that means nothing here.
func ignored(name string) Arg {
	return Arg{Name: name, Kind: kindIgnored, Optional: true, Doc: "of VDSM"}
}

// argsOf joins arguments.
func argsOf(a ...Arg) []Arg { return a }

// at is the volume that the common arguments name.
func at(a args) spm.VolumeAt {
	return spm.VolumeAt{Pool: get[uuid.UUID](a, "spUUID"), Domain: get[uuid.UUID](a, "sdUUID"),
		Image: get[uuid.UUID](a, "imgUUID"), Volume: get[uuid.UUID](a, "volUUID")}
}

// taskReply is the reply of a verb that begins a task.
var taskReply = []Member{{"uuid", "UUID of the task"}}

// begun answers with the id of a task.
func begun(id uuid.UUID, err error) (Reply, error) { return Reply{"uuid": id.String()}, err }

// nothing answers with the status only.
func nothing(err error) (Reply, error) { return nil, err }

// byName are the verbs of the table, which themselves ask for each other's numbers.
var byName = map[string]*Verb{}

func init() {
	for i := range Table {
		byName[Table[i].Name] = &Table[i]
	}
}

// Find returns the verb of that name, or nil.
func Find(name string) *Verb { return byName[name] }

type call = func(ctx context.Context, s spm.Storage, a args) (Reply, error)
