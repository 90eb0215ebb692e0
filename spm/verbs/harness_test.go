package verbs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/xmlrpc"
	"tidemark/spm"
	"tidemark/spm/storagetest"
	"tidemark/spm/verbs"
)

// The objects of the scenes, in a fixed order.
var (
	domainID = uuid.MustParse("00000000-0000-4000-8000-000000000001")
	otherID  = uuid.MustParse("00000000-0000-4000-8000-000000000002")
	poolID   = uuid.MustParse("00000000-0000-4000-8000-000000000003")
	imageID  = uuid.MustParse("00000000-0000-4000-8000-000000000004")
	volumeID = uuid.MustParse("00000000-0000-4000-8000-000000000005")
	unknown  = uuid.MustParse("00000000-0000-4000-8000-00000000ffff")
)

// noAPI is an API of our own that is never called.
type noAPI struct{ spm.API }

// GetPoolInfo is what a client asks first.
func (noAPI) GetPoolInfo(context.Context, spm.PoolInfoRequest) (spm.PoolReply, error) {
	return spm.PoolReply{Dir: "/srv"}, nil
}

// An endpoint is a handler on a unix socket.
type endpoint struct {
	path string
	http *http.Client
}

// serve serves s until the test ends.
func serve(t *testing.T, s spm.Storage) *endpoint {
	dir, err := os.MkdirTemp("", "verbs-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	e := &endpoint{path: filepath.Join(dir, "spm.sock")}
	l, err := net.Listen("unix", e.path)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{Handler: verbs.Handler(s, noAPI{}), BaseContext: func(net.Listener) context.Context { return ctx }}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l) //nolint:errcheck // it is closed
	}()
	t.Cleanup(func() {
		cancel()
		server.Close() //nolint:errcheck // the test has ended
		<-served
	})
	var d net.Dialer
	e.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", e.path) },
	}}
	t.Cleanup(e.http.CloseIdleConnections)
	return e
}

// post sends a body and returns the answer.
func (e *endpoint) post(t *testing.T, path, kind, body string) (status int, answer string) {
	r, err := e.http.Post("http://spm"+path, kind, strings.NewReader(body))
	require.NoError(t, err)
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return r.StatusCode, string(b)
}

// xml calls a verb over XML-RPC; a fault fails the test.
func (e *endpoint) xml(t *testing.T, verb string, params ...any) verbs.Reply {
	b, err := xmlrpc.EncodeCall(verb, params...)
	require.NoError(t, err)
	status, answer := e.post(t, "/", "text/xml", string(b))
	require.Equal(t, http.StatusOK, status, answer)
	v, err := xmlrpc.DecodeReply([]byte(answer))
	require.NoError(t, err, "%s: %s", verb, answer)
	return v.(verbs.Reply)
}

// A jsonAnswer is a response object.
type jsonAnswer struct {
	Result any `json:"result"`
	Error  *struct {
		Code    int           `json:"code"`
		Message string        `json:"message"`
		Data    spm.ErrorData `json:"data"`
	} `json:"error"`
}

// json calls a method over JSON-RPC.
func (e *endpoint) json(t *testing.T, method string, params any) (a jsonAnswer) {
	b, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	require.NoError(t, err)
	status, answer := e.post(t, "/", "application/json", string(b))
	require.Equal(t, http.StatusOK, status, answer)
	d := json.NewDecoder(bytes.NewReader([]byte(answer)))
	require.NoError(t, d.Decode(&a), answer)
	if v := verbs.Find(method); v != nil && a.Error != nil {
		require.True(t, v.Lists(a.Error.Data.Code), "%s answers a code that its reference does not name: %+v", method, a.Error)
		require.Contains(t, v.Numbers(), a.Error.Code, "%s answers a number that its reference does not name: %+v", method, a.Error)
	}
	return a
}

// code is the status of a reply.
func code(t *testing.T, r verbs.Reply) int64 {
	s, ok := r["status"].(map[string]any)
	require.True(t, ok, "no status: %v", r)
	require.NotEmpty(t, s["message"], "%v", r)
	return s["code"].(int64)
}

// id is a UUID as a parameter.
func id(u uuid.UUID) string { return u.String() }

// scene makes two domains, a pool of them that this host manages, and a volume.
func scene(t *testing.T, e *endpoint) {
	call := func(verb string, params ...any) {
		r := e.xml(t, verb, params...)
		require.Zero(t, code(t, r), "%s: %v", verb, r)
	}
	call("connectStorageServer", 4, "", []any{
		map[string]any{"id": id(domainID), "connection": "/srv/a"}, map[string]any{"id": id(otherID), "connection": "/srv/b"},
	})
	call("createStorageDomain", 4, id(domainID), "first", "/srv/a", 1, 0)
	call("createStorageDomain", "LOCALFS", id(otherID), "second", "/srv/b", "Data", "5")
	call("createStoragePool", 4, id(poolID), "my pool", id(domainID), []any{id(domainID), id(otherID)}, 1)
	call("connectStoragePool", id(poolID), 1, "key", id(domainID), 1)
	call("spmStart", id(poolID), -1, -1, -1, 0)
	call("activateStorageDomain", id(otherID), id(poolID))
	call("createVolume", id(domainID), id(poolID), id(imageID), 10*2097152, 4, 2, 8, id(volumeID), "volly", id(uuid.Nil), id(uuid.Nil))
}

func newFake() *storagetest.Fake { return &storagetest.Fake{Root: "/srv"} }
