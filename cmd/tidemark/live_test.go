package main

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var quiet = status{
	name: "disk1", virtual: 10 << 30, granted: 384 << 20, used: 200 << 20, headroom: 184 << 20,
	extensions: 2, latency: 3234 * time.Microsecond,
}

func held() status {
	s := quiet
	s.name, s.waiting, s.since = "disk2", 64<<10, time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	return s
}

func TestStatusLine(t *testing.T) {
	const l = "disk1: virtual 10 GiB, granted 384 MiB, used 200 MiB, headroom 184 MiB, extensions 2, last extension 3.2ms"
	require.Equal(t, l, quiet.line())
	require.True(t, strings.HasSuffix(held().line(), ", waiting for 64 KiB since 03:04:05: the pool is full, remove a volume"))
	bad := quiet
	bad.poisoned = errors.New("sync failed")
	require.Contains(t, bad.line(), "stopped accepting writes: sync failed")
	fresh := quiet
	fresh.extensions = 0
	require.Contains(t, fresh.line(), "last extension -")
}

func TestStatusTable(t *testing.T) {
	require.Equal(t, []string{
		"disk   virtual  granted  used     headroom  extensions  last",
		"disk1  10 GiB   384 MiB  200 MiB  184 MiB   2           3.2ms",
		"disk2  10 GiB   384 MiB  200 MiB  184 MiB   2           3.2ms",
		"disk2: waiting for 64 KiB since 03:04:05: the pool is full, remove a volume",
	}, statusTable([]status{quiet, held()}, 80, 24))
}

// TestStatusTableFits: whatever the terminal, the block is never wider or
// higher than it, or rewriting it in place would scroll.
func TestStatusTableFits(t *testing.T) {
	for disks := range 12 {
		for rows := 5; rows < 16; rows++ {
			for cols := 2; cols < 100; cols += 7 {
				var all []status
				for range disks {
					all = append(all, held())
				}
				lines := statusTable(all, cols, rows)
				require.Less(t, len(lines), rows, "%d disks on %d rows: %q", disks, rows, lines)
				require.Equal(t, len(lines), rowsOf(lines, cols), "%d columns: %q", cols, lines)
			}
		}
	}
	many := make([]status, 30)
	require.Equal(t, "and 24 more disks", statusTable(many, 80, 9)[7])
}

// screen is a terminal that understands what live sends.
type screen struct{ lines []string }

func (s *screen) Write(p []byte) (int, error) {
	text := string(p)
	for text != "" {
		if rest, ok := strings.CutPrefix(text, "\r\x1b["); ok {
			n := 0
			for ; rest[0] != 'A'; rest = rest[1:] {
				n = 10*n + int(rest[0]-'0')
			}
			text = strings.TrimPrefix(rest, "A\x1b[J")
			s.lines = s.lines[:len(s.lines)-n]
			continue
		}
		line, rest, _ := strings.Cut(text, "\n")
		s.lines, text = append(s.lines, line), rest
	}
	return len(p), nil
}

func TestLiveOnATerminal(t *testing.T) {
	s := &screen{}
	l := &live{out: s, size: func() (int, int) { return 80, 24 }}
	log := l.Above(s)
	log.Write([]byte("welcome\n")) //nolint:errcheck // into memory
	l.Show([]status{quiet})
	l.Show([]status{quiet, held()})
	log.Write([]byte("log line\n")) //nolint:errcheck // into memory
	l.Show([]status{quiet})
	require.Len(t, s.lines, 4, "%q", s.lines)
	require.Equal(t, "log line", s.lines[1], "above the block")
	require.Contains(t, s.lines[3], "disk1")

	l.End()
	log.Write([]byte("stopped\n")) //nolint:errcheck // into memory
	require.Len(t, s.lines, 5)
	require.Equal(t, "stopped", s.lines[4], "below the block")
}

// TestLiveNarrower: a terminal that became narrower has wrapped the block, and
// erasing it takes more rows.
func TestLiveNarrower(t *testing.T) {
	var b bytes.Buffer
	cols := 80
	l := &live{out: &b, size: func() (int, int) { return cols, 24 }}
	l.Show([]status{quiet}) // two lines of 60 and 61 characters
	cols = 30
	b.Reset()
	l.Show([]status{quiet})
	require.True(t, strings.HasPrefix(b.String(), "\r\x1b[5A\x1b[J"), "%q", b.String()[:16])
}

func TestLiveElsewhere(t *testing.T) {
	var b bytes.Buffer
	l := newLive(&b)
	l.Show([]status{quiet})
	l.Show([]status{quiet})
	require.Equal(t, quiet.line()+"\n", b.String(), "only what has changed")
	l.Show([]status{quiet, held()})
	require.Equal(t, quiet.line()+"\n"+held().line()+"\n", b.String())
}
