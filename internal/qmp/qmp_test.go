package qmp_test

import (
	"bufio"
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/qmp"
	"tidemark/internal/testenv"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`

// serve answers each line with the next of the answers, the greeting first, and
// returns what was asked.
func serve(t *testing.T, answers ...string) (socket string, asked chan string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "qmp")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	asked = make(chan string, 8)
	go func() {
		defer close(asked)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		lines := bufio.NewScanner(c)
		for _, a := range answers {
			if _, err := c.Write([]byte(a + "\r\n")); err != nil || !lines.Scan() {
				return
			}
			asked <- lines.Text()
		}
	}()
	return socket, asked
}

func all(c <-chan string) (out []string) {
	for s := range c {
		out = append(out, s)
	}
	return out
}

func TestResume(t *testing.T) {
	socket, asked := serve(t, greeting,
		`{"return": {}}`,
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "BLOCK_IO_ERROR", "data": {"nospace": true}}`+"\r\n"+`{"return": {"status": "io-error", "singlestep": false, "running": false}}`,
		`{"return": {}}`)
	was, err := qmp.Resume(t.Context(), socket)
	require.NoError(t, err)
	require.Equal(t, qmp.Paused, was)
	require.Equal(t, []string{`{"execute":"qmp_capabilities"}`, `{"execute":"query-status"}`, `{"execute":"cont"}`}, all(asked))
}

// A guest that somebody else has paused is left alone.
func TestResumeOnlyAfterAnError(t *testing.T) {
	for _, status := range []string{"running", "paused", "prelaunch"} {
		socket, asked := serve(t, greeting, `{"return": {}}`, `{"return": {"status": "`+status+`"}}`)
		was, err := qmp.Resume(t.Context(), socket)
		require.NoError(t, err)
		require.Equal(t, status, was)
		require.Len(t, all(asked), 2)
	}
}

func TestResumeFails(t *testing.T) {
	for want, answers := range map[string][]string{
		"is it a QMP socket":                       {`{"return": {}}`},
		"greeting: invalid character":              {`SSH-2.0`},
		"qmp_capabilities: CommandNotFound: other": {greeting, `{"error": {"class": "CommandNotFound", "desc": "other"}}`},
		"query-status: the answer is neither":      {greeting, `{"return": {}}`, `{}`},
		"cont: GenericError: no":                   {greeting, `{"return": {}}`, `{"return": {"status": "io-error"}}`, `{"error": {"class": "GenericError", "desc": "no"}}`},
	} {
		socket, _ := serve(t, answers...)
		_, err := qmp.Resume(t.Context(), socket)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, socket)
	}
	_, err := qmp.Resume(t.Context(), filepath.Join(t.TempDir(), "nobody"))
	require.ErrorContains(t, err, "no such file")
}

// A QEMU that has another client says nothing.
func TestResumeHasAnEnd(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "qmp"))
	require.NoError(t, err)
	defer l.Close()
	for limit := 50 * time.Millisecond; ; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err = qmp.Resume(ctx, l.Addr().String())
		require.ErrorIs(t, err, context.DeadlineExceeded)
		if strings.Contains(err.Error(), "another client") {
			break
		}
		require.Less(t, limit, 10*time.Second, "%v: it was not even connected", err)
	}
}

// A real QEMU, which has no guest to speak of.
func TestResumeRealQEMU(t *testing.T) {
	qemu := testenv.Tool(t, "qemu-system-x86_64")
	socket := filepath.Join(t.TempDir(), "qmp")
	p := testenv.Start(t, testenv.Command(t, qemu, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "none", "-S", "-qmp", "unix:"+socket+",server=on,wait=off"))
	var was string
	testenv.Eventually(t, time.Minute, "QEMU answers: "+p.Output(), func() (ok bool) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var err error
		was, err = qmp.Resume(ctx, socket)
		return err == nil
	})
	require.Equal(t, "prelaunch", was)
}
