// Package qmp speaks to a QEMU through its monitor socket, as far as is needed to
// let a guest go on that was paused because a disk had no space.
//
// QEMU serves one client of such a socket at a time, and keeps the others waiting
// without a word. So nobody stays connected here: each question is a connection of
// its own, with a deadline, and the socket should be one that nobody else uses (a
// second -qmp option).
//
// A message is a line of JSON. QEMU greets, the client answers with
// qmp_capabilities, and from then on each command has one return or error; events
// come in between and are passed over.
package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
)

// Paused is the state of a guest that a disk's error has paused.
const Paused = "io-error"

// messageMax bounds what is read in one conversation: a greeting, three answers, and
// whatever events happen meanwhile.
const messageMax = 1 << 20

// Resume lets the guest of the QEMU at that socket go on if an I/O error has paused
// it, and returns the state in which it was: "io-error", "running" or another one of
// QEMU's RunState. Requests that had failed are done again by QEMU.
func Resume(ctx context.Context, socket string) (was string, err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", fmt.Errorf("QMP: %w", err)
	}
	defer conn.Close() //nolint:errcheck // all answers have come
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	was, err = resume(newSession(conn))
	if ctx.Err() != nil {
		return "", fmt.Errorf("QMP socket %s: no answer, is another client connected? %w", socket, context.Cause(ctx))
	}
	if err != nil {
		return was, fmt.Errorf("QMP socket %s: %w", socket, err)
	}
	return was, nil
}

func resume(s *session) (was string, err error) {
	if err := s.greet(); err != nil {
		return "", err
	}
	var status struct {
		Status string `json:"status"`
	}
	if err := s.execute("query-status", &status); err != nil {
		return "", err
	}
	if status.Status != Paused {
		return status.Status, nil
	}
	return status.Status, s.execute("cont", nil)
}

// A session is one conversation.
type session struct {
	in  *json.Decoder
	out io.Writer
}

func newSession(conn io.ReadWriter) *session {
	return &session{in: json.NewDecoder(io.LimitReader(conn, messageMax)), out: conn}
}

// A message is any that QEMU sends; which one says the member that is there.
type message struct {
	Greeting *struct{}       `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class       string `json:"class"`
		Description string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

// greet does the handshake.
func (s *session) greet() error {
	var m message
	if err := s.in.Decode(&m); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if m.Greeting == nil {
		return errors.New("expected QEMU's greeting, found something else: is it a QMP socket?")
	}
	return s.execute("qmp_capabilities", nil)
}

// execute does one command, and decodes what it returns into out unless that is nil.
func (s *session) execute(command string, out any) error {
	if err := json.NewEncoder(s.out).Encode(map[string]string{"execute": command}); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		var m message
		err := s.in.Decode(&m)
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case m.Event != "":
			continue
		case m.Error != nil:
			return fmt.Errorf("%s: %s: %s", command, m.Error.Class, m.Error.Description)
		case m.Return == nil:
			return fmt.Errorf("%s: the answer is neither return nor error", command)
		case out == nil:
			return nil
		}
		if err := json.Unmarshal(m.Return, out); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		return nil
	}
}
