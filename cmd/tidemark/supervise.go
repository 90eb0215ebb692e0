package main

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// A supervisor is the service manager that has started this process: systemd, if
// it wants to hear from it (sd_notify(3)); otherwise nobody, and nothing is done.
type supervisor struct {
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}
}

// supervise says that everything is ready, and from then on as often as systemd
// asks for it (WatchdogSec=) that alive has returned. A process whose alive does
// not return, because a lock is held for ever, is killed and started again.
func supervise(log *slog.Logger, status string, alive func(context.Context)) *supervisor {
	ctx, cancel := context.WithCancel(context.Background())
	s := &supervisor{log: log, stop: cancel, done: make(chan struct{})}
	s.tell(daemon.SdNotifyReady, "STATUS="+status)
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog is not told anything", "error", err)
	}
	if err != nil || every <= 0 {
		close(s.done)
		return s
	}
	go s.watch(ctx, every/3, alive)
	return s
}

func (s *supervisor) watch(ctx context.Context, every time.Duration, alive func(context.Context)) {
	defer close(s.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		alive(ctx)
		s.tell(daemon.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Status shows a line in systemctl status.
func (s *supervisor) Status(text string) { s.tell("STATUS=" + text) }

// Stopping says that the end has begun, which may take as long as requests in
// progress do.
func (s *supervisor) Stopping() {
	s.stop()
	s.tell(daemon.SdNotifyStopping, "STATUS=stopping")
}

// tell sends assignments in one message. That nobody hears it is no reason to stop.
func (s *supervisor) tell(assignments ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(assignments, "\n")); err != nil {
		s.log.Warn("the service manager was not told", "what", assignments, "error", err)
	}
}
