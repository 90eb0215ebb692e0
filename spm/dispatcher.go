package spm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/creachadair/jrpc2"
	"github.com/creachadair/jrpc2/handler"
)

// requestMax is the largest request in bytes; the largest that makes sense takes
// less than 1 KiB.
const requestMax = 64 << 10

// dispatcher answers JSON-RPC 2.0 over HTTP. The messages and the calls are
// jrpc2's; its HTTP bridge is not used because that runs all requests through
// one queue of limited width, where held requests would stop the others, and
// does not tell a handler that its client has hung up.
type dispatcher struct{ methods handler.Map }

// JSONRPC answers JSON-RPC 2.0 over HTTP with the methods.
func JSONRPC(methods handler.Map) http.Handler { return dispatcher{methods} }

// Methods maps the names of the methods to those of api.
func Methods(api API) handler.Map {
	return handler.Map{
		MethodVolumeCreate:  method(api.CreateVolume),
		MethodVolumeList:    method(api.ListVolumes),
		MethodVolumeGetInfo: method(api.GetVolumeInfo),
		MethodVolumeExtend:  method(api.ExtendVolume),
		MethodVolumeReduce:  method(api.ReduceVolume),
		MethodVolumeRemove:  method(api.RemoveVolume),
		MethodPoolGetInfo:   method(api.GetPoolInfo),
		MethodPoolWatch:     method(api.WatchPool),
	}
}

// method wraps a method of API: parameters in, result or coded error out.
func method[Q, R any](call func(context.Context, Q) (R, error)) jrpc2.Handler {
	return func(ctx context.Context, r *jrpc2.Request) (any, error) {
		var q Q
		if err := r.UnmarshalParams(&q); err != nil {
			return nil, err
		}
		reply, err := call(ctx, q)
		if err != nil {
			return nil, wireError(err)
		}
		return reply, nil
	}
}

// wireError gives an error its code.
func wireError(err error) error {
	return &jrpc2.Error{Code: jrpc2.Code(CodeOf(err)), Message: err.Error()}
}

// ErrorData is what the error object of a method has beside a code that is not
// ours.
type ErrorData struct {
	Code Code `json:"code"`
}

// ServeHTTP answers one POST, with one request or a batch.
func (d dispatcher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "expected POST with a JSON-RPC 2.0 request", http.StatusMethodNotAllowed)
		return
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		http.Error(w, "expected Content-Type: application/json", http.StatusUnsupportedMediaType)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, requestMax))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	out := d.answer(r.Context(), body)
	if out == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(out) //nolint:errcheck // the client has gone; there is nobody to tell
}

// answer answers the requests in body, one after the other; nil if none of them
// wants an answer.
func (d dispatcher) answer(ctx context.Context, body []byte) []byte {
	requests, err := jrpc2.ParseRequests(body)
	if err != nil {
		return encodeReply(reply{Error: asWire(err)})
	}
	if len(requests) == 0 {
		return encodeReply(reply{Error: jrpc2.Errorf(jrpc2.InvalidRequest, "the batch is empty: expected a request")})
	}
	nulls := nullIDs(body)
	var replies []reply
	batch := false
	for i, r := range requests {
		batch = batch || r.Batch
		if i < len(nulls) && nulls[i] {
			r.ID = "null"
		}
		if out, wanted := d.call(ctx, r); wanted {
			replies = append(replies, out)
		}
	}
	switch {
	case len(replies) == 0:
		return nil
	case batch:
		return encodeReply(replies)
	}
	return encodeReply(replies[0])
}

// nullIDs says for each request in body whether it has an id that is null. Such a one
// wants an answer, and jrpc2 does not tell it from a notification, which has no id.
func nullIDs(body []byte) []bool {
	var all []json.RawMessage
	if json.Unmarshal(body, &all) != nil {
		all = []json.RawMessage{body}
	}
	out := make([]bool, len(all))
	for i, r := range all {
		var members map[string]json.RawMessage
		if json.Unmarshal(r, &members) == nil {
			out[i] = string(members["id"]) == "null"
		}
	}
	return out
}

// call answers one request; a notification wants no answer.
func (d dispatcher) call(ctx context.Context, p *jrpc2.ParsedRequest) (out reply, wanted bool) {
	if p.ID != "" {
		out.ID = json.RawMessage(p.ID)
	}
	if p.Error != nil {
		out.Error = p.Error
		return out, true
	}
	h := d.methods.Assign(ctx, p.Method)
	switch {
	case p.Method == "":
		out.Error = jrpc2.Errorf(jrpc2.InvalidRequest, "the request names no method")
		return out, true
	case h == nil:
		out.Error = jrpc2.Errorf(jrpc2.MethodNotFound, "there is no method %q", p.Method)
		return out, p.ID != ""
	}
	result, err := h(ctx, p.ToRequest())
	if err == nil {
		out.Result, err = json.Marshal(result)
	}
	if err != nil {
		out.Error = asWire(err)
	}
	return out, p.ID != ""
}

// A reply is a JSON-RPC 2.0 response object.
type reply struct {
	ID     json.RawMessage
	Result json.RawMessage
	Error  *jrpc2.Error
}

// MarshalJSON writes either result or error, and an id in any case.
func (r reply) MarshalJSON() ([]byte, error) {
	type object struct {
		Version string          `json:"jsonrpc"`
		ID      json.RawMessage `json:"id"`
		Result  json.RawMessage `json:"result,omitempty"`
		Error   *jrpc2.Error    `json:"error,omitempty"`
	}
	o := object{Version: jrpc2.Version, ID: r.ID, Result: r.Result, Error: r.Error}
	if o.ID == nil {
		o.ID = json.RawMessage("null")
	}
	return json.Marshal(o)
}

func encodeReply(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil { // a reply holds nothing that cannot be encoded but an id that is not JSON
		b, _ = json.Marshal(reply{Error: jrpc2.Errorf(jrpc2.InternalError, "encode the reply: %v", err)})
	}
	return b
}

func asWire(err error) *jrpc2.Error {
	var e *jrpc2.Error
	if errors.As(err, &e) {
		return e
	}
	return jrpc2.Errorf(jrpc2.ErrorCode(err), "%v", err)
}
