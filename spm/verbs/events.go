package verbs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"tidemark/spm"
)

const (
	// eventsIdle is how long nothing is written before a line that means nothing, so
	// that a client that has gone is noticed.
	eventsIdle = 15 * time.Second
	// eventsWrite is how long one write may take. Who does not read for so long is
	// left; he comes back with the number of the last event that he has seen.
	eventsWrite = 10 * time.Second
)

// eventsHandler tells events as server-sent events (WHATWG HTML, 9.2): id is the
// number of the event, event its kind, data an [spm.Event] as JSON. It keeps none:
// each client asks the storage for those after the one that it was told last, so a
// slow one holds up nobody.
//
//	GET /events?after=NUMBER&kinds=KIND,...
//
// It begins with the events after that number, or after the one of the header
// Last-Event-ID, and without either with all that are kept.
type eventsHandler struct{ storage spm.Storage }

func (h eventsHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "expected GET", http.StatusMethodNotAllowed)
		return
	}
	after, err := strconv.ParseInt(cmp.Or(r.Header.Get("Last-Event-ID"), r.FormValue("after"), "0"), 10, 64)
	if err != nil || after < 0 {
		http.Error(w, "Last-Event-ID or after: expected the number of an event", http.StatusBadRequest)
		return
	}
	s := eventStream{w: w, to: http.NewResponseController(w), kinds: map[string]bool{}}
	for kind := range strings.SplitSeq(r.FormValue("kinds"), ",") {
		switch {
		case kind == "":
		case slices.Contains(spm.EventKinds, kind):
			s.kinds[kind] = true
		default:
			http.Error(w, fmt.Sprintf("kinds: %q: expected some of %s", kind, strings.Join(spm.EventKinds, ",")), http.StatusBadRequest)
			return
		}
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	for err = s.write(": tidemark\n\n"); err == nil; {
		var events []spm.Event
		if events, err = h.next(r.Context(), after); err == nil {
			after, err = s.tell(events, after)
		}
	}
}

// next waits for events, not longer than a client may be without a sign of life.
func (h eventsHandler) next(ctx context.Context, after int64) ([]spm.Event, error) {
	wait, cancel := context.WithTimeout(ctx, eventsIdle)
	defer cancel()
	events, err := h.storage.WatchStorage(wait, after)
	if err != nil && ctx.Err() == nil && errors.Is(wait.Err(), context.DeadlineExceeded) {
		return nil, nil
	}
	return events, err
}

// An eventStream writes events to one client.
type eventStream struct {
	w     http.ResponseWriter
	to    *http.ResponseController
	kinds map[string]bool // none: all
}

// tell writes the events of the kinds that are wanted, and returns the number of
// the last one.
func (s *eventStream) tell(events []spm.Event, after int64) (int64, error) {
	var b strings.Builder
	for _, e := range events {
		after = e.Number
		if len(s.kinds) > 0 && !s.kinds[e.Kind] {
			continue
		}
		data, err := json.Marshal(e)
		if err != nil {
			return after, err
		}
		fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", e.Number, e.Kind, data)
	}
	if b.Len() == 0 {
		b.WriteString(":\n\n")
	}
	return after, s.write(b.String())
}

func (s *eventStream) write(text string) error {
	// A server in memory has no deadlines, and no client that could be slow.
	if err := s.to.SetWriteDeadline(time.Now().Add(eventsWrite)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	if _, err := s.w.Write([]byte(text)); err != nil {
		return err
	}
	return s.to.Flush()
}
