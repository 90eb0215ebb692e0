package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"tidemark/fusefs"
)

// show shows the disks as files in a directory of the pool, from the same engines
// that are served over NBD, so that both front ends see the same bytes. That is an
// extra: where it cannot be done, for want of FUSE or of rights, the reason is kept
// to be told, and everything else goes on.
func (s *service) show(o *runOptions, log *slog.Logger) {
	if o.files == nil || o.files.value == "off" {
		return
	}
	markIOFlusher(log)
	dir := filepath.Join(o.pool.dir, "disks")
	if err := os.Mkdir(dir, 0o700); err != nil && !os.IsExist(err) {
		s.notShown = err
		return
	}
	var files []fusefs.File
	for i, d := range s.disks {
		files = append(files, d.File(s.names[i]+".raw"))
	}
	space := spaceBelow{pool: s.pool}
	s.files, s.notShown = fusefs.Mount(dir, files, fusefs.Options{Source: absolute(o.pool.dir), Space: space.figures, Logger: log})
	if s.notShown != nil {
		_ = os.Remove(dir) // it stays if there is something in it
	}
}

// describeFiles says where the files are, or why they are not.
func (s *service) describeFiles() string {
	switch {
	case s.files != nil:
		names := make([]string, len(s.names))
		for i, n := range s.names {
			names[i] = shellQuote(s.files.Path(n + ".raw"))
		}
		return fmt.Sprintf("files     %s\n", strings.Join(names, " "))
	case s.notShown != nil:
		return fmt.Sprintf("files     none, because %v\n", s.notShown)
	}
	return ""
}

// closeFrontEnds stops serving, over NBD and as files at the same time: those who
// use a disk have drainLimit in all.
func (s *service) closeFrontEnds(ctx context.Context) []error {
	var nbdErr, filesErr error
	var both sync.WaitGroup
	both.Go(func() {
		nbdErr = s.server.Shutdown(ctx)
		s.served.Wait()
	})
	if s.files != nil {
		both.Go(func() {
			filesErr = s.files.Close(ctx)
			_ = os.Remove(s.files.Target()) // it stays if something is in it after all
		})
	}
	both.Wait()
	return []error{nbdErr, filesErr}
}
