package verbs_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/spm"
)

// watch opens the stream of events.
func (e *endpoint) watch(t *testing.T, query, last string) (*bufio.Reader, func()) {
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://spm/events"+query, nil)
	require.NoError(t, err)
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	answer, err := e.http.Do(r)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, answer.StatusCode)
	require.Equal(t, "text/event-stream", answer.Header.Get("Content-Type"))
	return bufio.NewReader(answer.Body), func() {
		cancel()
		answer.Body.Close() //nolint:errcheck // it ends early
	}
}

// event reads the next event: its fields, and the event in data.
func event(t *testing.T, r *bufio.Reader) (fields map[string]string, e spm.Event) {
	fields = map[string]string{}
	for {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case name != "" && name[0] != ':':
			fields[name] = value
		case line == "\n" && len(fields) > 0:
			require.NoError(t, json.Unmarshal([]byte(fields["data"]), &e))
			return fields, e
		}
	}
}

func TestEvents(t *testing.T) {
	f := newFake()
	e := serve(t, f)
	f.Tell(spm.Event{Kind: spm.EventTask, State: "running", TaskUUID: id(unknown)})
	f.Tell(spm.Event{Kind: spm.EventExtended, Bytes: 5})
	all, end := e.watch(t, "", "")
	fields, got := event(t, all)
	require.Equal(t, "1", fields["id"])
	require.Equal(t, "task", fields["event"])
	require.Equal(t, spm.Event{Number: 1, Time: got.Time, Kind: "task", State: "running", TaskUUID: id(unknown)}, got)
	_, got = event(t, all)
	require.Equal(t, int64(5), got.Bytes)
	f.Tell(spm.Event{Kind: spm.EventLevel, Level: "warn", DomainUUID: id(domainID)}) // while it waits
	_, got = event(t, all)
	require.Equal(t, "warn", got.Level)
	end()

	for _, resumed := range [][2]string{{"", "2"}, {"?after=2", ""}, {"?after=1", "2"}} {
		again, end := e.watch(t, resumed[0], resumed[1])
		fields, _ = event(t, again)
		require.Equal(t, "3", fields["id"], resumed)
		end()
	}
	some, end := e.watch(t, "?kinds=no-space,level", "")
	defer end()
	f.Tell(spm.Event{Kind: spm.EventTask})
	f.Tell(spm.Event{Kind: spm.EventNoSpace, Bytes: 7})
	fields, _ = event(t, some)
	require.Equal(t, "level", fields["event"])
	fields, _ = event(t, some)
	require.Equal(t, []string{"5", "no-space"}, []string{fields["id"], fields["event"]})
}

func TestEventsRefused(t *testing.T) {
	e := serve(t, newFake())
	status, _ := e.post(t, "/events", "text/plain", "")
	require.Equal(t, http.StatusMethodNotAllowed, status)
	for _, query := range []string{"after=x", "kinds=bogus", "kinds=task,bogus"} {
		r, err := e.http.Get("http://spm/events?" + query)
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		require.Equal(t, http.StatusBadRequest, r.StatusCode, query)
	}
}

// A client that reads nothing holds up neither the storage nor another client.
func TestSlowClient(t *testing.T) {
	f := newFake()
	e := serve(t, f)
	_, end := e.watch(t, "", "") // and reads nothing
	defer end()
	other, endOther := e.watch(t, "?kinds=no-space", "")
	defer endOther()
	told := make(chan struct{})
	go func() {
		defer close(told)
		for range 2000 {
			f.Tell(spm.Event{Kind: spm.EventTask, Name: strings.Repeat("x", 1000)})
		}
		f.Tell(spm.Event{Kind: spm.EventNoSpace})
	}()
	fields, _ := event(t, other)
	require.Equal(t, "2001", fields["id"])
	select {
	case <-told:
	case <-time.After(time.Minute):
		t.Fatal("the storage waits for a client")
	}
}
