package main

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/hostfile"
)

// An imageCommand is what commands that look at an image have in common.
type imageCommand struct {
	format     *choice
	forceShare bool
}

// newImageCommand adds -f and -U, and refuses what all such commands of
// qemu-img have and we have not.
func newImageCommand(c *cobra.Command, raw string) *imageCommand {
	o := &imageCommand{format: formatFlag(c, raw)}
	c.Flags().BoolVarP(&o.forceShare, "force-share", "U", false,
		"look at an image that another process writes to; what is shown may be inconsistent")
	refuse(c, refuseObject, refuseImageOpts)
	c.SetFlagErrorFunc(flagError)
	return o
}

// open opens the file read-only.
func (o *imageCommand) open(path string) (*hostfile.File, error) {
	h := hostfile.Options{ReadOnly: true}
	if o.forceShare {
		h.Lock = hostfile.LockShared
	}
	return hostfile.Open(path, h)
}

// allocated is what the host's file system has allocated for the file, bytes.
func allocated(path string) (int64, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Blocks * 512, nil // stat(2): the unit is 512, whatever st_blksize says
	}
	return st.Size(), nil
}

// A progress shows how far something has come: from the first moment with -p,
// after a second on a terminal, and otherwise not at all.
type progress struct {
	w     io.Writer
	after time.Duration
	off   bool

	began, shown time.Time
	drawn        bool
}

const (
	progressAfter = time.Second
	progressEvery = 100 * time.Millisecond
)

func newProgress(w io.Writer, asked, quiet bool) *progress {
	p := &progress{w: w, began: time.Now(), after: progressAfter}
	if asked {
		p.after = 0
	}
	p.off = quiet || !asked && !isTerminal(w)
	return p
}

// report is called as often as there is something to report.
func (p *progress) report(done, total int64) {
	now := time.Now()
	if p.off || total <= 0 || now.Sub(p.began) < p.after || now.Sub(p.shown) < progressEvery && done < total {
		return
	}
	p.shown, p.drawn = now, true
	fmt.Fprintf(p.w, "    (%.2f/100%%)\r", 100*float64(done)/float64(total))
}

// end leaves the line.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.w)
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && onTerminal(f)
}
