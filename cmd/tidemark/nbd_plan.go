package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"tidemark/nbd"
)

// An nbdPlan is what the options mean.
type nbdPlan struct {
	exports []nbdExport
	spm     string // socket of the pool manager, "" if no export is a volume
	domain  string // of the volumes; "": whichever has them
	listenPlan
	tls             tlsPlan
	raw             bool          // the files are the disks
	backing         backingChoice // what may be opened below an image
	readOnly        bool
	allocationDepth bool
	rotational      bool
	ignoreDiscard   bool
	noDM            bool
	allowIllegal    bool
	shared          int
	persistent      bool
	pidFile         string
	control         string      // socket to be steered by, "" is none
	qmp             string      // of the QEMU that uses the volumes, "" if it is not to be resumed
	server          nbd.Options // without the logger
	patient         bool        // --patience was given: it goes before that of a pool
}

type nbdExport struct {
	name, description, image string
	volume                   bool
}

// plan validates the options. It opens nothing.
func (o *nbdOptions) plan(images []string, changed func(string) bool, env string) (nbdPlan, error) {
	p := nbdPlan{
		raw: o.format.value == formatRaw, backing: *o.backing, domain: o.domain,
		readOnly: o.readOnly, shared: o.shared, persistent: o.persistent, pidFile: o.pidFile, qmp: o.qmp, control: o.control,
		noDM: o.noDM, allowIllegal: o.allowIllegal, allocationDepth: o.allocationDepth, rotational: o.rotational,
		ignoreDiscard: o.discard.value == "ignore" || o.discard.value == "off",
		patient:       changed("patience"),
		server: nbd.Options{MaxConnections: o.maxConnections, Patience: o.patience,
			HandshakeTimeout: time.Duration(o.handshake) * time.Second},
	}
	err := o.checkNumbers()
	if err == nil {
		p.tls, err = o.planTLS()
	}
	if err == nil {
		err = o.planAddress(&p, changed)
	}
	if err == nil && !o.list {
		err = o.planExports(&p, images, cmp.Or(o.spm, env))
	}
	return p, err
}

func (o *nbdOptions) checkNumbers() error {
	switch {
	case o.shared < 0:
		return fmt.Errorf("-e %d: expected 0 (no limit) or more", o.shared)
	case o.maxConnections < 1:
		return fmt.Errorf("--max-connections %d: expected 1 or more", o.maxConnections)
	case o.patience <= 0:
		return fmt.Errorf("--patience %v: expected more than nothing, such as 20s", o.patience)
	case o.handshake < 1:
		return fmt.Errorf("--handshake-limit %d: expected 1 second or more", o.handshake)
	case o.port < 0 || o.port > 65535:
		return fmt.Errorf("-p %d: expected a port from 0 to 65535", o.port)
	}
	return nil
}

// planExports decides what is served under which name.
func (o *nbdOptions) planExports(p *nbdPlan, images []string, pool string) error {
	if len(images) > 1 {
		return fmt.Errorf("expected one IMAGE, found %d (%s): give the others as --export NAME=IMAGE", len(images), strings.Join(images, " "))
	}
	for _, image := range images {
		p.exports = append(p.exports, nbdExport{name: o.name, description: o.description, image: image})
	}
	if len(images) == 0 && (o.name != "" || o.description != "") {
		return errors.New("-x and -D describe IMAGE, and there is none: give IMAGE, or --export NAME=IMAGE instead")
	}
	for _, x := range o.more {
		name, image, ok := strings.Cut(x, "=")
		if !ok || image == "" {
			return fmt.Errorf("--export %s: expected NAME=IMAGE", x)
		}
		p.exports = append(p.exports, nbdExport{name: name, image: image})
	}
	if len(p.exports) == 0 {
		return errors.New("expected an IMAGE to serve, found none; see tidemark nbd --help")
	}
	names, sources := map[string]bool{}, map[string]bool{}
	for i := range p.exports {
		x := &p.exports[i]
		switch {
		case names[x.name]:
			return fmt.Errorf("the export name %q is given twice: choose another one for %s", x.name, x.image)
		case sources[x.image]:
			return fmt.Errorf("%s is given twice: an image is served under one name", x.image)
		}
		names[x.name], sources[x.image] = true, true
		x.volume = isVolume(x.image, pool)
		if x.volume {
			p.spm = pool
		}
	}
	if o.spm != "" && p.spm == "" {
		return fmt.Errorf("--spm %s: expected the name or UUID of a volume, found the path %s", o.spm, p.exports[0].image)
	}
	return p.checkFormat()
}

// checkFormat says whether the format and the backing files fit the exports.
func (p *nbdPlan) checkFormat() error {
	switch {
	case p.qmp != "" && p.spm == "":
		return errors.New("--qmp is about space that a pool gives: expected a volume (--spm), found files only")
	case p.domain != "" && p.spm == "":
		return errors.New("--domain says which volumes are meant: expected a volume (--spm), found files only")
	case p.spm != "" && p.raw:
		return errors.New("-f raw: expected files, found a volume: its format is its pool's to say")
	case p.spm != "" && p.backing.given():
		return errors.New("--backing: expected files, found a volume: what is below a volume is its pool's to say")
	case p.raw && p.backing.given():
		return errors.New("--backing: a raw image has no backing file: expected -f qcow2")
	case len(p.backing.explicit) > 0 && len(p.exports) > 1:
		return fmt.Errorf("--backing %s: expected one image, found %d: serve the others by another process", &p.backing, len(p.exports))
	}
	return nil
}

// logAttrs describe an export in the log.
func (x nbdExport) logAttrs(d *disk) slog.Attr {
	kind := "image"
	if x.volume {
		kind = "volume"
	}
	return slog.Group("export", "name", x.name, kind, x.image, "file", d.Path(), "size", d.Device().Info().Size)
}
