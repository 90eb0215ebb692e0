package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// The cells on LVM have one device below them, a loop device past the page cache. Ours
// is a pool on a volume group there, with a manager of its own, and a volume that is
// granted as it grows. QEMU has an image of its own in the same part of the same device,
// with all of that granted: a linear volume is no more than that. Both open the device
// past the page cache. Before every turn all of it is made zero.

const (
	lunBytes   = 13 * gib
	lunGranted = 6 * gib   // to QEMU, and to ours at most
	lunStart   = 256 * mib // where QEMU's part begins
	volumeSize = 5 * gib   // of the disk in it
)

// A lun is a loop device over a file, past the page cache.
type lun struct{ file, device string }

func newLUN(ctx context.Context, dir string) (*lun, error) {
	l := &lun{file: filepath.Join(dir, "lun")}
	if err := run(ctx, "fallocate", "-l", strconv.FormatInt(lunBytes, 10), l.file); err != nil {
		return nil, err
	}
	out, err := output(ctx, "losetup", "--find", "--show", "--direct-io=on", l.file)
	if err != nil {
		return nil, errors.Join(err, os.Remove(l.file))
	}
	l.device = strings.TrimSpace(out)
	return l, nil
}

// zero makes all of the device zero, so that every turn finds the same.
func (l *lun) zero(ctx context.Context) error {
	return run(ctx, "blkdiscard", "--zeroout", l.device)
}

// remove takes the device away, also when ctx is over.
func (l *lun) remove() error {
	return errors.Join(run(context.Background(), "losetup", "--detach", l.device), os.Remove(l.file))
}

// layPart makes QEMU's image, all of which is granted.
func (l *lun) layPart(ctx context.Context, b *bed) error {
	b.part = part{l.device, lunStart, lunGranted}
	if err := run(ctx, "qemu-img", "create", "-q", "-f", "qcow2", b.image, strconv.FormatInt(volumeSize, 10)); err != nil {
		return err
	}
	blank, err := os.ReadFile(b.image)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(l.device, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(blank, lunStart)
	return errors.Join(err, f.Close())
}

// A part is a part of a block device.
type part struct {
	device       string
	offset, size int64
}

// options are those of QEMU for the image in a part, past the page cache.
func (p part) options(aio string) string {
	return fmt.Sprintf("driver=qcow2,discard=unmap,cache.direct=on,file.driver=raw,file.offset=%d,file.size=%d,file.cache.direct=on,"+
		"file.file.driver=host_device,file.file.filename=%s,file.file.cache.direct=on,file.file.aio=%s", p.offset, p.size, p.device, aio)
}

// A pool is a manager on a volume group.
type pool struct {
	tidemark    string // the program
	group, uuid string
	socket      string
	lun         *lun
	manager     *server
}

var manager = arm{name: "tidemark spm"}

// startPool makes a group of the device, a pool of it, and a volume named disk.
func startPool(ctx context.Context, tidemark string, l *lun, dir string) (*pool, error) {
	p := &pool{tidemark: tidemark, group: "tidemarkbench" + strconv.Itoa(os.Getpid()), socket: filepath.Join(dir, "spm"), lun: l}
	if err := p.lvm(ctx, "vgcreate", "-qq", "-s", "128m", "--metadatasize", "128m", p.group, l.device); err != nil {
		return nil, err
	}
	uuid, err := p.ask(ctx, "vgs", "--noheadings", "-o", "vg_uuid", p.group)
	if err != nil {
		return nil, err
	}
	p.uuid = strings.TrimSpace(uuid)
	a := manager
	a.args = func(b bed) []string {
		return []string{tidemark, "spm", "--vg", p.group, "--devices", l.device, "--socket", b.socket}
	}
	if p.manager, err = a.start(ctx, bed{socket: p.socket}); err != nil {
		return nil, errors.Join(err, p.forget())
	}
	if err := run(ctx, tidemark, "volume", "create", "--spm", p.socket, "--size", strconv.FormatInt(volumeSize, 10), "disk"); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

// lvm runs a command on the group, of which it sees nothing but the device.
func (p *pool) lvm(ctx context.Context, verb string, args ...string) error {
	_, err := p.ask(ctx, verb, args...)
	return err
}

func (p *pool) ask(ctx context.Context, verb string, args ...string) (string, error) {
	return output(ctx, "lvm", append([]string{verb, "--devices", p.lun.device, "--driverloaded", "n",
		"--config", `devices{hints="none"} backup{backup=0 archive=0} log{syslog=0}`}, args...)...)
}

// where is the part that the volume has: it grows in place, alone as it is.
func (p *pool) where(ctx context.Context) (part, error) {
	described, err := output(ctx, p.tidemark, "volume", "info", "--spm", p.socket, "--output", "json", "disk")
	if err != nil {
		return part{}, err
	}
	var v struct {
		UUID string `json:"volume_uuid"`
	}
	if err := json.Unmarshal([]byte(described), &v); err != nil {
		return part{}, fmt.Errorf("what the pool says of the volume: %w: %s", err, described)
	}
	text, err := p.ask(ctx, "lvs", "--segments", "--noheadings", "--units", "b", "--nosuffix", "-o", "seg_size,seg_pe_ranges", p.group+"/"+v.UUID)
	if err != nil {
		return part{}, err
	}
	start, err := p.ask(ctx, "pvs", "--noheadings", "--units", "b", "--nosuffix", "-o", "pe_start,vg_extent_size", p.lun.device)
	if err != nil {
		return part{}, err
	}
	var size, first, pe, extent int64
	_, err1 := fmt.Sscanf(strings.TrimSpace(text), "%d "+p.lun.device+":%d-", &size, &first)
	_, err2 := fmt.Sscan(start, &pe, &extent)
	if err := errors.Join(err1, err2); err != nil {
		return part{}, fmt.Errorf("where the volume lies: %q, %q: %w", text, start, err)
	}
	if n := strings.Count(strings.TrimSpace(text), "\n"); n > 0 {
		return part{}, fmt.Errorf("expected a volume in one piece, found %d: %s", n+1, text)
	}
	return part{p.lun.device, pe + first*extent, size}, nil
}

// stop ends the manager.
func (p *pool) stop() error { return errors.Join(p.manager.stop(manager), p.forget()) }

// forget removes what is outside of the device, which will be zeroed.
func (p *pool) forget() (err error) {
	for _, path := range []string{"/run/lock/lvm/V_" + p.group, "/run/tidemark/vg-" + p.uuid, "/run/tidemark/lvm-" + p.group} {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// cpu is what the manager and lvm have had for the server.
func (p *pool) cpu() time.Duration {
	if p == nil {
		return 0
	}
	return p.manager.cpu()
}
