package verbs

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/spm"
)

const referencePath = "../../docs/api.md"

// The reference is what the table says.
func TestReference(t *testing.T) {
	want := reference()
	if *Update {
		require.NoError(t, os.WriteFile(referencePath, []byte(want), 0o644))
	}
	got, err := os.ReadFile(referencePath)
	require.NoError(t, err)
	require.Equal(t, want, string(got), "stale: write it with: go test ./spm/verbs -run TestReference -update")
}

// reference is docs/api.md.
func reference() string {
	var b strings.Builder
	b.WriteString(head)
	b.WriteString("\n## Arguments\n\n| type | what it may be |\n|---|---|\n")
	for _, k := range kinds {
		fmt.Fprintf(&b, "| %s | %s |\n", k.Type, k.Doc)
	}
	b.WriteString("\n## Verbs\n\nEvery verb can answer " + numbersOf(&Verb{Codes: everywhere}) + " beside its own errors.\n")
	for i := range Table {
		section(&b, &Table[i])
	}
	b.WriteString("\n## Codes\n\n| code | ours | VDSM's name | meaning |\n|---|---|---|---|\n")
	all := slices.Concat(codes, numbersOfVerbs)
	slices.SortStableFunc(all, func(a, b code) int { return cmp.Compare(a.Number, b.Number) })
	for _, c := range all {
		fmt.Fprintf(&b, "| %d | %d | %s | %s |\n", c.Number, c.Code, cmp.Or(c.Name, "none"), c.Doc)
	}
	b.WriteString(tail)
	return b.String()
}

// section writes one verb.
func section(b *strings.Builder, v *Verb) {
	fmt.Fprintf(b, "\n### %s\n\n`%s`\n\n%s", v.Name, v.signature(), v.Doc)
	if !v.VDSM {
		b.WriteString(" (ours)")
	}
	b.WriteString("\n\n")
	if len(v.Args) > 0 {
		b.WriteString("| argument | type | meaning |\n|---|---|---|\n")
	}
	for _, a := range v.Args {
		kind := a.Kind.Type
		if a.Optional {
			kind += ", optional"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", a.Name, kind, a.Doc)
	}
	if len(v.Args) > 0 {
		b.WriteString("\n")
	}
	for _, m := range v.Reply {
		fmt.Fprintf(b, "- answers `%s`: %s\n", m.Name, m.Doc)
	}
	if len(v.Reply) == 0 {
		b.WriteString("- answers the status only\n")
	}
	if errors := numbersOf(v); errors != "" {
		fmt.Fprintf(b, "- errors: %s\n", errors)
	}
	for _, m := range v.Methods {
		fmt.Fprintf(b, "- JSON-RPC of VDSM: `%s(%s)`%s\n", m.Name, parameters(m), result(m))
	}
}

// numbersOf are the numbers of a verb's codes, with their names.
func numbersOf(v *Verb) string {
	var out []string
	add := func(n int, is func(code) bool) {
		name := ""
		for _, k := range slices.Concat(codes, numbersOfVerbs) {
			if k.Number == n && is(k) {
				name = cmp.Or(k.Name, k.Doc)
			}
		}
		if text := fmt.Sprintf("%d %s", n, name); !slices.Contains(out, text) {
			out = append(out, text)
		}
	}
	for _, c := range v.Codes {
		add(v.failure(&spm.Error{Code: c}).Number, func(k code) bool { return k.Code == c })
	}
	for _, n := range v.more() {
		add(n, func(code) bool { return true })
	}
	return strings.Join(out, ", ")
}

// more are the numbers of a verb that are those of a reason, and not of a code.
func (v *Verb) more() []int {
	more := slices.Clone(v.Also)
	for _, a := range v.Args {
		more = append(more, a.Kind.numbers...)
	}
	return more
}

func parameters(m Method) string {
	names := strings.Fields(m.Params)
	for i := range names {
		names[i], _, _ = strings.Cut(names[i], "=")
	}
	return strings.Join(names, ", ")
}

func result(m Method) string {
	switch m.Result {
	case "":
		return ", answers true"
	case "*":
		return ", answers all of that"
	}
	return ", answers " + m.Result
}

const head = `<!-- Written by: go test ./spm/verbs -run TestReference -update. Do not edit. -->
# The API of the pool manager

` + "`tidemark spm`" + ` answers on its unix socket. Who may connect may remove volumes.

| request | protocol |
|---|---|
| ` + "`POST /RPC2`, or `Content-Type: text/xml`" + ` | XML-RPC |
| ` + "`POST`, `Content-Type: application/json`" + ` | JSON-RPC 2.0, one request or a batch |
| ` + "`GET /events`" + ` | server-sent events |

The verbs have the names, the order of arguments and the replies of VDSM's storage API. Over XML-RPC arguments are
given by position; a nil is an argument that is not given. Over JSON-RPC they are given by position or by name, and
VDSM's own ` + "`Class.method`" + ` names work with VDSM's parameters and results. ` + "`Volume.create`, `Volume.list`, `Volume.getInfo`," + `
` + "`Volume.extend`, `Volume.reduce`, `Volume.remove`, `Pool.getInfo` and `Pool.watch`" + ` are methods of our own
(package spm, wire.go), which ` + "`tidemark volume` and `tidemark nbd --spm`" + ` use.

A verb that succeeds answers an object with ` + "`status: {code: 0, message: \"OK\"}`" + ` and what its section says. One that
fails answers over XML-RPC ` + "`status: {code, message}`" + ` with another code, and over JSON-RPC an error object with that code,
and ours in ` + "`data.code`" + `. A fault of XML-RPC, or a negative code, means that the request was not understood, and nothing
was done. Sizes in replies are decimal strings of bytes.

A verb that answers the UUID of a task has checked and persisted it; what becomes of it says getTaskStatus. It stays
until clearTask; of more than 500 the oldest that has ended goes, and after a day every one that has. The errors of such a verb are also those that the task may end with, beside 411, which is that it was
stopped.

## Events

` + "`GET /events?after=NUMBER&kinds=KIND,...`" + ` answers ` + "`text/event-stream`" + `, and goes on until the client leaves: first the events
that are kept after that number, or after the one of the header ` + "`Last-Event-ID`" + `, then each as it happens. ` + "`id`" + ` is the number,
` + "`event`" + ` the kind, ` + "`data`" + ` an object: number, time, kind, name, volume_uuid, domain_uuid, task_uuid, bytes, since, granted, state,
level, of which those are missing that say nothing. Numbers begin anew with each manager; a number that has not been
given yet means all that are kept. A client that does not read for 10 seconds is left. A kind that does not exist
has the HTTP status 400.

| kind | what has happened |
|---|---|
| task | a task has gone to state |
| extended | a volume has been granted bytes more |
| level | a domain's use has passed a watermark: level is ok, warn or critical |
| no-space | a request for bytes was refused: the domain is full |
| waits, waits-no-more | a volume waits for bytes; it has them (granted), or has given up |
| tight, tight-no-more | idle volumes are asked for their headroom |
`

const tail = `
## Deviations from VDSM

| what | why |
|---|---|
| Only LOCALFS, FCP and ISCSI domains of class Data and version 5 | there are directories and volume groups; ISCSI means a volume group on devices that the host has, and no session is made |
| connectStorageServer takes directories beneath the host's roots, and its devices only; the address of a block connection is devices separated by commas | nothing else of the host may be touched |
| the place of a block domain is the name of its volume group, not its UUID | the volume group is found by its tags, and its name is what LVM's tools show |
| hostID, scsiKey, prevID, prevLVER, recoveryMode, scsiFencing, maxHostID, domVersion of spmStart and the lease times of createStoragePool and reconstructMaster are ignored | there is one host |
| an integer size or initialSize of createVolume is in 512-byte sectors in both protocols | VDSM's old API; its newer one takes strings only, and these are bytes here too |
| diskType takes the numbers 0 to 8, and all mean DATA | programs pass volume types and old disk types there |
| Booleans of other types than boolean, 0, 1, "true", "false" are refused | VDSM takes every other string for false |
| a wrong number of arguments has code 1000 | VDSM answers a fault, or 200 |
| deactivateStorageDomain also moves the role from a master that has vanished | VDSM answers 379, and its client has to use reconstructMaster; who manages the pool knows what it is, and its tasks |
| reconstructMaster takes a pool that is connected, unless this host manages it, and is refused with 347 where a domain is there that is its master | what is known of the pool is kept; there are never two masters |
| postZero, force and discard: discard is ignored, force means also an illegal volume | the storage decides itself whether it discards |
| addBitmaps and bitmap of createVolume, backing and baseID of measureVolume have their defaults only; sequence is ignored | there are no bitmaps; a copy has everything below it |
| mergeSnapshots keeps the ancestor | as VDSM's newer SDM.merge; the oldest one kept the successor |
| prepareImage serves the image over NBD, and path is its address | there is no file or device that a guest could open |
| what is in a domain is asked of the SPM only: prepareImage, teardownImage, getImagesList and all verbs about volumes answer 654 on a host that is none | there is one host, and the manager of a domain is the SPM's |
| the DiskAlias of an image is a name, and unique in the pool: createVolume and copyImage fail with 212, once their task runs | our command line finds images by it |
| a task that has failed has the result cleanSuccess, and cleanFailure if it was given up | the former has been rolled back; VDSM says cleanFailure also where nothing was to be rolled back |
| tasks outlive the manager and the role, and are kept for a day, or until there are 500 | VDSM forgets those of hosts when it restarts |
| a description of more than 210 bytes is cut, and of JSON with a DiskAlias the DiskDescription | VDSM cuts after 210 characters wherever that is; the metadata has room for bytes, and the alias is the name |
| getTaskStatus, getVolumeInfo, getStorageDomainStats and others have more members | VDSM's are there with VDSM's meaning; the others are said to be ours |
| volume groups have no metadata statistics: mdasize and mdafree are 0, mdavalid and mdathreshold true | they are in our own Pool.getInfo |
| a pool that is not connected has the code 309, as one that is not known | VDSM has one number for both |
| JSON-RPC: Volume.create and Volume.getInfo of VDSM are not there by these names | they are our own: createVolume and getVolumeInfo are the same verbs |
`
