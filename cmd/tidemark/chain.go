package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/qcow2"
	"tidemark/qcow2/format"
)

// A backingChoice is what may be opened as the backing file of an image, and as
// that one's. The zero value is nothing: a name in an image is not to be trusted,
// so an image that has one is refused until the user says more.
type backingChoice struct {
	auto, none bool
	allowNone  bool           // none is a value: of commands that show one image by itself
	explicit   []backingImage // the image's own backing file first
}

type backingImage struct{ format, path string }

const (
	formatRaw   = "raw"
	formatQCOW2 = "qcow2"
)

func (b *backingChoice) given() bool { return b.auto || b.none || len(b.explicit) > 0 }

// String is what was given.
func (b *backingChoice) String() string {
	switch {
	case b.auto:
		return "auto"
	case b.none:
		return "none"
	}
	var all []string
	for _, x := range b.explicit {
		all = append(all, x.format+":"+x.path)
	}
	return strings.Join(all, " ")
}

// Type is what the help text calls the value.
func (b *backingChoice) Type() string {
	if b.allowNone {
		return "auto|none|FORMAT:FILE"
	}
	return "auto|FORMAT:FILE"
}

// Set takes auto, none, or one more file of the chain.
func (b *backingChoice) Set(s string) error {
	if b.given() && (b.auto || b.none || s == "auto" || s == "none") {
		return fmt.Errorf("expected auto alone, or every file of the chain, found it after %s", b)
	}
	switch {
	case s == "auto":
		b.auto = true
		return nil
	case s == "none" && b.allowNone:
		b.none = true
		return nil
	case s == "none":
		return errors.New("without its backing file the disk is another one: expected auto, raw:FILE or qcow2:FILE")
	}
	kind, file, _ := strings.Cut(s, ":")
	if file == "" || kind != formatRaw && kind != formatQCOW2 {
		return errors.New("expected auto, raw:FILE or qcow2:FILE")
	}
	b.explicit = append(b.explicit, backingImage{kind, file})
	return nil
}

// backingFlag adds --backing, with the value none if that is allowed.
func backingFlag(c *cobra.Command, none bool) *backingChoice {
	b := &backingChoice{allowNone: none}
	c.Flags().Var(b, "backing", "backing files that may be opened: auto for those beneath the image's folder, "+
		"or FORMAT:FILE for each of the chain, the image's own first")
	return b
}

// maxChain bounds how many files are opened for an image.
const maxChain = 64

// openChain opens the files below the image at path, which is open as top with the
// header h, as far as choice allows; with choice.none, none. They are locked as
// QEMU locks backing files: others may read them, and nobody write to them, unless
// lock says otherwise.
func openChain(path string, top *hostfile.File, h *format.Header, choice *backingChoice, lock hostfile.Lock) (c chain, err error) {
	defer func() {
		if err != nil {
			c, err = nil, errors.Join(err, c.Close())
		}
	}()
	f := &finder{choice: choice, top: top, root: filepath.Dir(path), options: hostfile.Options{ReadOnly: true, Lock: lock}}
	defer f.close()
	for upper := path; h != nil && h.BackingFile != "" && !choice.none; {
		if len(c) == maxChain {
			return c, fmt.Errorf("%s: its chain of backing files is longer than %d: expected an end", path, maxChain)
		}
		l, err := f.next(upper, h)
		if err != nil {
			return c, err
		}
		c = append(c, l)
		if err := c.checkLoop(top); err != nil {
			return c, fmt.Errorf("%s: backing file of %s: %w", l.path, upper, err)
		}
		if l.format == formatQCOW2 {
			if l.header, err = qcow2.ReadHeader(l.file); err != nil {
				return c, fmt.Errorf("%s, backing file of %s: %w", l.path, upper, err)
			}
		}
		upper, h = l.path, l.header
	}
	if rest := len(choice.explicit) - len(c); rest > 0 {
		return c, fmt.Errorf("--backing %s:%s: nothing asks for it: the chain of %s has %d backing files",
			choice.explicit[len(c)].format, choice.explicit[len(c)].path, path, len(c))
	}
	return c, nil
}

// checkLoop says whether the last layer is open already, under whatever name.
func (c chain) checkLoop(top *hostfile.File) error {
	last := c[len(c)-1]
	for _, other := range append([]*layer{{host: top, path: top.Path()}}, c[:len(c)-1]...) {
		same, err := last.host.Same(other.host)
		if err != nil {
			return err
		}
		if same {
			return loopError(other.path)
		}
	}
	return nil
}

func loopError(path string) error {
	return fmt.Errorf("it is %s, which is in the chain already: expected a chain without a loop", path)
}

// A finder opens one backing file after the other.
type finder struct {
	choice  *backingChoice
	top     *hostfile.File
	options hostfile.Options
	root    string   // auto: the folder beneath which all must lie
	dir     *os.File // root, once it is open
	within  string   // auto: the folder of the image that is looked at, from root
	taken   int      // explicit: how many of the choice
}

func (f *finder) close() {
	if f.dir != nil {
		_ = f.dir.Close() // only opened to look from
	}
}

// next opens the backing file of upper, whose header is h.
func (f *finder) next(upper string, h *format.Header) (*layer, error) {
	switch {
	case f.choice.auto:
		return f.follow(upper, h)
	case f.taken < len(f.choice.explicit):
		x := f.choice.explicit[f.taken]
		f.taken++
		file, err := f.open(func(o hostfile.Options) (*hostfile.File, error) { return hostfile.Open(x.path, o) })
		if err != nil {
			return nil, fmt.Errorf("--backing %s:%s: %w", x.format, x.path, err)
		}
		return &layer{path: x.path, format: x.format, file: file, host: file}, nil
	}
	return nil, fmt.Errorf("%s: %w", upper, adviseBacking(&qcow2.BackingError{Name: h.BackingFile, Format: h.BackingFormat()}))
}

// open opens a file. One that is in use may be in use by the image itself, which
// deserves to be told.
func (f *finder) open(open func(hostfile.Options) (*hostfile.File, error)) (*hostfile.File, error) {
	file, err := open(f.options)
	if !errors.Is(err, block.ErrInUse) {
		return file, err
	}
	look, lerr := open(hostfile.Options{ReadOnly: true, Lock: hostfile.LockNone})
	if lerr != nil {
		return nil, err
	}
	defer look.Close() //nolint:errcheck // only looked at
	if same, serr := look.Same(f.top); serr == nil && same {
		return nil, loopError(f.top.Path())
	}
	return nil, err
}

// follow opens the file that h names, if it is a regular file beneath the folder.
// The format is the one that h tells: what the file looks like, whoever could
// write to it has chosen.
func (f *finder) follow(upper string, h *format.Header) (*layer, error) {
	fail := func(err error) (*layer, error) {
		return nil, fmt.Errorf("%s: --backing auto: backing file %q: %w; name it with --backing FORMAT:FILE if it is the right one", upper, h.BackingFile, err)
	}
	name, err := f.name(h.BackingFile)
	if err != nil {
		return fail(err)
	}
	kind := h.BackingFormat()
	switch kind {
	case formatRaw, formatQCOW2:
	case "":
		return fail(errors.New("the image does not tell its format, which is never guessed"))
	default:
		return fail(fmt.Errorf("its format is %q: %w: expected raw or qcow2", kind, block.ErrUnsupported))
	}
	if f.dir == nil {
		if f.dir, err = os.Open(f.root); err != nil {
			return fail(err)
		}
	}
	file, err := f.open(func(o hostfile.Options) (*hostfile.File, error) { return hostfile.OpenBeneath(f.dir, name, o) })
	if err != nil {
		return fail(err)
	}
	f.within = path.Dir(name)
	return &layer{path: fullBacking(upper, h.BackingFile), format: kind, file: file, host: file}, nil
}

// name turns the name that an image has into one from the root.
func (f *finder) name(stored string) (string, error) {
	switch {
	case hasProtocol(stored):
		return "", errors.New("it is no name of a file")
	case !path.IsAbs(stored):
		return path.Join(f.within, stored), nil
	}
	root, err := filepath.Abs(f.root)
	if err != nil {
		return "", err
	}
	name, inside := strings.CutPrefix(path.Clean(stored), strings.TrimSuffix(root, "/")+"/")
	if !inside {
		return "", fmt.Errorf("it leaves the folder %s", root)
	}
	return name, nil
}

// adviseBacking adds what to do about a backing file that was not opened.
func adviseBacking(err *qcow2.BackingError) error {
	return fmt.Errorf("%w: --backing auto opens it if it lies beneath the image's folder; or name it: --backing %s:FILE", err, formatOr(err.Format))
}

func formatOr(s string) string {
	if s == formatRaw || s == formatQCOW2 {
		return s
	}
	return "FORMAT"
}
