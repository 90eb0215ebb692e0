package spm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/creachadair/jrpc2"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

// A Client speaks to a manager on its socket. It is safe for concurrent use and
// outlives restarts of the manager: every request that fails may be repeated.
type Client struct{ at atomic.Pointer[endpoint] }

// An endpoint is a socket, with the connections to it.
type endpoint struct {
	path string
	http *http.Client
}

// replyMax limits what is read of a reply: about 1 KiB a volume, so that many
// thousand fit.
const replyMax = 64 << 20

// Dial makes a client for the socket at path, and makes sure that a manager
// answers on it.
func Dial(path string) (*Client, error) {
	c := NewClient(path)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := c.GetPoolInfo(ctx, PoolInfoRequest{}); err != nil {
		c.Close() //nolint:errcheck // returns nil
		return nil, err
	}
	return c, nil
}

// NewClient makes a client for the socket at path, and asks nothing yet.
func NewClient(path string) *Client {
	c := &Client{}
	c.Redirect(path)
	return c
}

// Redirect makes the client ask the manager on another socket from the next request on.
func (c *Client) Redirect(path string) {
	var d net.Dialer
	old := c.at.Swap(&endpoint{path: path, http: &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", path) },
		IdleConnTimeout: 30 * time.Second,
	}}})
	if old != nil {
		old.http.CloseIdleConnections()
	}
}

// Socket is where the client asks.
func (c *Client) Socket() string { return c.at.Load().path }

// Close drops the connections that are idle.
func (c *Client) Close() error {
	c.at.Load().http.CloseIdleConnections()
	return nil
}

// CreateVolume calls Volume.create.
func (c *Client) CreateVolume(ctx context.Context, r VolumeCreateRequest) (out VolumeReply, err error) {
	err = c.call(ctx, MethodVolumeCreate, &r, &r.Header, &out)
	return out, err
}

// ListVolumes calls Volume.list.
func (c *Client) ListVolumes(ctx context.Context, r VolumeListRequest) (out VolumeListReply, err error) {
	err = c.call(ctx, MethodVolumeList, &r, &r.Header, &out)
	return out, err
}

// GetVolumeInfo calls Volume.getInfo.
func (c *Client) GetVolumeInfo(ctx context.Context, r VolumeInfoRequest) (out VolumeReply, err error) {
	err = c.call(ctx, MethodVolumeGetInfo, &r, &r.Header, &out)
	return out, err
}

// ExtendVolume calls Volume.extend.
func (c *Client) ExtendVolume(ctx context.Context, r VolumeExtendRequest) (out VolumeExtendReply, err error) {
	err = c.call(ctx, MethodVolumeExtend, &r, &r.Header, &out)
	return out, err
}

// ReduceVolume calls Volume.reduce.
func (c *Client) ReduceVolume(ctx context.Context, r VolumeReduceRequest) (out VolumeReply, err error) {
	err = c.call(ctx, MethodVolumeReduce, &r, &r.Header, &out)
	return out, err
}

// RemoveVolume calls Volume.remove.
func (c *Client) RemoveVolume(ctx context.Context, r VolumeRemoveRequest) (out VolumeRemoveReply, err error) {
	err = c.call(ctx, MethodVolumeRemove, &r, &r.Header, &out)
	return out, err
}

// GetPoolInfo calls Pool.getInfo.
func (c *Client) GetPoolInfo(ctx context.Context, r PoolInfoRequest) (out PoolReply, err error) {
	err = c.call(ctx, MethodPoolGetInfo, &r, &r.Header, &out)
	return out, err
}

// WatchPool calls Pool.watch.
func (c *Client) WatchPool(ctx context.Context, r PoolWatchRequest) (out PoolWatchReply, err error) {
	err = c.call(ctx, MethodPoolWatch, &r, &r.Header, &out)
	return out, err
}

// call does one round trip. What went wrong is an *Error, also where the manager
// is not there: then with CodeStopping, for it may come back.
func (c *Client) call(ctx context.Context, method string, params any, h *Header, out any) error {
	identify(h)
	return c.Call(ctx, method, params, out)
}

// Call does one round trip with a method of any name. What went wrong is as with
// the methods that have one here.
func (c *Client) Call(ctx context.Context, method string, params, out any) error {
	body, err := json.Marshal(map[string]any{"jsonrpc": jrpc2.Version, "id": 1, "method": method, "params": params})
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://spm/", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%s: %w", method, err)
	}
	request.Header.Set("Content-Type", "application/json")
	at := c.at.Load()
	response, err := at.http.Do(request)
	if err != nil {
		return at.unreachable(ctx, method, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, replyMax))
	if err != nil {
		return at.unreachable(ctx, method, err)
	}
	if response.StatusCode != http.StatusOK {
		return errorf(CodeInvalid, "%s on socket %s: HTTP status %s: is it the socket of tidemark spm?", method, at.path, response.Status)
	}
	return decodeReply(method, answer, out)
}

// identify fills in who we are.
func identify(h *Header) {
	h.Version = WireVersion
	h.HostID, h.HostGeneration = localHostID, localHostGeneration
	if h.RequestID == "" {
		h.RequestID = uuid.NewString()
	}
}

// decodeReply decodes a JSON-RPC 2.0 response object.
func decodeReply(method string, answer []byte, out any) error {
	var r struct {
		Result json.RawMessage `json:"result"`
		Error  *jrpc2.Error    `json:"error"`
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return errorf(CodeInvalid, "%s: the answer is not JSON-RPC: %v", method, err)
	}
	if r.Error != nil {
		return &Error{Code: ownCode(r.Error), Message: r.Error.Message}
	}
	if err := json.Unmarshal(r.Result, out); err != nil {
		return errorf(CodeInvalid, "%s: the answer is not what this version expects: %v", method, err)
	}
	return nil
}

// ownCode maps JSON-RPC's own codes, all of which say that the request is wrong,
// and those of VDSM, which have ours beside them.
func ownCode(e *jrpc2.Error) Code {
	var data ErrorData
	switch {
	case e.Code < 0:
		return CodeInvalid
	case json.Unmarshal(e.Data, &data) == nil && data.Code != 0:
		return data.Code
	}
	return Code(e.Code)
}

// unreachable says that there is no manager, or that it went away under the
// request.
func (e *endpoint) unreachable(ctx context.Context, method string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s on socket %s: %w", method, e.path, context.Cause(ctx))
	}
	if errors.Is(err, fs.ErrPermission) {
		return &Error{Code: CodeInvalid, err: err,
			Message: fmt.Sprintf("socket %s: no right to connect; it belongs to whoever started the manager: run as that user", e.path)}
	}
	why := err.Error()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "there is no such socket"
	case errors.Is(err, unix.ECONNREFUSED):
		why = "nobody answers on it"
	}
	return &Error{Code: CodeStopping, err: err,
		Message: fmt.Sprintf("socket %s: %s: start the manager with: tidemark spm --dir DIR --socket %s", e.path, why, e.path)}
}
