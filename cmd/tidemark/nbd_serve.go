package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"tidemark/nbd"
)

// An nbdService serves what a plan says. What is opened is closed again in the
// reverse order, also when the start fails half way:
//
//	control socket -> pid file -> listener -> server -> disks, the last first -> pool
type nbdService struct {
	opener // the disks, and what else has to be closed
	plan   nbdPlan
	server *nbd.Server
	gate   *gate
	memory memoryBudget

	started time.Time
	stop    func() // lets the process end
}

// serveNBD serves until ctx ends, the last client has gone, or the listener
// fails.
func serveNBD(ctx context.Context, p nbdPlan, log *slog.Logger) error {
	// A reader of our log that goes away must not end the disks.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	s := &nbdService{plan: p, opener: opener{socket: p.spm, log: log}, started: time.Now().UTC(), stop: stop}
	err := s.start(ctx)
	if err == nil {
		err = forkReady()
	}
	if err != nil {
		return errors.Join(err, s.close())
	}
	if p.qmp != "" {
		resume, stop := context.WithCancel(ctx)
		defer stop()
		go newResumer(p.qmp, s.disks, log).run(resume)
	}
	up := supervise(log, s.describe(), s.alive)
	failed := make(chan error, 1)
	go func() { failed <- s.server.Serve(s.gate) }()
	select {
	case <-ctx.Done():
		log.Info("stopping: asked to")
	case <-s.gate.Idle():
		log.Info("stopping: the last client has gone (-t would go on)")
	case err = <-failed:
		err = fmt.Errorf("accept connections: %w", err)
	}
	up.Stopping()
	if err = errors.Join(err, s.close()); err == nil {
		log.Info("stopped: everything is committed")
	}
	return err
}

// start opens everything. The socket comes last: it appears when all is ready.
func (s *nbdService) start(ctx context.Context) error {
	s.memory = respectMemory(s.log)
	o := s.plan.server
	o.Logger, o.MaxInFlightBytes = s.log, s.memory.requests()
	var err error
	if o.TLS, err = s.plan.tls.server(); err != nil {
		return err
	}
	s.server = nbd.NewServer(o)
	for _, x := range s.plan.exports {
		if err := s.export(ctx, x); err != nil {
			return err
		}
	}
	s.opened(s.drain)
	if err := s.listen(ctx); err != nil || s.plan.control == "" {
		return err
	}
	return s.control()
}

// export opens one image and offers it.
func (s *nbdService) export(ctx context.Context, x nbdExport) error {
	d, err := s.open(ctx, diskSpec{
		Image: x.image, Domain: s.plan.domain, ReadOnly: s.plan.readOnly, IgnoreDiscard: s.plan.ignoreDiscard,
		NoDM: s.plan.noDM, AllowIllegal: s.plan.allowIllegal, Raw: s.plan.raw, Backing: &s.plan.backing, CacheBytes: s.memory.cache(len(s.plan.exports)),
		Exchanged: s.plan.control != "",
	})
	if err != nil {
		return err
	}
	s.log.Info("export is ready", x.logAttrs(d.disk.Load()))
	export := nbd.Export{
		Name: x.name, Description: x.description, Device: d.Device(),
		ReadOnly: s.plan.readOnly, AllocationDepth: s.plan.allocationDepth, Rotational: s.plan.rotational, NoMultiConn: s.plan.shared == 1,
	}
	if !s.plan.patient {
		export.Patience = d.disk.Load().patience
	}
	return s.server.AddExport(export)
}

// listen makes the socket and the pid file, and then says so.
func (s *nbdService) listen(ctx context.Context) error {
	l, err := s.plan.listener(ctx)
	if err != nil {
		return err
	}
	s.gate = newGate(l, s.plan.shared, s.plan.persistent)
	s.opened(func() error { return ignoreClosed(s.gate.Close()) })
	if err := s.writePID(); err != nil {
		return err
	}
	s.log.Info("listening", l.Addr().Network(), l.Addr().String())
	return nil
}

// writePID writes the pid file in one step, so that who waits for it never reads
// half a number.
func (s *nbdService) writePID() error {
	path := s.plan.pidFile
	if path == "" {
		return nil
	}
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	err := os.WriteFile(temporary, fmt.Appendf(nil, "%d\n", os.Getpid()), 0o644)
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		os.Remove(temporary) //nolint:errcheck // it may never have been made
		return fmt.Errorf("--pid-file: %w", err)
	}
	s.opened(func() error { return ignoreMissing(os.Remove(path)) })
	return nil
}

// describe is what systemctl status shows.
func (s *nbdService) describe() string {
	return fmt.Sprintf("%d exports on %s %s", len(s.plan.exports), s.plan.network, s.gate.Addr())
}

// drain lets requests in progress finish, for a bounded time.
func (s *nbdService) drain() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	return s.server.Shutdown(ctx)
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
