package verbs

import (
	"fmt"
	"slices"
	"strings"

	"tidemark/spm"
	"tidemark/spm/task"
)

// A word is a constant of VDSM: its number, its name, and what it is here. One that
// we do not have has the number of the error that says so, and the reason.
type word[T any] struct {
	number int64
	name   string
	is     T
	doc    string
	error  int
}

// The numbers and names of lib/vdsm/storage/constants.py, sd.py and image.py.
var (
	domainTypes = []word[spm.DomainType]{
		{number: 4, name: "LOCALFS", is: spm.DomainLocal, doc: "a directory of the host"},
		{number: 2, name: "FCP", is: spm.DomainBlock, doc: "a volume group on devices that the host has"},
		{number: 3, name: "ISCSI", is: spm.DomainBlock, doc: "the same: sessions are not made here"},
		{number: 1, name: "NFS", error: 372}, {number: 5, name: "CIFS", error: 372},
		{number: 6, name: "POSIXFS", error: 372}, {number: 7, name: "GLUSTERFS", error: 372},
		{number: 8, name: "MANAGEDBLOCK", error: 372},
	}
	classes = []word[string]{
		{number: 1, name: "Data", is: "Data"},
		{number: 2, name: "Iso", error: 386}, {number: 3, name: "Backup", error: 386},
	}
	formats = []word[string]{
		{number: 4, name: spm.Cow, is: spm.Cow, doc: "QCOW2"},
		{number: 5, name: spm.Raw, is: spm.Raw},
	}
	allocs = []word[string]{
		{number: 1, name: spm.Preallocated, is: spm.Preallocated},
		{number: 2, name: spm.Sparse, is: spm.Sparse},
	}
	volTypes = []word[string]{
		{number: 6, name: spm.Shared, is: spm.Shared, doc: "a template"},
		{number: 8, name: spm.Leaf, is: spm.Leaf},
		{number: 7, name: spm.Internal, error: 1000},
	}
	operations = []word[bool]{
		{number: 1, name: "COPY", is: true}, {number: 2, name: "MOVE", is: false},
	}
	diskTypes = []string{"DATA", "ISOF", "MEMD", "MEMM", "OVFS", "HEVD", "HESD", "HEMD", "HECI", "SCRD"}
)

// wordKind is the kind of argument that is one of the words, by number or name.
func wordKind[T any](name string, words []word[T], zero T) *Kind {
	k := &Kind{Type: name, zero: zero}
	var doc []string
	for _, w := range words {
		if w.error != 0 {
			if w.error != Number(spm.CodeInvalid) && !slices.Contains(k.numbers, w.error) {
				k.refusing(w.error)
			}
			continue
		}
		text := fmt.Sprintf("%s or %d", w.name, w.number)
		if w.doc != "" {
			text += " (" + w.doc + ")"
		}
		doc = append(doc, text)
	}
	k.Doc = strings.Join(doc, ", ")
	k.decode = func(v any) (any, error) {
		for _, w := range words {
			if !w.means(v) {
				continue
			}
			if w.error != 0 {
				return nil, unsupported(w.error, "there is no %s %s here, expected %s", name, w.name, k.Doc)
			}
			return w.is, nil
		}
		return nil, invalid("expected %s, found %s", k.Doc, show(v))
	}
	return k
}

// means reports whether v is the word.
func (w word[T]) means(v any) bool {
	if n, err := decodeInt(v); err == nil {
		return n == w.number
	}
	s, ok := v.(string)
	return ok && strings.EqualFold(s, w.name)
}

// taskWord is how VDSM calls the state of a task, and its result.
func taskWord(t spm.TaskStatus) (word, result string) {
	switch task.State(t.State) {
	case task.Queued, task.Running:
		return "running", ""
	case task.Aborting:
		return "aborting", ""
	case task.Recovering:
		return "cleaning", ""
	case task.Finished:
		return "finished", "success"
	case task.Failed:
		if t.GivenUp {
			return "finished", "cleanFailure"
		}
		return "finished", "cleanSuccess"
	}
	return "unknown", ""
}
