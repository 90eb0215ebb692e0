package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/unixsock"
	"tidemark/nbd"
	"tidemark/qcow2"
	"tidemark/spm"
)

// The control socket of tidemark nbd speaks HTTP and JSON. Who may connect (mode 0600)
// may do everything. A POST has a [controlRequest], and is answered with the state that
// GET / tells, or with a [controlError].
//
//	GET  /          what is served: a [controlState]
//	POST /flush     make durable what has completed
//	POST /resize    {"size": BYTES}: make the disk larger; NBD clients see it when they
//	                connect again
//	POST /snapshot  {"leaf": VOLUME}: write to that volume from now on, which the pool
//	                has made on the present leaf
//	POST /merge     {"leaf": VOLUME}: copy the leaf into the volume below it, and write
//	                to both
//	POST /pivot     {"leaf": VOLUME}: when that is ready: drop the leaf
//	POST /cancel    {"leaf": VOLUME}: write to the leaf alone
//	POST /manager   {"manager": SOCKET}: ask the pool manager on that socket from now on,
//	                for all exports
//	POST /stop      end the process, as SIGTERM does
//
// All but /stop may be repeated: what is so already is left so. Status codes: 400 the
// request is wrong, 404 there is no such export or volume, 409 not possible now, 507 no
// space, 500 all else.

// A controlRequest says what to do. Export is the name of an export; it may be left
// out where there is only one.
type controlRequest struct {
	Export *string `json:"export,omitempty"`
	Leaf   string  `json:"leaf,omitempty"`
	Size   int64   `json:"size,omitempty"`
	// Manager is the socket of a pool manager.
	Manager string `json:"manager,omitempty"`
}

// A controlError is the answer to what could not be done.
type controlError struct {
	Message string `json:"error"`
	// Unfit says that the disk cannot have that, however often it is asked.
	Unfit bool `json:"unfit,omitempty"`
}

// A controlState is what a process serves. Sizes are in bytes.
type controlState struct {
	PID     int             `json:"process_id"`
	Address string          `json:"address"` // of the NBD socket
	Started time.Time       `json:"started"`
	NBD     nbd.Stats       `json:"nbd"`               // with the requests that wait for space
	Manager string          `json:"manager,omitempty"` // the socket of the pool manager that it asks
	Exports []controlExport `json:"exports"`
}

// A controlExport is one disk. Chain are the volumes below the leaf, the nearest
// first; of files it is empty.
type controlExport struct {
	Name     string       `json:"name"`
	Image    string       `json:"image"`            // as it was named
	Domain   string       `json:"domain,omitempty"` // of a volume: its UUID
	Leaf     string       `json:"leaf,omitempty"`   // volume UUID
	Chain    []string     `json:"chain"`
	File     string       `json:"file"`
	Size     int64        `json:"size"`
	ReadOnly bool         `json:"read_only"`
	End      int64        `json:"end"`     // of the image in the leaf
	Used     int64        `json:"used"`    // up to the highest byte that holds something
	Granted  int64        `json:"granted"` // what the leaf has
	Waiting  int64        `json:"waiting"` // bytes that it waits for
	Stopped  string       `json:"stopped,omitempty"`
	Merge    controlMerge `json:"merge"`
}

// A controlMerge is what becomes of a merge. State is "" if there is none, or copying,
// ready, failed.
type controlMerge struct {
	State string `json:"state"`
	Leaf  string `json:"leaf,omitempty"`
	Error string `json:"error,omitempty"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// state says what is served now.
func (s *nbdService) state() controlState {
	c := controlState{PID: os.Getpid(), Address: s.gate.Addr().String(), Started: s.started, NBD: s.server.Stats()}
	if s.pool != nil {
		c.Manager = s.pool.Socket()
	}
	for i, d := range s.disks {
		c.Exports = append(c.Exports, d.describe(s.plan.exports[i]))
	}
	return c
}

func (s *served) describe(x nbdExport) controlExport {
	d := s.disk.Load()
	stats := d.Stats()
	e := controlExport{
		Name: x.name, Image: x.image, Chain: []string{}, File: d.Path(), Size: d.device.Info().Size, ReadOnly: d.spec.ReadOnly,
		End: stats.End, Used: stats.Used(), Granted: stats.Granted,
	}
	if d.volume != nil {
		e.Domain, e.Leaf = d.volume.Info().DomainUUID, d.volume.Info().VolumeUUID
	}
	for _, l := range d.below {
		if l.volume != nil {
			e.Chain = append(e.Chain, l.volume.Info().VolumeUUID)
		}
	}
	if stats.Poisoned != nil {
		e.Stopped = stats.Poisoned.Error()
	}
	if t := stats.Thin; t != nil {
		e.Granted, e.Waiting = t.Granted, t.WaitingBytes
	}
	if m := s.merging(); m != nil {
		p := m.mirror.Progress()
		e.Merge = controlMerge{State: string(p.State), Leaf: m.leaf, Done: p.Done, Total: p.Total}
		if p.Err != nil {
			e.Merge.Error = p.Err.Error()
		}
	}
	return e
}

// control answers on the control socket.
func (s *nbdService) control() error {
	l, err := unixsock.Listen(s.plan.control, unixsock.Options{Mode: 0o600})
	if err != nil {
		return fmt.Errorf("--control: %w", err)
	}
	server := &http.Server{
		Handler: s.controlHandler(), ReadHeaderTimeout: 10 * time.Second,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Error("the control socket does not answer any more", "error", err)
		}
	}()
	s.opened(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), switchLimit)
		defer cancel()
		return server.Shutdown(ctx)
	})
	return nil
}

func (s *nbdService) controlHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, s.state()) })
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, s.state())
		s.stop()
	})
	for verb, do := range map[string]func(context.Context, *served, controlRequest) error{
		"flush":    func(ctx context.Context, d *served, _ controlRequest) error { return d.Device().Flush(ctx) },
		"resize":   func(ctx context.Context, d *served, r controlRequest) error { return d.Resize(ctx, r.Size) },
		"snapshot": func(ctx context.Context, d *served, r controlRequest) error { return d.Snapshot(ctx, r.Leaf) },
		"merge":    func(ctx context.Context, d *served, r controlRequest) error { return d.MergeStart(ctx, r.Leaf) },
		"pivot":    func(ctx context.Context, d *served, r controlRequest) error { return d.MergePivot(ctx, r.Leaf) },
		"cancel":   func(ctx context.Context, d *served, r controlRequest) error { return d.MergeCancel(ctx, r.Leaf) },
		"manager":  func(_ context.Context, _ *served, r controlRequest) error { return s.redirect(r.Manager) },
	} {
		mux.HandleFunc("POST /"+verb, func(w http.ResponseWriter, r *http.Request) {
			err := s.command(r, do)
			if err != nil {
				answer(w, statusOfError(err), controlError{err.Error(), unfit(err)})
				return
			}
			answer(w, http.StatusOK, s.state())
		})
	}
	return mux
}

// controlBodyMax bounds the body of a request.
const controlBodyMax = 64 << 10

var (
	errBadRequest = errors.New("bad request")
	errNoExport   = errors.New("there is no such export")
)

func (s *nbdService) command(r *http.Request, do func(context.Context, *served, controlRequest) error) error {
	var q controlRequest
	if r.ContentLength != 0 {
		d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, controlBodyMax))
		d.DisallowUnknownFields()
		if err := d.Decode(&q); err != nil {
			return fmt.Errorf("%w: expected a JSON object with export, leaf, size or manager: %w", errBadRequest, err)
		}
	}
	if q.Export == nil {
		if len(s.disks) != 1 {
			return fmt.Errorf("%w: there are %d exports: say which as \"export\"", errBadRequest, len(s.disks))
		}
		return do(r.Context(), s.disks[0], q)
	}
	for i, x := range s.plan.exports {
		if x.name == *q.Export {
			return do(r.Context(), s.disks[i], q)
		}
	}
	return fmt.Errorf("%w: %q", errNoExport, *q.Export)
}

func unfit(err error) bool {
	return errors.As(err, new(*qcow2.CorruptError)) || errors.As(err, new(*qcow2.UnsupportedError)) || errors.Is(err, block.ErrUnsupported)
}

func statusOfError(err error) int {
	switch {
	case errors.Is(err, errBadRequest):
		return http.StatusBadRequest
	case errors.Is(err, errNoExport), errors.Is(err, fs.ErrNotExist), spm.CodeOf(err) == spm.CodeNotFound:
		return http.StatusNotFound
	case errors.Is(err, errConflict), errors.Is(err, block.ErrInUse), errors.Is(err, block.ErrReadOnly), errors.Is(err, block.ErrUnsupported):
		return http.StatusConflict
	case errors.Is(err, block.ErrNoSpace):
		return http.StatusInsufficientStorage
	}
	return http.StatusInternalServerError
}

func answer(w http.ResponseWriter, status int, what any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(what) // who has gone does not read it
}
