package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"tidemark/spm"
)

// A controlClient asks a control socket.
type controlClient struct{ socket string }

// State is what GET / tells.
func (c controlClient) State(ctx context.Context) (controlState, error) {
	return c.ask(ctx, http.MethodGet, "/", nil)
}

// Do is a POST.
func (c controlClient) Do(ctx context.Context, verb string, r controlRequest) (controlState, error) {
	return c.ask(ctx, http.MethodPost, "/"+verb, &r)
}

func (c controlClient) ask(ctx context.Context, method, path string, r *controlRequest) (state controlState, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s %s on %s: %w", method, path, c.socket, err)
		}
	}()
	var body io.Reader
	if r != nil {
		b, err := json.Marshal(r)
		if err != nil {
			return state, err
		}
		body = bytes.NewReader(b)
	}
	q, err := http.NewRequestWithContext(ctx, method, "http://control"+path, body)
	if err != nil {
		return state, err
	}
	t := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	}}
	a, err := (&http.Client{Transport: t}).Do(q)
	if err != nil {
		return state, err
	}
	defer a.Body.Close() //nolint:errcheck // only read
	if a.StatusCode == http.StatusOK {
		return state, json.NewDecoder(a.Body).Decode(&state)
	}
	e := &controlFailure{status: a.StatusCode}
	if err := json.NewDecoder(a.Body).Decode(&e.controlError); err != nil {
		e.Message = a.Status
	}
	return state, e
}

// A controlFailure is what a control socket answers when something was not done.
type controlFailure struct {
	status int
	controlError
}

func (e *controlFailure) Error() string { return e.Message }

// Is says that nothing but another image helps.
func (e *controlFailure) Is(target error) bool { return target == spm.ErrUnfit && e.Unfit }
