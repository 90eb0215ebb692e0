package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/lvm"
	"tidemark/qcow2"
	"tidemark/spm"
)

// A worker does one job on images in a process of its own, which the pool manager
// starts: that one reads no image, for what is in one its owner has written (rule
// 33). The job comes as JSON on standard input; what becomes of it goes as lines of
// JSON to standard output. Files are descriptors that the worker has inherited, so
// it opens what the manager has meant, whatever happens to the names meanwhile. It
// dies with the manager, at any moment, and every job may be repeated then.

// The jobs.
const (
	jobMeasure = "measure"
	jobUse     = "use"
	jobCheck   = "check"
	jobCopy    = "copy"
	jobCommit  = "commit"
	jobRebase  = "rebase"
	jobResize  = "resize"
	jobSettle  = "settle"
)

// A workerJob is what a worker is to do. Chain goes from the base to the top.
type workerJob struct {
	Job     string          `json:"job"`
	Chain   []workerPlace   `json:"chain"`
	To      *workerPlace    `json:"to,omitempty"`
	Base    int             `json:"base,omitempty"`
	Backing *spm.BackingRef `json:"backing,omitempty"`
	Format  string          `json:"format,omitempty"`
	Size    int64           `json:"size,omitempty"`
	NoDM    bool            `json:"no_dm,omitempty"`
}

// A workerPlace is a volume of a job: a descriptor, or the mapping of a logical volume.
type workerPlace struct {
	spm.Place
	FD int `json:"fd,omitempty"`
}

// A workerLine is what a worker says: how far it is, or at last what came out.
type workerLine struct {
	Done   int64           `json:"done,omitempty"`
	Total  int64           `json:"total,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *workerError    `json:"error,omitempty"`
}

func newWorker(g *global) *cobra.Command {
	c := &cobra.Command{
		Use: "worker", Short: "Do one job on images, which the pool manager says on standard input", Hidden: true, Args: noArguments,
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		log, err := g.logger(c.ErrOrStderr())
		if err != nil {
			return err
		}
		respectMemory(log)
		w := &worker{out: json.NewEncoder(c.OutOrStdout()), log: log, stop: plannedStop()}
		d := json.NewDecoder(c.InOrStdin())
		d.DisallowUnknownFields()
		if err := d.Decode(&w.job); err != nil {
			return fmt.Errorf("worker: expected a job on standard input: %w", err)
		}
		return w.finish(w.run(c.Context()))
	}
	return c
}

// A worker is the process's one job.
type worker struct {
	job  workerJob
	log  *slog.Logger
	stop func(done int64) // told of all progress; nil but in tests

	mu  sync.Mutex // guards all below
	out *json.Encoder
	was time.Time // when progress was told last
}

// progress tells how far the job is, now and then.
func (w *worker) progress(done, total int64) {
	if w.stop != nil {
		w.stop(done)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); done >= total || now.Sub(w.was) >= progressEvery {
		w.was = now
		_ = w.out.Encode(workerLine{Done: done, Total: total}) // who does not listen may miss it
	}
}

// finish tells what came out, and returns what the process ends with.
func (w *worker) finish(result any, err error) error {
	line := workerLine{Result: json.RawMessage("null")}
	if err != nil {
		line = workerLine{Error: newWorkerError(err)}
	} else if line.Result, err = json.Marshal(result); err != nil {
		return err
	}
	if err := w.out.Encode(line); err != nil && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	if line.Error != nil {
		return &exitError{code: exitFailure} // it has been told
	}
	return nil
}

// run does the job.
func (w *worker) run(ctx context.Context) (any, error) {
	switch w.job.Job {
	case jobMeasure:
		return w.measure(ctx)
	case jobUse:
		return w.use(ctx)
	case jobCheck:
		return nil, w.check(ctx)
	case jobCopy:
		return nil, w.copy(ctx)
	case jobCommit:
		return nil, w.commit(ctx)
	case jobRebase:
		return nil, w.rebase(ctx)
	case jobResize:
		return nil, w.resize(ctx)
	case jobSettle:
		return nil, w.settle(ctx)
	}
	return nil, fmt.Errorf("job %q: %w", w.job.Job, block.ErrUnsupported)
}

// openChain opens the chain, of which only the volume with the number writable is
// opened for writing, none if that is negative. The top comes first. A job that only
// looks may be given the upper part of a chain: what is below it reads zero.
func (w *worker) openChain(ctx context.Context, writable int) (c chain, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if len(w.job.Chain) == 0 || len(w.job.Chain) > maxChain {
		return nil, fmt.Errorf("a chain of %d volumes: expected 1 to %d", len(w.job.Chain), maxChain)
	}
	for i := len(w.job.Chain) - 1; i >= 0; i-- {
		l := w.layer(w.job.Chain[i])
		l.writable = i == writable
		if w.job.Job == jobSettle {
			l.settling = w.progress
		}
		if err := l.openFile(ctx, !l.writable); err != nil {
			return c, fmt.Errorf("volume %s: %w", w.job.Chain[i].VolumeUUID, err)
		}
		c = append(c, l)
	}
	var below block.Device
	if h := c[len(c)-1].header; h != nil && h.BackingFile != "" && w.looks() {
		below = nothing{}
	}
	if _, err = c.openOver(ctx, below, w.log); err != nil {
		return c, err
	}
	return c, nil
}

// looks reports whether the job is about what the volumes have themselves.
func (w *worker) looks() bool {
	return w.job.Job == jobMeasure || w.job.Job == jobUse || w.job.Job == jobCheck
}

// nothing is a disk of no size, in the place of what a job is not given.
type nothing struct{ block.Device }

func (nothing) Info() block.DeviceInfo { return block.DeviceInfo{MinBlock: 1, ReadOnly: true} }

// layer is a volume that is not open yet.
func (w *worker) layer(p workerPlace) *layer {
	l := &layer{path: p.Path, format: p.Format, size: p.Size}
	l.again = func(ctx context.Context, readOnly bool) (block.File, *hostfile.File, error) {
		if p.Mapping != nil {
			f, err := w.openLV(ctx, p, readOnly)
			if err != nil {
				return nil, nil, err
			}
			return f, nil, nil
		}
		f, err := hostfile.Open(fmt.Sprintf("/proc/self/fd/%d", p.FD), hostfile.Options{ReadOnly: readOnly, Fixed: true, Name: p.Path})
		if err != nil {
			return nil, nil, err
		}
		return f, f, nil
	}
	return l
}

// openLV opens a logical volume, which nobody resizes meanwhile.
func (w *worker) openLV(ctx context.Context, p workerPlace, readOnly bool) (*lvFile, error) {
	m := p.Mapping
	how := lvm.Writing
	if readOnly {
		how = lvm.Reading
	}
	hold, err := lvm.Locks{Dir: m.LockDir}.Hold(m.LVUUID, how)
	if err != nil {
		return nil, err
	}
	tool, err := lvm.NewTool(lvm.ToolOptions{Devices: m.Devices, Dir: confDir(filepath.Dir(m.LockDir))})
	if err != nil {
		return nil, errors.Join(err, hold.Release())
	}
	f, err := openLV(ctx, m, lvSpec{lv: p.VolumeUUID, tool: tool, readOnly: readOnly, noDM: w.job.NoDM, log: w.log})
	if err != nil {
		return nil, errors.Join(err, hold.Release())
	}
	f.after = append(f.after, hold.Release)
	return f, nil
}

// with opens the chain, does what it is told, and closes the chain again.
func (w *worker) with(ctx context.Context, writable int, do func(chain) error) error {
	c, err := w.openChain(ctx, writable)
	if err != nil {
		return err
	}
	return errors.Join(do(c), c.Close())
}

// check fails if the top is corrupt, or must not be written to.
func (w *worker) check(ctx context.Context) error {
	return w.with(ctx, -1, func(c chain) error {
		if c[0].header == nil {
			return nil
		}
		if err := qcow2.Writable(c[0].header); err != nil {
			return fmt.Errorf("%s: %w", c[0].path, err)
		}
		r, err := qcow2.Check(ctx, c[0].file, qcow2.CheckOptions{Progress: w.progress})
		if err == nil && r.Corruptions+r.CheckErrors > 0 {
			err = fmt.Errorf("%s: %w: %d corruptions, %d places that cannot be read, among them: %v", c[0].path, errCorrupt, r.Corruptions, r.CheckErrors, r.Problems)
		}
		return err
	})
}

// use says how large the top is, and where its data ends.
func (w *worker) use(ctx context.Context) (u spm.ImageUse, err error) {
	err = w.with(ctx, -1, func(c chain) error {
		if c[0].header == nil {
			n := c[0].device.Info().Size
			u = spm.ImageUse{VirtualSize: n, End: n}
			return nil
		}
		r, err := qcow2.Check(ctx, c[0].file, qcow2.CheckOptions{})
		u = spm.ImageUse{VirtualSize: c[0].header.Size, End: r.ImageEnd}
		if len(c) > 1 {
			u.BackingSize = c[1].device.Info().Size
		}
		return err
	})
	return u, err
}

// rebase changes what the only volume says it is based on.
func (w *worker) rebase(ctx context.Context) error {
	if len(w.job.Chain) != 1 || w.job.Chain[0].Format != spm.FormatQCOW2 {
		return fmt.Errorf("rebase: expected one qcow2 volume: %w", block.ErrUnsupported)
	}
	l := w.layer(w.job.Chain[0])
	if err := l.openFile(ctx, false); err != nil {
		return err
	}
	var b spm.BackingRef
	if w.job.Backing != nil {
		b = *w.job.Backing
	}
	return errors.Join(qcow2.SetBacking(l.file, b.Name, b.Format), l.file.Close())
}

// resize sets the virtual size of the top. A raw volume is as long as it was granted.
func (w *worker) resize(ctx context.Context) error {
	return w.with(ctx, len(w.job.Chain)-1, func(c chain) error {
		if have := c[0].device.Info().Size; w.job.Size < have {
			return fmt.Errorf("a disk of %d bytes: expected it to become larger, not %d: %w", have, w.job.Size, block.ErrUnsupported)
		}
		return growDevice(ctx, c[0].device, w.job.Size)
	})
}
