package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
)

// An imageCommand is what commands that look at an image have in common.
type imageCommand struct {
	format     *choice
	forceShare bool
}

// newImageCommand adds -f and -U, and refuses what all such commands of
// qemu-img have and we have not.
func newImageCommand(c *cobra.Command) *imageCommand {
	o := &imageCommand{format: formatFlag(c)}
	c.Flags().BoolVarP(&o.forceShare, "force-share", "U", false,
		"look at an image that another process writes to; what is shown may be inconsistent")
	refuse(c, refuseObject, refuseImageOpts)
	c.SetFlagErrorFunc(flagError)
	return o
}

// open opens the file read-only.
func (o *imageCommand) open(path string) (*hostfile.File, error) {
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true, Lock: o.lock()})
	if errors.Is(err, block.ErrInUse) {
		err = fmt.Errorf("%w, or read with force-share (-U) if an inconsistent view is good enough", err)
	}
	return f, err
}

func (o *imageCommand) lock() hostfile.Lock {
	if o.forceShare {
		return hostfile.LockShared
	}
	return hostfile.LockAuto
}

func (o *imageCommand) raw() bool { return o.format.value == formatRaw }

// checkBacking says whether backing fits the format.
func (o *imageCommand) checkBacking(backing *backingChoice) error {
	if o.raw() && backing.given() {
		return errors.New("--backing: a raw image has no backing file: expected -f qcow2")
	}
	return nil
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
