package verbs

import (
	"errors"
	"io"
	"mime"
	"net/http"

	"tidemark/internal/xmlrpc"
	"tidemark/spm"
)

// Handler answers for s in both protocols, and tells its events. api has the methods
// of our own JSON-RPC.
func Handler(s spm.Storage, api spm.API) http.Handler {
	methods := spm.Methods(api)
	addVerbs(methods, s)
	return &edge{xml: xmlHandler{s}, json: spm.JSONRPC(methods), events: eventsHandler{s}}
}

type edge struct{ xml, json, events http.Handler }

// ServeHTTP tells the protocols apart.
func (e *edge) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case r.URL.Path == "/events":
		e.events.ServeHTTP(w, r)
	case kind == "text/xml" || kind == "application/xml" || r.URL.Path == "/RPC2" && kind != "application/json":
		e.xml.ServeHTTP(w, r)
	default:
		e.json.ServeHTTP(w, r)
	}
}

// The faults, numbered as JSON-RPC numbers them.
const (
	faultParse  = -32700
	faultMethod = -32601
	faultReply  = -32603
)

// xmlHandler answers XML-RPC.
type xmlHandler struct{ storage spm.Storage }

func (h xmlHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "expected POST with a call of XML-RPC", http.StatusMethodNotAllowed)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, xmlrpc.SizeMax))
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	reply, err := h.answer(r, body)
	var out []byte
	if err == nil {
		out, err = xmlrpc.EncodeReply(reply)
	}
	if err != nil {
		f := &xmlrpc.Fault{Code: faultReply, Message: err.Error()}
		errors.As(err, &f)
		out = xmlrpc.EncodeFault(f)
	}
	w.Header().Set("Content-Type", "text/xml")
	w.Write(out) //nolint:errcheck // the client has gone; there is nobody to tell
}

// answer answers one call. An error is a fault.
func (h xmlHandler) answer(r *http.Request, body []byte) (Reply, error) {
	method, params, err := xmlrpc.DecodeCall(body)
	if err != nil {
		return nil, &xmlrpc.Fault{Code: faultParse, Message: err.Error()}
	}
	v := Find(method)
	if v == nil {
		return nil, &xmlrpc.Fault{Code: faultMethod, Message: "there is no verb " + method}
	}
	reply, err := v.Do(r.Context(), h.storage, params, nil)
	var f *Failure
	if errors.As(err, &f) {
		return Reply{"status": map[string]any{"code": f.Number, "message": f.Message}}, nil
	}
	return reply, err
}
