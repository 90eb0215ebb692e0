package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/rawimage"
	"tidemark/internal/thin"
	"tidemark/qcow2"
	"tidemark/spm"
)

// volumes is where the volumes of a pool are looked up: an spm.Client, or the
// spm.Host of the same process.
type volumes interface {
	Volume(ctx context.Context, r spm.VolumeRef) (*spm.VolumeHandle, error)
}

// A diskSpec says which image to serve and how. The zero value of everything but
// Image works.
type diskSpec struct {
	// Image is the path of a file, or with Pool the name or UUID of a volume.
	Image string
	// Pool is where a volume is looked up, and who makes it larger; nil for a
	// file. It must outlive the disk.
	Pool volumes
	// Domain is the UUID of the domain of the volume, and of everything below it. "":
	// the pool knows it; it is set when the volume has been looked up.
	Domain string

	ReadOnly bool
	// ForceShare puts up with a process that writes to the image; read-only.
	ForceShare bool
	// Raw: the file is the disk. What a volume is, says its pool.
	Raw bool
	// Backing is what may be opened below the image; nil is nothing. What is below
	// a volume says its pool.
	Backing *backingChoice
	// Exchanged: what is below a volume may become another device while it is open.
	Exchanged bool
	// IgnoreDiscard keeps the space of what the guest discards.
	IgnoreDiscard bool
	// AllowIllegal opens a volume whose data are not whole.
	AllowIllegal bool
	// NoDM opens a volume on a volume group through its segments, although
	// there is device-mapper.
	NoDM bool
	// CacheBytes bounds each of the image's two caches; 0: as usual.
	CacheBytes int64
	// Policy of a volume's headroom; the zero value is the default one.
	Policy thin.Policy
	// Opener opens the file of a volume; nil: openVolumeFile. For tests.
	Opener volumeOpener
	// Log gets one line per change of state; nil discards them.
	Log *slog.Logger
}

// A disk is an image that is being served, with everything below it. What is
// opened is closed again in the reverse order:
//
//	qcow2.Image -> thin.File (a volume only) -> hostfile.File or lvm.File
//	            -> chain of backing files
//	rawimage.Image -> hostfile.File or lvm.File
type disk struct {
	spec   diskSpec
	device block.Device
	image  *qcow2.Image      // device, unless that is raw; else nil
	below  chain             // what image reads where it has nothing
	file   block.File        // below the device
	host   *hostfile.File    // file, or below thin; nil for a logical volume, which has no cache
	thin   *thin.File        // file, if it is a volume that may grow; else nil
	volume *spm.VolumeHandle // whose file it is; nil for a file
	path   string
	// patience is what the volume's pool says; 0: nothing.
	patience time.Duration
	// recalling ends what gives headroom back; nil: nothing does.
	recalling func()
}

// openDisk opens the image that spec names, and nothing else but what it allows
// below that. ctx bounds the opening.
func openDisk(ctx context.Context, spec diskSpec) (*disk, error) {
	if spec.Log == nil {
		spec.Log = slog.New(slog.DiscardHandler)
	}
	d := &disk{spec: spec, path: spec.Image}
	if err := d.openFile(ctx); err != nil {
		return nil, err
	}
	err := d.refuse(ctx)
	var backing block.Device
	if err == nil {
		backing, err = d.openBacking(ctx)
	}
	if err == nil {
		err = d.openDevice(ctx, backing)
	}
	if err != nil {
		err = errors.Join(err, d.below.Close())
		if d.file != nil {
			err = errors.Join(err, d.file.Close())
		}
		return nil, err
	}
	return d, nil
}

// refuse refuses a volume whose data are not whole, and to write to one that others are
// based on, or that becomes shorter. It asks when the volume is open: who makes one illegal,
// or another on it, looks afterwards whether somebody has it, and what is cut off was asked for
// by who had it before.
func (d *disk) refuse(ctx context.Context) error {
	if d.volume == nil {
		return nil
	}
	h, err := d.spec.Pool.Volume(ctx, d.volume.Ref())
	if err != nil {
		return fmt.Errorf("open volume %s: %w", d.spec.Image, err)
	}
	if why := h.Info().ReadOnly; why != "" && !d.spec.ReadOnly {
		return fmt.Errorf("open volume %s for writing: %s", d.spec.Image, why)
	}
	if was, is := d.volume.Info().Granted, h.Info().Granted; is < was && !d.spec.ReadOnly {
		return fmt.Errorf("open volume %s for writing: it became shorter meanwhile, from %d to %d bytes, as who had it open last has asked: open it again", d.spec.Image, was, is)
	}
	if h.Info().Illegal && !d.spec.AllowIllegal {
		return fmt.Errorf("open volume %s: it is illegal: an operation on it was not completed, perhaps a merge: repeat that, or open the leaf of its image",
			d.spec.Image)
	}
	return nil
}

// fileReserve is how much of a file may be reserved ahead of use by a writer who uses it
// up within half a second. It costs nothing but a longer file, without content, while
// the image is open.
const fileReserve = 256 << 20

// volumeReserve is the same for a volume: what one is granted, others lack. With it, and
// the next reservation under way, a volume is at most 512 MiB ahead of what was written.
const volumeReserve = 32 << 20

// openDevice opens the image in the file, over what it is based on.
func (d *disk) openDevice(ctx context.Context, backing block.Device) (err error) {
	if d.spec.Raw {
		o := rawimage.Options{ReadOnly: d.spec.ReadOnly, IgnoreDiscard: d.spec.IgnoreDiscard}
		if d.volume != nil {
			o.Size = d.volume.Info().Size
		}
		d.device, err = openRaw(d.file, d.host, o)
		return err
	}
	if d.volume != nil && d.spec.ReadOnly && !d.spec.ForceShare {
		l := d.volumeLayer(d.volume)
		l.file, l.host = d.file, d.host
		err := l.replay(ctx, backing, d.spec.Log)
		if d.file, d.host = l.file, l.host; err != nil {
			return err
		}
	}
	reserve := int64(volumeReserve)
	if d.thin == nil {
		reserve = fileReserve
	}
	image, err := openDistrusted(ctx, d.file, d.host, d.path, qcow2.Options{
		RedoDir: redoDirOf(redoDir(), d.file.Info().ID), Backing: backing, CacheBytes: d.spec.CacheBytes, ReserveBytes: reserve,
		ReadOnly: d.spec.ReadOnly, IgnoreDiscard: d.spec.IgnoreDiscard, Logger: d.spec.Log,
	})
	var named *qcow2.BackingError
	if errors.As(err, &named) && d.volume != nil {
		return fmt.Errorf("%s: the image names the backing file %q, and the pool says that the volume is based on none: one of them is wrong", d.path, named.Name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.path, adviseImage(err))
	}
	d.image, d.device = image, image
	if d.thin != nil {
		d.recalling = d.recall()
	}
	return nil
}

// openBacking opens the chain below the image as far as it is allowed, and returns
// its uppermost image, nil if there is none.
func (d *disk) openBacking(ctx context.Context) (block.Device, error) {
	if d.spec.Raw && d.volume == nil {
		return nil, nil
	}
	var err error
	if d.volume != nil {
		if d.below, err = d.openVolumesBelow(ctx, d.volume); err != nil {
			return nil, err
		}
		return d.below.open(ctx, d.spec.Log)
	}
	if d.spec.Backing == nil {
		return nil, nil
	}
	h, err := qcow2.ReadHeader(d.file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.path, adviseImage(err))
	}
	lock := hostfile.LockAuto
	if d.spec.ForceShare {
		lock = hostfile.LockShared
	}
	if d.below, err = openChain(d.path, d.host, h, d.spec.Backing, lock); err != nil {
		return nil, err
	}
	return d.below.open(ctx, d.spec.Log)
}

// openFile opens what is below the image: a file that grows by itself, or a
// volume that the pool makes larger. A raw volume has all that it needs.
func (d *disk) openFile(ctx context.Context) error {
	if d.spec.Pool == nil {
		o := hostfile.Options{ReadOnly: d.spec.ReadOnly}
		if d.spec.ForceShare {
			o.Lock = hostfile.LockShared
		}
		f, err := hostfile.Open(d.path, o)
		if err != nil {
			return err
		}
		d.file, d.host = f, f
		return nil
	}
	var err error
	h := d.volume
	if h == nil {
		if h, err = d.lookUp(ctx, d.spec.Image); err != nil {
			return fmt.Errorf("open volume %s: %w", d.spec.Image, err)
		}
	}
	d.volume, d.path, d.patience = h, h.Path(), h.Patience()
	d.spec.Raw, d.spec.Domain = h.Info().Format == spm.FormatRaw, h.Info().DomainUUID
	d.file, d.host, err = d.spec.opener()(ctx, h, volumeAccess{
		readOnly: d.spec.ReadOnly, forceShare: d.spec.ForceShare, noDM: d.spec.NoDM, log: d.spec.Log,
	})
	if err != nil {
		return fmt.Errorf("open volume %s: %w", d.spec.Image, err)
	}
	if !d.spec.ReadOnly && !d.spec.Raw {
		d.thin = thin.New(d.file, h, thin.Options{
			Policy: d.spec.Policy, Bound: h.Bound(), Name: h.Info().Name, Log: d.spec.Log,
		})
		d.file = d.thin
	}
	return nil
}

// lookUp asks the pool for a volume, in the disk's domain as soon as that is known.
func (d *disk) lookUp(ctx context.Context, volume string) (*spm.VolumeHandle, error) {
	return d.spec.Pool.Volume(ctx, spm.VolumeRef{Volume: volume, DomainUUID: d.spec.Domain})
}

// Device is the disk for a front end. It stays the disk's.
func (d *disk) Device() block.Device { return d.device }

// Path is the file that holds the image.
func (d *disk) Path() string { return d.path }

// Close commits, gives reserved space back and closes everything. No request may
// be in progress in a front end; those that wait for space are cancelled.
func (d *disk) Close() error { return errors.Join(d.closeTop(), d.below.Close()) }

// closeTop closes everything but what is below the image.
func (d *disk) closeTop() error {
	if d.recalling != nil {
		d.recalling()
	}
	err := d.device.Close()
	if err != nil {
		err = fmt.Errorf("close %s: %w", d.path, err)
	}
	if dir := redoDirOf(redoDir(), d.file.Info().ID); dir != "" {
		_ = os.Remove(dir) // it is empty, unless somebody has to find something there
	}
	if ferr := d.file.Close(); ferr != nil {
		err = errors.Join(err, fmt.Errorf("close %s: %w", d.path, ferr))
	}
	return err
}

// diskStats are the figures of a disk at one moment: the image's, and of a
// volume those of its space.
type diskStats struct {
	qcow2.Stats             // Virtual, End, Reserved, Granted, Dirty, Poisoned, Used()
	Thin        *thin.Stats // nil for a file
}

// Headroom is what the storage has beyond what holds data and metadata. Clusters
// that are reserved ahead of use count as headroom.
func (s diskStats) Headroom() int64 { return s.Granted - s.Used() }

// Stats returns the figures of this moment.
func (d *disk) Stats() diskStats {
	if d.image == nil {
		n := d.device.Info().Size
		return diskStats{Stats: qcow2.Stats{Virtual: n, End: n, Granted: n}}
	}
	s := diskStats{Stats: d.image.Stats()}
	if d.thin != nil {
		t := d.thin.Stats()
		s.Thin = &t
	}
	return s
}
