package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"tidemark/internal/size"
)

// A status is what is shown of a disk that is being served. Sizes are in bytes.
type status struct {
	name                             string
	virtual, granted, used, headroom int64
	extensions                       int64
	latency                          time.Duration // of the last extension
	waiting                          int64         // for so much more than there is; 0: nobody waits
	since                            time.Time
	poisoned                         error
}

func statusOf(name string, s diskStats) status {
	out := status{
		name: name, virtual: s.Virtual, granted: s.Granted, used: s.Used(), headroom: s.Headroom(),
		poisoned: s.Poisoned,
	}
	if t := s.Thin; t != nil { // taken after the image's, and never behind it
		out.granted, out.headroom = t.Granted, t.Granted-out.used
		out.extensions, out.latency = t.Extensions, t.LastLatency
		if t.Waiting {
			out.waiting, out.since = max(t.WaitingBytes, 1), t.WaitingSince
		}
	}
	return out
}

// lastExtension is the latency of the last extension in words.
func (s status) lastExtension() string {
	if s.extensions == 0 {
		return "-"
	}
	return shortDuration(s.latency)
}

// note is what is out of the ordinary, "" for nothing.
func (s status) note() string {
	switch {
	case s.poisoned != nil:
		return "stopped accepting writes: " + s.poisoned.Error()
	case s.waiting > 0:
		return fmt.Sprintf("waiting for %s since %s: the pool is full, remove a volume",
			size.Format(s.waiting), s.since.Local().Format(time.TimeOnly))
	}
	return ""
}

// line is a disk's status in one line, for a log.
func (s status) line() string {
	l := fmt.Sprintf("%s: virtual %s, granted %s, used %s, headroom %s, extensions %d, last extension %s",
		s.name, size.Format(s.virtual), size.Format(s.granted), size.Format(s.used), size.Format(s.headroom),
		s.extensions, s.lastExtension())
	if n := s.note(); n != "" {
		l += ", " + n
	}
	return l
}

// statusTable is the status of all disks for a terminal of cols by rows
// characters: a table, and below it what is out of the ordinary. What does not
// fit is counted, notes go first.
func statusTable(all []status, cols, rows int) []string {
	var notes []string
	for _, s := range all {
		if n := s.note(); n != "" {
			notes = append(notes, s.name+": "+n)
		}
	}
	rows = max(rows-2, 2) // the title, and the line below the block
	notes = notes[:min(len(notes), rows-1)]
	shown := all
	more := ""
	if room := rows - len(notes); len(all) > room {
		shown = all[:max(room-1, 0)]
		more = fmt.Sprintf("and %d more disks", len(all)-len(shown))
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "disk\tvirtual\tgranted\tused\theadroom\textensions\tlast")
	for _, s := range shown {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", s.name, size.Format(s.virtual), size.Format(s.granted),
			size.Format(s.used), size.Format(s.headroom), s.extensions, s.lastExtension())
	}
	w.Flush() //nolint:errcheck // into memory
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	if more != "" {
		lines = append(lines, more)
	}
	lines = append(lines, notes...)
	for i, l := range lines {
		lines[i] = cut(l, cols-1)
	}
	return lines
}

// cut shortens s to n characters.
func cut(s string, n int) string {
	if n = max(n, 1); utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}

// shortDuration rounds to what a reader takes in.
func shortDuration(d time.Duration) string {
	switch {
	case d >= time.Minute:
		return d.Round(time.Second).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(time.Microsecond).String()
}

// A live is an output with a block of lines at its end that is rewritten in
// place, if it is a terminal; log lines go above the block. On anything else a
// block is written when it has changed.
//
// The cursor rests below the block. The rows that the block takes are counted
// at the present width, because a terminal that became narrower has wrapped it.
type live struct {
	size func() (cols, rows int) // nil: not a terminal

	mu    sync.Mutex // guards out and shown
	out   io.Writer
	shown []string
}

// newLive finds out whether out is a terminal.
func newLive(out io.Writer) *live {
	l := &live{out: out}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		l.size = func() (int, int) { return terminalSize(f) }
	}
	return l
}

// Show replaces the block by the status of the disks.
func (l *live) Show(all []status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size != nil {
		cols, rows := l.size()
		fmt.Fprint(l.out, l.eraseLocked())
		l.shown = statusTable(all, cols, rows)
		fmt.Fprint(l.out, strings.Join(l.shown, "\n")+"\n")
		return
	}
	lines := make([]string, len(all))
	for i, s := range all {
		if lines[i] = s.line(); i >= len(l.shown) || l.shown[i] != lines[i] {
			fmt.Fprintln(l.out, lines[i])
		}
	}
	l.shown = lines
}

// End leaves the block where it is: what is written next goes below it.
func (l *live) End() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = nil
}

// Above returns a writer to w, which may be the same terminal: whatever is
// written appears above the block. A write is whole lines.
func (l *live) Above(w io.Writer) io.Writer { return above{l, w} }

type above struct {
	l *live
	w io.Writer
}

func (a above) Write(p []byte) (int, error) {
	l := a.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size == nil || a.w != l.out && !isTerminal(a.w) {
		return a.w.Write(p)
	}
	fmt.Fprint(l.out, l.eraseLocked())
	n, err := a.w.Write(p)
	if len(l.shown) > 0 {
		fmt.Fprint(l.out, strings.Join(l.shown, "\n")+"\n")
	}
	return n, err
}

// eraseLocked is the text that removes the block from the terminal.
func (l *live) eraseLocked() string {
	if len(l.shown) == 0 {
		return ""
	}
	cols, _ := l.size()
	return fmt.Sprintf("\r\x1b[%dA\x1b[J", rowsOf(l.shown, cols))
}

// rowsOf is how many rows of a terminal the lines take.
func rowsOf(lines []string, cols int) int {
	n := 0
	for _, s := range lines {
		n += max(1, (utf8.RuneCountInString(s)+cols-1)/cols)
	}
	return n
}

func onTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// terminalSize is the size of the terminal, or the usual one if it has none.
func terminalSize(f *os.File) (cols, rows int) {
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 80, 24
	}
	return cmp.Or(int(ws.Col), 80), cmp.Or(int(ws.Row), 24)
}
