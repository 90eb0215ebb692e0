package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// One line per event, as text or JSON, in UTC wherever the host is, and none
// below the level.
func TestLogger(t *testing.T) {
	local := time.Local
	time.Local = time.FixedZone("far away", 7*3600)
	t.Cleanup(func() { time.Local = local })
	var b bytes.Buffer
	log, err := (&global{logLevel: "warn", logFormat: "json"}).logger(&b)
	require.NoError(t, err)
	log.Info("below the level")
	log.Warn("pool is full", "volume", "web1")
	var line struct {
		Time               time.Time
		Level, Msg, Volume string
	}
	require.NoError(t, json.Unmarshal(b.Bytes(), &line), b.String())
	require.Equal(t, "WARN pool is full web1", line.Level+" "+line.Msg+" "+line.Volume)
	require.Contains(t, b.String(), `Z","level"`)

	b.Reset()
	log, err = (&global{logLevel: "debug", logFormat: "text"}).logger(&b)
	require.NoError(t, err)
	log.Debug("two words")
	require.Regexp(t, `^time=\S+Z level=DEBUG msg="two words"\n$`, b.String())

	for _, g := range []global{{logLevel: "loud", logFormat: "text"}, {logLevel: "info", logFormat: "xml"}} {
		_, err := g.logger(&b)
		require.ErrorContains(t, err, "expected")
	}
}

func TestLogFormatIsEveryCommands(t *testing.T) {
	image := newImage(t, "1M")
	r := cli(t, "nbd", "--log-format", "json", "-k", "/nowhere/s", image)
	require.Equal(t, exitFailure, r.code, r)
	first, _, _ := strings.Cut(r.stderr, "\n")
	require.True(t, json.Valid([]byte(first)), r)
	r = cli(t, "spm", "--log-format", "xml", "--dir", t.TempDir(), "--capacity", "1G")
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "--log-format xml: expected text or json")
}

// A mistake in the first word, or in a number, is answered with what to do.
func TestMistakesOfTheRoot(t *testing.T) {
	for line, want := range map[string]string{
		"frobnicate": `there is no command "frobnicate"; see tidemark --help`,
		"nbd -e x a": "-e, --shared x: expected a number",
		"--nix":      "unknown flag: --nix",
	} {
		code, _, stderr := inProcess(t, strings.Fields(line)...)
		require.Equal(t, exitFailure, code, line)
		require.Contains(t, stderr, want, line)
	}
	code, stdout, _ := inProcess(t)
	require.Zero(t, code)
	require.Contains(t, stdout, "Usage:")
}
