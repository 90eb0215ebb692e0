package task

import (
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/google/uuid"
)

// recordVersion is what we write. What is newer is left alone.
const recordVersion = 1

// The parts of a record are bounded, so that a task which could be begun can also
// be ended: its record never outgrows what every store takes.
const (
	argsMax    = 8 << 10 // bytes of JSON: 200 volumes by UUID
	resultMax  = 3 << 10 // bytes of JSON
	messageMax = 1 << 10 // bytes of an error's message, as JSON; there are two
	// recordMax is the sum, with the rest: names, times, numbers.
	recordMax = 16<<10 - copyHeader
)

// encode returns the bytes of a record.
func encode(r Record) ([]byte, error) {
	p, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("record of task %s: %w", r.ID, err)
	}
	if len(p) > recordMax {
		return nil, fmt.Errorf("record of task %s has %d bytes, at most %d are possible", r.ID, len(p), recordMax)
	}
	return p, nil
}

// decode returns the record that p holds. Of a newer version nothing is checked
// but that it says which task it is.
func decode(p []byte) (Record, error) {
	if len(p) > recordMax {
		return Record{}, fmt.Errorf("%d bytes, a record has at most %d", len(p), recordMax)
	}
	var head struct {
		Version int       `json:"version"`
		ID      uuid.UUID `json:"task_uuid"`
	}
	if err := json.Unmarshal(p, &head); err != nil {
		return Record{}, fmt.Errorf("not a record: %w", err)
	}
	switch {
	case head.Version < 1:
		return Record{}, fmt.Errorf("record version %d, expected 1 to %d", head.Version, recordVersion)
	case head.ID == uuid.Nil:
		return Record{}, errors.New("a record without task_uuid")
	}
	var r Record
	err := json.Unmarshal(p, &r)
	switch {
	case head.Version > recordVersion:
		r.Version, r.ID = head.Version, head.ID
		return r, nil
	case err != nil:
		return Record{}, fmt.Errorf("record of task %s: %w", head.ID, err)
	case !r.State.known():
		return Record{}, fmt.Errorf("record of task %s: unknown state %q", head.ID, r.State)
	case r.Step < 0:
		return Record{}, fmt.Errorf("record of task %s: step %d", head.ID, r.Step)
	case r.Kind == "":
		return Record{}, fmt.Errorf("record of task %s: no kind", head.ID)
	}
	return r, nil
}

// at is the record's position.
func (r Record) at() position { return position{r.State, r.Step, r.Undo} }

// moved is the record at another position.
func (r Record) moved(p position) Record {
	if !p.undo {
		r.Reached = max(r.Reached, p.step)
	}
	r.State, r.Step, r.Undo, r.Blocked = p.state, p.step, p.undo, nil
	return r
}

// failureOf is an error as it is persisted; its message is cut where it is too
// long.
func failureOf(code int, err error) *Failure {
	return &Failure{code, shorten(err.Error(), messageMax)}
}

// shorten cuts a message so that it has at most n bytes as JSON.
func shorten(s string, n int) string {
	size, cut := 2, 0 // with the quotes; as much as leaves room for more
	for i, r := range s {
		if size+len(more) <= n {
			cut = i
		}
		if size += encodedLength(r); size > n {
			return s[:cut] + more
		}
	}
	return s
}

const more = " ..."

// encodedLength is at least what encoding/json makes of a character.
func encodedLength(r rune) int {
	if r >= ' ' && r < utf8.RuneSelf && r != '"' && r != '\\' && r != '<' && r != '>' && r != '&' {
		return 1
	}
	return 6
}
