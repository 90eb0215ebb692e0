package spm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"

	"tidemark/internal/hostfile"
)

// The names in a domain's directory. A name that begins with a dot is invisible
// to VDSM's patterns.
const (
	dirMeta       = "dom_md"
	dirImages     = "images"
	dirMaster     = "master"
	dirTasks      = "tasks"
	fileMetadata  = "metadata"
	fileSpare     = "spare"
	extMeta       = ".meta"
	extLease      = ".lease"
	extNew        = ".new"
	extGone       = ".gone"
	prefixNew     = ".new-"
	prefixRemoved = "_remove_me_"

	modeDir  = 0o775
	modeFile = 0o660
)

// specialFiles are the files beside metadata, with their sizes in bytes. Sanlock
// allocates the leases as it uses them; a local domain needs none.
var specialFiles = map[string]int64{
	"ids": 0, "leases": 0, "xleases": 0,
	"inbox": 16 << 20, "outbox": 16 << 20,
}

// A domainDir is the directory of a domain.
type domainDir string

func (d domainDir) metadata() string { return filepath.Join(string(d), dirMeta, fileMetadata) }
func (d domainDir) spare() string    { return filepath.Join(string(d), dirMeta, fileSpare) }
func (d domainDir) uuid() string     { return filepath.Base(string(d)) }
func (d domainDir) tasks() string    { return filepath.Join(string(d), dirMaster, dirTasks) }
func (d domainDir) images() string   { return filepath.Join(string(d), dirImages) }
func (d domainDir) image(id uuid.UUID) string {
	return filepath.Join(d.images(), id.String())
}
func (d domainDir) newImage(id uuid.UUID) string {
	return filepath.Join(d.images(), prefixNew+id.String())
}
func (d domainDir) removedImage(id uuid.UUID) string {
	return filepath.Join(d.images(), prefixRemoved+id.String())
}

// findDomain returns the only domain below dir, or "" if there is none.
func findDomain(dir string) (domainDir, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var found []string
	for _, e := range entries {
		if _, err := uuid.Parse(e.Name()); err != nil || !e.IsDir() {
			continue
		}
		d := domainDir(filepath.Join(dir, e.Name()))
		has, err := hasMetadata(d)
		if err != nil {
			return "", err
		}
		if has {
			found = append(found, string(d))
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return domainDir(found[0]), nil
	}
	return "", fmt.Errorf("%s holds %d domains (%s), expected one: move the others elsewhere",
		dir, len(found), strings.Join(found, ", "))
}

// hasMetadata reports whether d is a domain. One that has lost its metadata is an
// error: a new domain beside it would hide the volumes that are still in it.
func hasMetadata(d domainDir) (bool, error) {
	_, err := os.Stat(d.metadata())
	if !errors.Is(err, fs.ErrNotExist) {
		return err == nil, err
	}
	if _, err := os.Stat(d.images()); err == nil {
		return false, fmt.Errorf("%s: expected the metadata of the domain in %s, found none: put the file back, or move the domain elsewhere",
			d.metadata(), d)
	}
	return false, nil
}

// makeDomain builds a domain beside its final name and renames it.
func (d disk) makeDomain(dir string, m domainMeta) (domainDir, error) {
	final := domainDir(filepath.Join(dir, m[keySDUUID]))
	tmp := domainDir(filepath.Join(dir, prefixNew+m[keySDUUID]))
	for _, sub := range []string{"", dirMeta, dirImages} {
		if err := d.Mkdir(filepath.Join(string(tmp), sub), modeDir); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
	for name, size := range specialFiles {
		if err := d.makeFile(filepath.Join(string(tmp), dirMeta, name), size); err != nil {
			return "", err
		}
	}
	if err := d.replaceFile(tmp.metadata(), m.encode()); err != nil {
		return "", err
	}
	if err := errors.Join(d.syncPath(tmp.images()), d.syncPath(string(tmp))); err != nil {
		return "", err
	}
	if err := d.Rename(string(tmp), string(final)); err != nil {
		return "", err
	}
	return final, d.syncPath(dir)
}

// noLinks refuses a domain of which a part lies elsewhere: what is written to it would
// go there.
func (d domainDir) noLinks() error {
	for _, path := range []string{filepath.Join(string(d), dirMeta), d.metadata(), d.images(), filepath.Join(string(d), dirMaster), d.tasks()} {
		st, err := os.Lstat(path)
		if err == nil && st.Mode().Type() == fs.ModeSymlink {
			return errorf(CodeForeign, "%s is a symbolic link: expected none in a domain", path)
		}
	}
	return nil
}

// readDomain reads the metadata of a domain.
func readDomain(d domainDir) (domainMeta, error) {
	if err := d.noLinks(); err != nil {
		return nil, err
	}
	b, err := hostfile.Tree(filepath.Dir(string(d))).ReadFile(d.metadata())
	if err != nil {
		return nil, err
	}
	m, err := parseDomainMeta(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.metadata(), err)
	}
	if base := filepath.Base(string(d)); m[keySDUUID] != base {
		return nil, fmt.Errorf("%s: %s is %s, expected the name of the directory, %s", d.metadata(), keySDUUID, m[keySDUUID], base)
	}
	return m, nil
}

// lengthOf is the length of the file at path, or what it may be at most if it
// cannot be read.
func lengthOf(path string, most int64) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return most
	}
	return info.Size()
}
