//go:build linux

package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A server answers the kernel's requests: the tree here, the content of files in
// io.go. A mount on a regular file is a tree whose root is that file.
//
//	directory: node 1 the directory, node 2+i files[i]
//	regular file: node 1 files[0]
type server struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here: the kernel does not ask again

	files    []*file
	byName   map[string]*file // nil on a regular file
	space    func() (total, free int64)
	owner    fuse.Owner
	requests *requests
}

const firstNode = fuse.FUSE_ROOT_ID + 1

func newServer(files []File, isDir bool, o Options, owner fuse.Owner, q *requests) *server {
	s := &server{RawFileSystem: fuse.NewDefaultRawFileSystem(), space: o.Space, owner: owner, requests: q}
	node := uint64(fuse.FUSE_ROOT_ID)
	if isDir {
		s.byName = make(map[string]*file, len(files))
		node = firstNode
	}
	for i, f := range files {
		n := newFile(f, node+uint64(i), owner, o.ReadOnly, o.Logger)
		s.files = append(s.files, n)
		if isDir {
			s.byName[f.Name] = n
		}
	}
	return s
}

// file returns the file of a node, nil if there is none.
func (s *server) file(node uint64) *file {
	first := uint64(fuse.FUSE_ROOT_ID)
	if s.byName != nil {
		first = firstNode
	}
	if i := node - first; i < uint64(len(s.files)) {
		return s.files[i]
	}
	return nil
}

// String is the name that go-fuse asks for.
func (s *server) String() string { return "tidemark" }

// Lookup finds a file by its name.
func (s *server) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) (st fuse.Status) {
	f := s.byName[name]
	if f == nil {
		return fuse.ENOENT
	}
	r := s.requests.begin(in.Unique, in.Pid)
	if r == nil {
		return statusShutdown
	}
	defer s.finish(f, r, &st)
	out.NodeId, out.Generation = f.node, 1
	out.SetEntryTimeout(entryTimeout)
	out.SetAttrTimeout(attrTimeout)
	f.fillAttr(&out.Attr)
	return fuse.OK
}

// GetAttr is stat(2).
func (s *server) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) (st fuse.Status) {
	out.SetTimeout(attrTimeout)
	if s.file(in.NodeId) == nil {
		out.Attr = fuse.Attr{Ino: fuse.FUSE_ROOT_ID, Mode: fuse.S_IFDIR | 0o555, Nlink: 2, Owner: s.owner, Blksize: blockSize}
		return fuse.OK
	}
	f, r, st := s.beginCold(&in.InHeader)
	if !st.Ok() {
		return st
	}
	defer s.finish(f, r, &st)
	f.fillAttr(&out.Attr)
	return fuse.OK
}

// SetAttr changes the size, upwards, and for as long as the mount lasts the
// mode, owner and times of a file.
func (s *server) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) (st fuse.Status) {
	if s.file(in.NodeId) == nil {
		return fuse.EPERM
	}
	f, r, st := s.beginCold(&in.InHeader)
	if !st.Ok() {
		return st
	}
	defer s.finish(f, r, &st)
	if size, ok := in.GetSize(); ok {
		if st := f.resize(r.ctx, size); !st.Ok() {
			return st
		}
	}
	f.setAttr(in)
	out.SetTimeout(attrTimeout)
	f.fillAttr(&out.Attr)
	return fuse.OK
}

// Open opens a file, for writing only if it can be written to.
func (s *server) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	f := s.file(in.NodeId)
	switch {
	case f == nil:
		return fuse.EISDIR
	case f.readOnly && in.Flags&fuse.O_ANYWRITE != 0:
		return fuse.EROFS
	}
	out.OpenFlags = fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES | fuse.FOPEN_NOFLUSH
	return fuse.OK
}

// Release and Flush, which is close(2), have nothing to do: nothing is kept for
// an open file, and only fsync is a barrier.
func (s *server) Release(<-chan struct{}, *fuse.ReleaseIn) {}

// Flush is described at Release.
func (s *server) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// OpenDir opens the directory. Its content never changes.
func (s *server) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if s.byName == nil {
		return fuse.ENOTDIR
	}
	out.OpenFlags = fuse.FOPEN_CACHE_DIR | fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

// ReadDir lists the files. The offset is the number of entries before.
func (s *server) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	entries := []fuse.DirEntry{
		{Name: ".", Ino: fuse.FUSE_ROOT_ID, Mode: fuse.S_IFDIR},
		{Name: "..", Ino: fuse.FUSE_ROOT_ID, Mode: fuse.S_IFDIR},
	}
	for _, f := range s.files {
		entries = append(entries, fuse.DirEntry{Name: f.Name, Ino: f.node, Mode: fuse.S_IFREG})
	}
	for _, e := range entries[min(in.Offset, uint64(len(entries))):] {
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

// ReleaseDir has nothing to do.
func (s *server) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir has nothing to do: a name cannot change.
func (s *server) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// StatFs is statfs(2): the space of what lies below the files.
func (s *server) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	r := s.requests.begin(in.Unique, in.Pid)
	if r == nil {
		return statusShutdown
	}
	defer s.requests.end(r)
	total, free := s.totalSpace()
	*out = fuse.StatfsOut{
		Bsize: blockSize, Frsize: blockSize, NameLen: nameBytesMax, Files: uint64(len(s.files)),
		Blocks: uint64(total) / blockSize, Bfree: uint64(free) / blockSize, Bavail: uint64(free) / blockSize,
	}
	return fuse.OK
}

// totalSpace asks, and without somebody to ask says that the disks fill it.
func (s *server) totalSpace() (total, free int64) {
	if s.space != nil {
		total, free = s.space()
		return max(total, 0), max(free, 0)
	}
	for _, f := range s.files {
		total += f.refresh()
	}
	return total, 0
}

// What would change the tree is not permitted, to root neither.

// Mknod is not permitted.
func (s *server) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Mkdir is not permitted.
func (s *server) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Create is not permitted.
func (s *server) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EPERM
}

// Symlink is not permitted.
func (s *server) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Link is not permitted.
func (s *server) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

// Unlink is not permitted.
func (s *server) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EPERM }

// Rmdir is not permitted.
func (s *server) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EPERM }

// Rename is not permitted.
func (s *server) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return fuse.EPERM
}
