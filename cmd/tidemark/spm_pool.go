package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"tidemark/internal/size"
	"tidemark/internal/thin"
	"tidemark/internal/unixsock"
	"tidemark/spm"
	"tidemark/spm/verbs"
)

// poolOptions say which pool to open.
type poolOptions struct {
	dir      string
	capacity bytesFlag
	group    groupOptions // instead of dir
	roots    []string     // instead of both: what clients may connect
	socket   string       // of the API; "" is the default
	access   unixsock.Options
	patience time.Duration
	reserve  reserveFlag
	state    string // directory of a cache; "" is none
}

// many reports whether domains come through the API.
func (o *poolOptions) many() bool { return o.dir == "" && o.group.name == "" }

// place says where the pool is.
func (o *poolOptions) place() string {
	switch {
	case o.many():
		return "what is connected"
	case o.group.name != "":
		return "volume group " + o.group.name
	}
	return o.dir
}

// unsafeNoDM adds the option that does without device-mapper.
func unsafeNoDM(f *pflag.FlagSet, noDM *bool) {
	f.BoolVar(noDM, "unsafe-no-dm", false, "use logical volumes through their segments although there is device-mapper; then nothing stops lvremove under a writer")
}

func addPoolFlags(f *pflag.FlagSet, o *poolOptions) {
	f.StringVar(&o.dir, "dir", "", "directory of the pool; it is made when it is not there")
	f.Var(&o.capacity, "capacity", "what the volumes may take together, such as 100G")
}

// check finds the mistakes that need no look at the disk.
func (o *poolOptions) check() error {
	if o.patience < 0 {
		return fmt.Errorf("--patience %v: expected more than nothing, such as 20s", o.patience)
	}
	switch {
	case !o.many() && len(o.roots) > 0:
		return errors.New("--root is for domains that are connected through the API: leave --dir and --vg out")
	case o.group.name != "":
		return o.checkGroup()
	case o.group.create || o.dir != "" && len(o.group.devices) > 0:
		return errors.New("--devices and --create are about a volume group: give --vg NAME, too")
	case o.many() && len(o.roots) == 0 && len(o.group.devices) == 0:
		return errors.New("where is the pool? give --dir DIR, and --capacity SIZE for a new one; or --vg NAME and --devices; or --root and --devices, if domains are to come through the API")
	case o.many() && o.capacity != 0:
		return errors.New("--capacity is of a pool in a directory: give --dir DIR, too")
	case o.many():
		return nil
	case o.capacity != 0 && o.capacity < thin.DefaultChunk:
		return fmt.Errorf("--capacity %s: expected at least %s, which is what a new volume begins with",
			size.Format(int64(o.capacity)), size.Format(thin.DefaultChunk))
	}
	return nil
}

func (o *poolOptions) checkGroup() error {
	switch {
	case o.dir != "":
		return errors.New("--dir and --vg are two pools: give one of them")
	case o.capacity != 0:
		return errors.New("--capacity is of a pool in a directory; a volume group is as large as it is, and vgextend makes it larger")
	case strings.ContainsAny(o.group.name, "/ ") || strings.HasPrefix(o.group.name, "-"):
		return fmt.Errorf("--vg %q: expected the name of a volume group", o.group.name)
	case len(o.group.devices) == 0:
		return fmt.Errorf("--vg %s on which devices? give --devices DEVICE,...; pvs --select vg_name=%s shows them", o.group.name, o.group.name)
	}
	return nil
}

// A pool is a host that answers on its API socket.
type pool struct {
	*spm.Host
	socket string
	failed chan error    // the socket does not answer any more
	served chan struct{} // closed when nothing answers on it
}

// openPool opens the pool, or makes it, and then its socket.
func openPool(o *poolOptions, log *slog.Logger) (*pool, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	h, err := o.open(log)
	if err != nil {
		return nil, err
	}
	p := &pool{Host: h, socket: o.api(), failed: make(chan error, 1), served: make(chan struct{})}
	l, err := spm.Listen(p.socket, o.access)
	if err != nil {
		return nil, errors.Join(err, h.Close())
	}
	go func() {
		defer close(p.served)
		if err := h.Serve(l, verbs.Handler(h, h)); err != nil {
			p.failed <- fmt.Errorf("socket %s: %w", p.socket, err)
		}
	}()
	return p, nil
}

// api is where the socket of the API is.
func (o *poolOptions) api() string {
	switch {
	case o.socket != "":
		return o.socket
	case o.many():
		return filepath.Join(runDir, "spm.sock")
	case o.group.name != "":
		return filepath.Join(runDir, o.group.name+".sock")
	}
	return filepath.Join(o.dir, "spm.sock")
}

// open opens the pool, or what there is to make pools of.
func (o *poolOptions) open(log *slog.Logger) (*spm.Host, error) {
	servers := &imageServers{spm: absolute(o.api()), noDM: o.group.noDM, log: log}
	s := spm.HostOptions{
		Options: spm.Options{Capacity: int64(o.capacity), Patience: o.patience, Reserve: int64(o.reserve), Images: images{}, Remains: servers, Log: log},
		Jobs:    &imageJobs{noDM: o.group.noDM, log: log},
		Servers: servers,
		At:      plannedDeath(),
	}
	o.group.log = log
	servers.sweep(context.Background())
	switch {
	case o.many():
		return o.openMany(s)
	case o.group.name == "":
		h, err := spm.OpenDir(o.dir, s)
		return h, adviseDir(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), groupOpenLimit)
	defer cancel()
	g, err := openVolumeGroup(ctx, o.group)
	if err != nil {
		return nil, err
	}
	return spm.OpenGroup(ctx, g, s)
}

// openMany opens a host whose domains come through the API.
func (o *poolOptions) openMany(s spm.HostOptions) (*spm.Host, error) {
	s.Roots, s.Devices, s.State = o.roots, o.group.devices, o.state
	if len(s.Devices) > 0 {
		s.Groups = volumeGroups{o.group}
	}
	if err := os.MkdirAll(runDir, 0o755); err != nil && o.socket == "" {
		return nil, err
	}
	return spm.OpenHost(s)
}

// groupOpenLimit is how long lvm may take to find a group; it waits for whoever
// is changing it.
const groupOpenLimit = 60 * time.Second

// Close ends the manager; requests that it holds are answered. The socket is
// gone when it returns.
func (p *pool) Close() error {
	err := p.Host.Close()
	<-p.served
	return err
}

// alive returns if the manager does not hang.
func (p *pool) alive(ctx context.Context) { _, _ = p.GetPoolInfo(ctx, spm.PoolInfoRequest{}) }

// status is what systemctl status shows: how large the pool is, and who waits.
func (p *pool) status(ctx context.Context) string {
	r, err := p.GetPoolInfo(ctx, spm.PoolInfoRequest{})
	if err != nil {
		return err.Error()
	}
	text := fmt.Sprintf("%s granted of %s to %d volumes", size.Format(r.Granted), size.Format(r.Capacity), r.Volumes)
	for _, w := range r.Waiting {
		text += fmt.Sprintf("; %s waits for %s since %s", w.Name, size.Format(w.Bytes), w.Since.Local().Format(time.TimeOnly))
	}
	return text
}

// tellStatus keeps that, and the cache in state if there is one, up to date until
// ctx ends.
func (p *pool) tellStatus(ctx context.Context, up *supervisor, state string, log *slog.Logger) {
	seen := int64(0)
	for ctx.Err() == nil {
		if state != "" {
			if err := p.saveState(ctx, state); err != nil && ctx.Err() == nil {
				log.Warn("the cache of the pool's state is not up to date", "error", err)
			}
		}
		all, err := p.next(ctx, seen)
		if err != nil {
			return // it is closed
		}
		for _, e := range all {
			seen = e.Number
		}
		up.Status(p.status(ctx))
	}
}

// next waits for the events after one, or for a while.
func (p *pool) next(ctx context.Context, after int64) ([]spm.Event, error) {
	wait, cancel := context.WithTimeout(ctx, statusEvery)
	defer cancel()
	all, err := p.WatchStorage(wait, after)
	if ctx.Err() == nil && wait.Err() != nil {
		return nil, nil
	}
	return all, err
}

// statusEvery is how old what systemctl status shows may be, when nothing happens.
const statusEvery = 30 * time.Second
