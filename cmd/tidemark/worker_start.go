package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
	"tidemark/spm"
)

// imageJobs is the pool manager's tool for what is in volumes: every call is a
// worker, a child that ends with this process.
type imageJobs struct {
	noDM bool // do not use device-mapper, although it is there
	log  *slog.Logger
	env  []string // of the workers, besides ours
}

var _ spm.ImageJobs = (*imageJobs)(nil)

// Measure is described at spm.ImageJobs, as the other methods are.
func (j *imageJobs) Measure(ctx context.Context, chain []spm.Place, format string) (m spm.Measure, err error) {
	err = j.run(ctx, workerJob{Job: jobMeasure, Chain: places(chain), Format: format}, nil, &m)
	return m, err
}

// Use is described at spm.ImageJobs.
func (j *imageJobs) Use(ctx context.Context, chain []spm.Place) (u spm.ImageUse, err error) {
	err = j.run(ctx, workerJob{Job: jobUse, Chain: places(chain)}, nil, &u)
	return u, err
}

// Check is described at spm.ImageJobs.
func (j *imageJobs) Check(ctx context.Context, chain []spm.Place) error {
	return j.run(ctx, workerJob{Job: jobCheck, Chain: places(chain)}, nil, nil)
}

// Copy is described at spm.ImageJobs.
func (j *imageJobs) Copy(ctx context.Context, chain []spm.Place, to spm.Place, backing *spm.BackingRef, p spm.Progress) error {
	return j.run(ctx, workerJob{Job: jobCopy, Chain: places(chain), To: &workerPlace{Place: to}, Backing: backing}, p, nil)
}

// Commit is described at spm.ImageJobs.
func (j *imageJobs) Commit(ctx context.Context, chain []spm.Place, base int, p spm.Progress) error {
	return j.run(ctx, workerJob{Job: jobCommit, Chain: places(chain), Base: base}, p, nil)
}

// Rebase is described at spm.ImageJobs.
func (j *imageJobs) Rebase(ctx context.Context, at spm.Place, backing *spm.BackingRef) error {
	return j.run(ctx, workerJob{Job: jobRebase, Chain: places([]spm.Place{at}), Backing: backing}, nil, nil)
}

// Resize is described at spm.ImageJobs.
func (j *imageJobs) Resize(ctx context.Context, chain []spm.Place, size int64) error {
	return j.run(ctx, workerJob{Job: jobResize, Chain: places(chain), Size: size}, nil, nil)
}

// Settle is described at spm.ImageJobs.
func (j *imageJobs) Settle(ctx context.Context, chain []spm.Place, p spm.Progress) error {
	return j.run(ctx, workerJob{Job: jobSettle, Chain: places(chain)}, p, nil)
}

func places(all []spm.Place) []workerPlace {
	out := make([]workerPlace, len(all))
	for i, p := range all {
		out[i] = workerPlace{Place: p}
	}
	return out
}

// run lets a worker do a job, and reads what it says. When ctx ends, the worker is
// killed.
func (j *imageJobs) run(ctx context.Context, job workerJob, p spm.Progress, result any) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", job.Job, err)
		}
	}()
	job.NoDM = j.noDM
	files, err := job.openFiles()
	defer func() {
		for _, f := range files {
			_ = f.Close() // the worker has its own
		}
	}()
	if err != nil {
		return err
	}
	spec, err := json.Marshal(job)
	if err != nil {
		return err
	}
	// The death signal is that of the thread which forked: the thread must live as
	// long as the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var stderr bytes.Buffer
	c := exec.CommandContext(ctx, "/proc/self/exe", "worker", "--log-level", "warn")
	c.Env = append(os.Environ(), j.env...)
	c.Stdin, c.Stderr, c.ExtraFiles = bytes.NewReader(spec), &stderr, files
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	last := readWorker(out, p)
	err = c.Wait()
	if stderr.Len() > 0 && j.log != nil {
		j.log.Warn("a worker has said", "job", job.Job, "text", strings.TrimSpace(stderr.String()))
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case last.Error != nil:
		return last.Error
	case err != nil:
		return fmt.Errorf("the worker ended before it was done (%w): %s", err, strings.TrimSpace(stderr.String()))
	case last.Result == nil:
		return errors.New("the worker ended without a result")
	case result == nil:
		return nil
	}
	return json.Unmarshal(last.Result, result)
}

// readWorker passes progress on, and returns the last line.
func readWorker(out io.Reader, p spm.Progress) (last workerLine) {
	for d := json.NewDecoder(out); ; {
		var l workerLine
		if d.Decode(&l) != nil {
			_, _ = io.Copy(io.Discard, out) // the worker's end says what is wrong
			return last
		}
		if l.Result == nil && l.Error == nil && p != nil {
			p(l.Done, l.Total)
		}
		last = l
	}
}

// openFiles opens the files of a job, and says which descriptors the worker will have
// for them. They are not read: the worker opens them again as it needs them.
func (job *workerJob) openFiles() (files []*os.File, err error) {
	all := make([]*workerPlace, 0, len(job.Chain)+1)
	for i := range job.Chain {
		all = append(all, &job.Chain[i])
	}
	if job.To != nil {
		all = append(all, job.To)
	}
	for _, p := range all {
		if p.Mapping != nil {
			continue
		}
		f, err := hostfile.Tree(p.Beneath).Open(p.Path)
		if err != nil {
			return files, fmt.Errorf("volume %s: %w", p.VolumeUUID, err)
		}
		files = append(files, f)
		p.FD = readyFD + len(files) - 1
	}
	return files, nil
}

// A workerError is an error of a worker, or of a server, on its way to the manager that
// has started it. What kind it is survives.
type workerError struct {
	Message string `json:"message"`
	Kind    string `json:"kind,omitempty"`
}

// errCorrupt: an image contradicts itself.
var errCorrupt = errors.New("the image is corrupt")

// workerKinds are the kinds of errors that survive.
var workerKinds = map[string]error{
	"no space": block.ErrNoSpace, "in use": block.ErrInUse, "unsupported": block.ErrUnsupported,
	"missing": fs.ErrNotExist, "corrupt": errCorrupt,
}

func newWorkerError(err error) *workerError {
	e := &workerError{Message: err.Error()}
	var corrupt *qcow2.CorruptError
	if errors.As(err, &corrupt) || errors.Is(err, qcow2.ErrNotQCOW2) {
		e.Kind = "corrupt"
	}
	if errors.As(err, new(*qcow2.UnsupportedError)) {
		e.Kind = "unsupported"
	}
	for kind, is := range workerKinds {
		if errors.Is(err, is) {
			e.Kind = kind
		}
	}
	return e
}

func (e *workerError) Error() string { return e.Message }

func (e *workerError) Unwrap() error { return workerKinds[e.Kind] }

// Is says that nothing but another image helps.
func (e *workerError) Is(target error) bool {
	return target == spm.ErrUnfit && (e.Kind == "corrupt" || e.Kind == "unsupported")
}
