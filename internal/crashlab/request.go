package crashlab

import (
	"fmt"
	"strings"
)

// Kind is what a request asks for.
type Kind uint8

// The kinds of requests.
const (
	Write       Kind = iota + 1
	WriteFUA         // durable when it is acknowledged
	WriteLater       // begun, and asked for again as a Write where that does not work
	Zero             // zeroes, keeping the space
	ZeroUnmap        // zeroes, giving the space back
	Discard          // what is read afterwards is read, and must stay so
	Flush            //
	Wait             // until everything that was asked for has ended
	Resize           // the disk becomes N sectors large
	GiveBack         // the File is granted N sectors more, and the image gives back what it does not use
	Reopen           // close, open again: everything is durable
	Amend            // close, make the reference counts N bits wide, open again
	Kill             // the process dies, and another one opens the image in the same boot
	FailSync         // the next sync of the File fails and drops its data; later ones say that all is well
	FailWrite        // the N-th write of the File from now on fails and does nothing
	EvictReopen      // what a failed sync dropped reads as the disk has it, and the image is opened again
	kindEnd
)

var kindNames = [kindEnd]string{"", "write", "fua", "later", "zero", "unmap", "discard", "flush", "wait", "resize", "giveback", "reopen", "amend", "kill", "failsync", "failwrite", "evict"}

func (k Kind) String() string { return kindNames[k] }

// alone says that a request is done when nothing else is.
func (k Kind) alone() bool {
	return k >= Wait
}

// counts says that a request has a number, and no range.
func (k Kind) counts() bool { return k == Resize || k == GiveBack || k == Amend || k == FailWrite }

// fails says that what comes behind a request may fail, until the image is opened
// again past the host's cache.
func (k Kind) fails() bool { return k == FailSync || k == FailWrite }

// A Request is one request of a client, or what is done to the process.
type Request struct {
	Kind     Kind
	First, N int64 // sectors; Resize: N is the new size; Amend: bits; FailWrite: which
	// Client says who asks. The requests of one client follow each other; those
	// of several overlap in time, between two requests that are done alone.
	Client int
	// Slow: what it has the File do, a write of its bytes, a sync or a discard, is on
	// its way there until all clients are done, but for those that wait for such.
	// It is submitted before what the other clients begin with.
	Slow bool
}

func (r Request) String() string {
	s := r.Kind.String()
	switch {
	case r.Kind.counts():
		s += fmt.Sprintf(" %d", r.N)
	case r.Kind <= Discard:
		s += fmt.Sprintf(" %d+%d", r.First, r.N)
	}
	if r.Client > 0 {
		s += fmt.Sprintf("@%d", r.Client)
	}
	if r.Slow {
		s += slowMark
	}
	return s
}

// slowMark is the end of a slow request.
const slowMark = "~"

// Format writes a script in one line, as [Parse] reads it.
func Format(script []Request) string {
	var parts []string
	for _, r := range script {
		parts = append(parts, r.String())
	}
	return strings.Join(parts, "; ")
}

// Parse reads a script.
func Parse(s string) ([]Request, error) {
	var script []Request
	for part := range strings.SplitSeq(s, ";") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		r, err := parseRequest(part)
		if err != nil {
			return nil, err
		}
		script = append(script, r)
	}
	return script, nil
}

func parseRequest(s string) (r Request, err error) {
	fast, slow := strings.CutSuffix(s, slowMark)
	r.Slow = slow
	rest, client, ok := strings.Cut(fast, "@")
	if ok {
		_, err = fmt.Sscanf(client, "%d", &r.Client)
	}
	name, args, _ := strings.Cut(rest, " ")
	for k, known := range kindNames {
		if known == name && name != "" {
			r.Kind = Kind(k)
		}
	}
	switch {
	case err != nil:
	case r.Kind == 0:
		err = fmt.Errorf("an unknown name")
	case r.Kind.counts():
		_, err = fmt.Sscanf(args, "%d", &r.N)
	case r.Kind <= Discard:
		_, err = fmt.Sscanf(args, "%d+%d", &r.First, &r.N)
	}
	if err != nil {
		return r, fmt.Errorf("request %q: expected a name, a range such as 3+5, a client such as @1: %w", s, err)
	}
	return r, nil
}
