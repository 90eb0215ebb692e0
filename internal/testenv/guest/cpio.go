package guest

import (
	"bufio"
	"fmt"
	"io"
	"path"
)

// An archive is a cpio archive of the format "newc", which is what the kernel
// unpacks: for each file a header of 110 bytes in hexadecimal digits, its name
// with a zero byte, its bytes, each of the two padded to 4 bytes.
type archive struct {
	w    *bufio.Writer
	off  int64
	ino  int
	dirs map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{}}
}

// Modes of the entries: S_IFREG and S_IFDIR with permissions.
const (
	modeProgram = 0o100755
	modeDir     = 0o040755
)

// file adds a file, and the directories above it.
func (a *archive) file(name string, size int64, content io.Reader) error {
	a.dir(path.Dir(name))
	a.header(name, modeProgram, size)
	n, err := io.Copy(a.w, content)
	if err == nil && n != size {
		err = fmt.Errorf("%s: expected %d bytes, found %d", name, size, n)
	}
	a.off += n
	a.pad(4)
	return err
}

func (a *archive) dir(name string) {
	if name == "." || a.dirs[name] {
		return
	}
	a.dirs[name] = true
	a.dir(path.Dir(name))
	a.header(name, modeDir, 0)
}

// header writes the header of an entry: magic, inode, mode, owner, group, links,
// time, size, device and device number twice each, length of the name, no check.
func (a *archive) header(name string, mode int, size int64) {
	a.ino++
	n, _ := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name) // an error stays in the writer
	a.off += int64(n)
	a.pad(4)
}

func (a *archive) pad(unit int64) {
	for ; a.off%unit != 0; a.off++ {
		_ = a.w.WriteByte(0) // an error stays in the writer
	}
}

// close ends the archive.
func (a *archive) close() error {
	a.header("TRAILER!!!", 0, 0)
	a.pad(512)
	return a.w.Flush()
}
