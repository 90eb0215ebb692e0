//go:build linux

package fusefs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Options of a mount. The zero value works.
type Options struct {
	// ReadOnly refuses writes, whatever the Devices are able to do.
	ReadOnly bool
	// AllowOther lets other users in, as far as the files' modes do: root as
	// well, if the server is not root's. It takes user_allow_other in
	// /etc/fuse.conf, or root.
	AllowOther bool
	// Source is what /proc/mounts and df show in the first column; "" is
	// tidemark.
	Source string
	// Space is what statfs(2) tells: bytes of the storage below the files, and how
	// many of them are free. Nil: as many as the disks have, and none.
	Space func() (total, free int64)
	// MaxWrite is the largest request in bytes, reads as well; 0 is 256 KiB. The
	// kernel allows up to 1 MiB.
	MaxWrite int
	// Logger gets one message for each change of state, none for requests. Nil
	// discards.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Source == "" {
		o.Source = "tidemark"
	}
	if o.MaxWrite <= 0 {
		o.MaxWrite = maxWriteDefault
	}
	o.MaxWrite = max(o.MaxWrite, maxWriteMin)
	return o
}

// An FS is a mount that is being served.
type FS struct {
	target   string
	isDir    bool
	log      *slog.Logger
	conn     *connection
	crew     *crew
	requests *requests
	done     chan struct{} // closed when the kernel has ended the connection and nothing is in progress

	closing sync.Mutex // one Close at a time
	closed  bool
}

// Mount shows files at target: in a directory, which must be empty, or if target
// is an empty regular file as that file, of which there must be one. The mount
// answers when Mount returns. What a server that died has left at target is
// replaced.
func Mount(target string, files []File, o Options) (*FS, error) {
	o = o.withDefaults()
	fs, err := mount(target, files, o)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", target, err)
	}
	return fs, nil
}

func mount(target string, files []File, o Options) (*FS, error) {
	path, isDir, err := prepare(target, o.Logger)
	if err != nil {
		return nil, err
	}
	if err := checkFiles(files, isDir); err != nil {
		return nil, err
	}
	spec := mountSpec{source: o.Source, mode: unix.S_IFREG, maxRead: o.MaxWrite, allowOther: o.AllowOther, readOnly: o.ReadOnly}
	if isDir {
		spec.mode = unix.S_IFDIR
	}
	conn, err := connect(path, spec)
	if err != nil {
		return nil, err
	}
	fs := &FS{target: path, isDir: isDir, log: o.Logger.With("mount", path), conn: conn, done: make(chan struct{})}
	fs.requests = newRequests(fs.abandoned)
	if err := fs.serve(files, o); err != nil {
		return nil, errors.Join(err, conn.unmount(true), conn.close())
	}
	return fs, nil
}

// checkFiles finds what cannot be shown.
func checkFiles(files []File, isDir bool) error {
	if !isDir && len(files) != 1 {
		return fmt.Errorf("it is a file, which can become one disk, found %d: use a directory", len(files))
	}
	names := make(map[string]bool, len(files))
	for _, f := range files {
		if err := f.check(isDir); err != nil {
			return err
		}
		if names[f.Name] {
			return fmt.Errorf("two files have the name %q: give one of them another", f.Name)
		}
		names[f.Name] = true
	}
	return nil
}

// serve greets the kernel and begins to answer it.
func (fs *FS) serve(files []File, o Options) error {
	owner := fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())}
	fd, err := fs.conn.duplicate()
	if err != nil {
		return err
	}
	background := min(len(files)*backgroundPerFile, backgroundMax)
	server := newServer(files, fs.isDir, o, owner, fs.requests)
	cold := fuse.NewProtocolServer(server, &fuse.MountOptions{
		MaxWrite: o.MaxWrite, MaxBackground: background,
		ExtraCapabilities:  fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP,
		DisableXAttrs:      true,
		DisableReadDirPlus: true,
		Logger:             slog.NewLogLogger(fs.log.Handler(), slog.LevelDebug),
		PanicHandler:       fs.panicked,
	})
	fs.crew = newCrew(fd, server, cold, fs.log, background+synchronous, o.MaxWrite)
	if err := newReader(fs.crew).greet(); err != nil {
		return fmt.Errorf("greet the kernel: %w", errors.Join(err, unix.Close(fd)))
	}
	fs.crew.start()
	go func() {
		<-fs.crew.ended
		fs.requests.stop()
		close(fs.done)
	}()
	return nil
}

// panicked answers a request that has panicked outside any file.
func (fs *FS) panicked(cause any) fuse.Status {
	fs.log.Error("a request has panicked", "panic", cause, "stack", string(debug.Stack()))
	return fuse.EIO
}

// abandoned reports whether nobody waits for a request of that thread.
func (fs *FS) abandoned(thread uint32) bool { return fs.conn.gone() || dying(thread) }

// Target is what is mounted on, from the root.
func (fs *FS) Target() string { return fs.target }

// Path is where the file of that name is.
func (fs *FS) Path(name string) string {
	if fs.isDir {
		return filepath.Join(fs.target, name)
	}
	return fs.target
}

// Done is closed when the mount has been removed, by Close or by umount(8),
// nobody has it open any more, and no request is in progress.
func (fs *FS) Done() <-chan struct{} { return fs.done }

// Close removes the mount and stops serving. Requests that wait for space are
// ended at once. If somebody has a file open, nobody new can open one, and those
// who have go on until they close it or ctx ends; then they are cut off, which
// is an error that names them.
//
// When it returns nothing of the mount touches a Device any more, whatever the
// error. It flushes nothing: the Device belongs to its owner.
func (fs *FS) Close(ctx context.Context) error {
	fs.closing.Lock()
	defer fs.closing.Unlock()
	if fs.closed {
		return nil
	}
	fs.closed = true
	fs.requests.drain()
	busy, err := fs.detach()
	select {
	case <-fs.done:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("unmount %s: still in use by %s: cut off", fs.target, busy))
		fs.requests.stop()
	}
	return errors.Join(err, fs.conn.close())
}

// detach unmounts. If somebody has the mount open it says who, and the mount is
// only taken out of sight.
func (fs *FS) detach() (busy string, err error) {
	err = fs.conn.unmount(false)
	if !errors.Is(err, unix.EBUSY) {
		return "", err
	}
	busy = users(fs.target)
	fs.log.Warn("the mount is in use: nobody new can open it, who has it open goes on until he closes it", "by", busy)
	return busy, fs.conn.unmount(true)
}
