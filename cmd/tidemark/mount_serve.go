package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tidemark/fusefs"
	"tidemark/spm"
)

// A mountService shows what a plan says. What is opened is closed again in the
// reverse order:
//
//	mount -> disks, the last first -> pool
type mountService struct {
	opener // the disks, and what else has to be closed
	plan   mountPlan
	fs     *fusefs.FS
	space  spaceBelow
}

// serveMount serves until ctx ends or the mount is removed.
func serveMount(ctx context.Context, p mountPlan, log *slog.Logger) error {
	// A reader of our log that goes away must not end the disks.
	signal.Ignore(syscall.SIGPIPE)
	markIOFlusher(log)
	s := &mountService{plan: p, opener: opener{socket: p.spm, log: log}}
	err := s.start(ctx)
	if err == nil {
		err = forkReady()
	}
	if err == nil {
		up := supervise(log, fmt.Sprintf("%d files at %s", len(p.files), p.target), s.alive)
		select {
		case <-ctx.Done():
			log.Info("stopping: asked to")
		case <-s.fs.Done():
			log.Info("stopping: it was unmounted")
		}
		up.Stopping()
	}
	if err = errors.Join(err, s.close()); err == nil {
		log.Info("stopped: everything is committed")
	}
	return err
}

// markIOFlusher does so where it may.
func markIOFlusher(log *slog.Logger) {
	if err := fusefs.SetIOFlusher(); err != nil {
		log.Debug("under a lack of memory the host may wait for itself", "error", err)
	}
}

// start opens the images and shows them.
func (s *mountService) start(ctx context.Context) error {
	var files []fusefs.File
	memory := respectMemory(s.log)
	for _, f := range s.plan.files {
		opened, err := s.open(ctx, diskSpec{
			Image: f.image, ReadOnly: s.plan.readOnly, IgnoreDiscard: s.plan.ignoreDiscard,
			Raw: s.plan.raw, Backing: &s.plan.backing, CacheBytes: memory.cache(len(s.plan.files)),
		})
		if err != nil {
			return err
		}
		d := opened.disk.Load() // nothing is exchanged here
		s.space.add(d)
		files = append(files, d.File(f.name))
	}
	if s.pool != nil {
		s.space.pool = s.pool
	}
	fs, err := fusefs.Mount(s.plan.target, files, fusefs.Options{
		ReadOnly: s.plan.readOnly, AllowOther: s.plan.allowOther, Source: s.source(),
		Space: s.space.figures, Logger: s.log,
	})
	if err != nil {
		return err
	}
	s.fs = fs
	s.opened(s.unmount)
	for _, f := range files {
		s.log.Info("file is ready", "file", fs.Path(f.Name), "size", f.Device.Info().Size)
	}
	return nil
}

// source is what /proc/mounts and df show: the image if there is one.
func (s *mountService) source() string {
	if len(s.plan.files) == 1 {
		return s.plan.files[0].image
	}
	return "tidemark"
}

// unmount lets those who have a file open go on for a bounded time.
func (s *mountService) unmount() error {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	return s.fs.Close(ctx)
}

// File is the disk for fusefs. It can grow unless its space is a pool's, which
// has computed its bound for the size that it has.
func (d *disk) File(name string) fusefs.File {
	f := fusefs.File{Name: name, Device: d.Device(), Allocated: func() int64 { return d.Stats().Used() }}
	if d.spec.Pool == nil && !d.spec.ReadOnly && d.image != nil {
		f.Resize = d.image.Grow
	}
	return f
}

// spaceBelow tells how much space there is below the disks of a mount: of the file
// systems that hold their images, each once, and of the pool.
type spaceBelow struct {
	hosts map[uint64]string // a path on each file system, by st_dev
	pool  interface {
		GetPoolInfo(ctx context.Context, r spm.PoolInfoRequest) (spm.PoolReply, error)
	}
}

// askLimit bounds the question to a pool manager: who asks is statfs(2), and the
// manager may be gone for a while.
const askLimit = 2 * time.Second

func (b *spaceBelow) add(d *disk) {
	var st unix.Stat_t
	if d.spec.Pool != nil || unix.Stat(d.Path(), &st) != nil {
		return
	}
	if b.hosts == nil {
		b.hosts = map[uint64]string{}
	}
	b.hosts[st.Dev] = d.Path()
}

// figures returns bytes. What cannot be asked does not count.
func (b *spaceBelow) figures() (total, free int64) {
	for _, path := range b.hosts {
		var s unix.Statfs_t
		if unix.Statfs(path, &s) == nil {
			total += int64(s.Blocks) * s.Frsize
			free += int64(s.Bavail) * s.Frsize
		}
	}
	if b.pool == nil {
		return total, free
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	if p, err := b.pool.GetPoolInfo(ctx, spm.PoolInfoRequest{}); err == nil {
		total += p.Capacity
		free += min(p.Free, p.HostFree)
	}
	return total, free
}
