package nbd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"
)

// Export is a Device with the name under which it is served.
type Export struct {
	// Name is what clients ask for. The empty name is the default export.
	Name string
	// Description is shown to human beings.
	Description string
	// Device is what is served. It stays the caller's, who closes it after
	// Shutdown or RemoveExport have returned.
	Device Device
	// ReadOnly refuses writes, whatever the Device is able to do.
	ReadOnly bool
	// Patience is the export's own; 0 is Options.Patience.
	Patience time.Duration
	// AllocationDepth offers the metadata context qemu:allocation-depth: which image
	// of a backing chain has an extent.
	AllocationDepth bool
	// Rotational tells clients that seeking is slow below.
	Rotational bool
	// NoMultiConn keeps from clients that several connections are as good as
	// one, also if the Device's Info says so.
	NoMultiConn bool
}

// export is an Export and its connections.
type export struct {
	Export
	maxTransfer int // the Device's, bytes; 0 is unlimited

	mu       sync.Mutex // guards what follows
	sessions map[*session]struct{}
	removed  bool
}

func newExport(x Export) (*export, error) {
	if err := checkString(x.Name); err != nil {
		return nil, fmt.Errorf("name of export %.40q: %w", x.Name, err)
	}
	if err := checkString(x.Description); err != nil {
		return nil, fmt.Errorf("description of export %q: %w", x.Name, err)
	}
	if x.Device == nil {
		return nil, fmt.Errorf("export %q has no device", x.Name)
	}
	i := x.Device.Info()
	if m := i.MinBlock; m < 0 || m > minBlockMax || m&(m-1) != 0 {
		return nil, fmt.Errorf("export %q: minimum block size %d, expected a power of two up to %d", x.Name, m, minBlockMax)
	}
	if i.Size < 0 {
		return nil, fmt.Errorf("export %q: size %d, expected 0 or more", x.Name, i.Size)
	}
	return &export{Export: x, maxTransfer: maxTransfer(i), sessions: map[*session]struct{}{}}, nil
}

// contexts are those that the export offers.
func (e *export) contexts() contextSet {
	if e.AllocationDepth {
		return inAllocation | inDepth
	}
	return inAllocation
}

// maxTransfer is the largest piece in which a Device may be read or written that
// keeps the next piece aligned; 0 is unlimited.
func maxTransfer(i DeviceInfo) int {
	if i.MaxTransfer <= 0 {
		return 0
	}
	block := max(i.MinBlock, 1)
	return max(i.MaxTransfer&^(block-1), block)
}

// checkString: what the specification wants of every string.
func checkString(s string) error {
	if len(s) > stringBytesMax {
		return fmt.Errorf("%d bytes, expected at most %d", len(s), stringBytesMax)
	}
	for _, r := range s {
		if r == 0 {
			return errors.New("contains a NUL character")
		}
	}
	if !utf8.ValidString(s) {
		return errors.New("is not valid UTF-8")
	}
	return nil
}

// enter adds a session, after every request of dead connections has ended.
func (e *export) enter(ctx context.Context, s *session) error {
	for {
		dead, err := e.tryEnter(s)
		if err != nil || dead == nil {
			return err
		}
		dead.kill(errGone)
		select {
		case <-dead.done:
		case <-ctx.Done():
			return fmt.Errorf("requests of a connection that has ended are still in progress: %w", ctx.Err())
		}
	}
}

// tryEnter adds s, or returns a session that is in the way.
func (e *export) tryEnter(s *session) (*session, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.removed {
		return nil, fmt.Errorf("export %q was removed: %w", e.Name, ErrShutdown)
	}
	for other := range e.sessions {
		if other.dead.Load() || other.hungUp() {
			return other, nil
		}
	}
	e.sessions[s] = struct{}{}
	return nil, nil
}

func (e *export) leave(s *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.sessions, s)
}

// remove keeps new sessions out and returns those that are there.
func (e *export) remove() []*session {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.removed = true
	var ss []*session
	for s := range e.sessions {
		ss = append(ss, s)
	}
	return ss
}
