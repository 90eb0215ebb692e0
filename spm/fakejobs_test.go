package spm

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"tidemark/internal/block"
)

// A fakeImage is an image as the tests of operations have it: of each block of the
// virtual disk that was written, one byte. It lies in its volume as JSON, behind
// its length; a raw one as the bytes themselves.
type fakeImage struct {
	Size    int64        `json:"size"`
	Backing *BackingRef  `json:"backing,omitempty"`
	Blocks  map[int]byte `json:"blocks"`
}

const (
	fakeBlock  = 4096
	fakeBlocks = 16                     // of a disk, which the tests write to
	fakeMost   = (1 + fakeBlocks) * mib // is how long the volume of an image may have to be
	fakeTable  = 64 << 10               // is what a larger disk takes behind the data
)

// end is how long the volume of an image must be.
func (i fakeImage) end() int64 { return int64(1+len(i.Blocks)) * mib }

func (i fakeImage) writeTo(w io.WriterAt) error {
	text, err := json.Marshal(i)
	if err != nil {
		return err
	}
	_, err = w.WriteAt(append(binary.BigEndian.AppendUint32(nil, uint32(len(text))), text...), 0)
	return err
}

func readFakeImage(r io.ReaderAt) (i fakeImage, err error) {
	head := make([]byte, 4)
	if _, err := r.ReadAt(head, 0); err != nil {
		return i, err
	}
	text := make([]byte, binary.BigEndian.Uint32(head))
	if _, err := r.ReadAt(text, 4); err != nil {
		return i, err
	}
	return i, json.Unmarshal(text, &i)
}

// contentImages makes such images.
type contentImages struct{ fakeImages }

func (contentImages) Create(_ context.Context, f block.File, o CreateImage) error {
	return fakeImage{Size: o.Size, Backing: o.Backing, Blocks: map[int]byte{}}.writeTo(f)
}

func (contentImages) Backing(f block.File) (string, error) {
	i, err := readFakeImage(f)
	if err != nil || i.Backing == nil {
		return "", err
	}
	return i.Backing.Name, nil
}

// fakeJobs are the jobs on such images.
type fakeJobs struct {
	group *fakeGroup // nil: in directories
	fail  map[string]error
	end   int64            // of the data of every image, at least
	die   func(job string) // called in the middle of a job that changes something

	mu      sync.Mutex
	settled []string // the volumes that were, in this order; guarded by mu
}

type readWriter interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

func (j *fakeJobs) open(p Place) (readWriter, error) {
	if p.Mapping != nil {
		return j.group.Open(context.Background(), p.VolumeUUID)
	}
	return os.OpenFile(p.Path, os.O_RDWR, 0)
}

func (j *fakeJobs) load(p Place) (i fakeImage, err error) {
	f, err := j.open(p)
	if err != nil {
		return i, err
	}
	defer f.Close()
	if p.Format != FormatRaw {
		return readFakeImage(f)
	}
	i = fakeImage{Size: p.Size, Blocks: map[int]byte{}}
	b := make([]byte, 1)
	for n := range fakeBlocks {
		if _, err := f.ReadAt(b, int64(n)*fakeBlock); err != nil {
			return i, err
		}
		if b[0] != 0 {
			i.Blocks[n] = b[0]
		}
	}
	return i, nil
}

func (j *fakeJobs) store(p Place, i fakeImage) error {
	f, err := j.open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if p.Format != FormatRaw {
		if i.end() > p.Granted {
			return fmt.Errorf("volume %s needs %d bytes and has %d: %w", p.VolumeUUID, i.end(), p.Granted, block.ErrNoSpace)
		}
		return i.writeTo(f)
	}
	if i.Size > p.Size {
		return fmt.Errorf("raw volume %s is to have %d bytes, and has %d: %w", p.VolumeUUID, i.Size, p.Size, block.ErrNoSpace)
	}
	for n := range fakeBlocks {
		if _, err := f.WriteAt([]byte{i.Blocks[n]}, int64(n)*fakeBlock); err != nil {
			return err
		}
	}
	return nil
}

// flat is what a chain shows. Each image must say that it is based on the next.
func (j *fakeJobs) flat(chain []Place) (fakeImage, error) {
	out := fakeImage{Blocks: map[int]byte{}}
	for n, p := range chain {
		i, err := j.load(p)
		if err != nil {
			return out, err
		}
		if n > 0 && (i.Backing == nil || filepath.Base(i.Backing.Name) != chain[n-1].VolumeUUID || i.Backing.Format != chain[n-1].Format) ||
			n == 0 && i.Backing != nil {
			return out, fmt.Errorf("volume %s says that it is based on %+v, in a chain of %v", p.VolumeUUID, i.Backing, chain)
		}
		out.Size = i.Size
		maps.Copy(out.Blocks, i.Blocks)
	}
	return out, nil
}

func (j *fakeJobs) Measure(_ context.Context, chain []Place, format string) (Measure, error) {
	out, err := j.flat(chain)
	if err != nil {
		return Measure{}, err
	}
	if format == FormatRaw {
		return Measure{Required: out.Size, FullyAllocated: out.Size}, j.fail["measure"]
	}
	return Measure{Required: out.end(), FullyAllocated: out.Size + mib}, j.fail["measure"]
}

func (j *fakeJobs) Use(_ context.Context, chain []Place) (ImageUse, error) {
	if _, err := j.flat(chain); err != nil {
		return ImageUse{}, err
	}
	top := chain[len(chain)-1]
	i, err := j.load(top)
	end := max(i.end(), j.end)
	if top.Format == FormatRaw {
		end = i.Size
	}
	use := ImageUse{VirtualSize: i.Size, End: end}
	if n := len(chain) - 2; err == nil && n >= 0 {
		var below fakeImage
		below, err = j.load(chain[n])
		use.BackingSize = below.Size
	}
	return use, err
}

func (j *fakeJobs) Check(_ context.Context, chain []Place) error {
	_, err := j.flat(chain)
	return cmp.Or(err, j.fail["check"])
}

func (j *fakeJobs) at(job string) {
	if j.die != nil {
		j.die(job)
	}
}

func (j *fakeJobs) Copy(_ context.Context, chain []Place, to Place, backing *BackingRef, _ Progress) error {
	out, err := j.flat(chain)
	if err == nil && backing != nil {
		out, err = j.load(chain[len(chain)-1])
	}
	if err != nil {
		return err
	}
	out.Backing = backing
	j.at("copy")
	if err := j.fail["copy"]; err != nil {
		return err
	}
	return j.store(to, out)
}

// Commit writes block after block, so that it can be cut.
func (j *fakeJobs) Commit(_ context.Context, chain []Place, base int, _ Progress) error {
	if _, err := j.flat(chain); err != nil {
		return err
	}
	dst, err := j.load(chain[base])
	if err != nil {
		return err
	}
	if base > 0 {
		below, err := j.load(chain[base-1])
		if err == nil && below.Size > dst.Size {
			err = fmt.Errorf("the backing file has %d bytes, the disk %d", below.Size, dst.Size)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range chain[base+1:] {
		i, err := j.load(p)
		if err != nil {
			return err
		}
		dst.Size = max(dst.Size, i.Size)
		for n, b := range i.Blocks {
			dst.Blocks[n] = b
			if err := j.store(chain[base], dst); err != nil {
				return err
			}
			j.at("commit")
			if err := j.fail["commit"]; err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *fakeJobs) Rebase(_ context.Context, at Place, backing *BackingRef) error {
	i, err := j.load(at)
	if err != nil {
		return err
	}
	i.Backing = backing
	j.at("rebase")
	if err := j.fail["rebase"]; err != nil {
		return err
	}
	return j.store(at, i)
}

// Settle has nothing to do: nobody reserves anything in such an image.
func (j *fakeJobs) Settle(_ context.Context, chain []Place, _ Progress) error {
	j.mu.Lock()
	j.settled = append(j.settled, chain[len(chain)-1].VolumeUUID)
	j.mu.Unlock()
	_, err := j.flat(chain)
	return cmp.Or(err, j.fail["settle"])
}

func (j *fakeJobs) Resize(_ context.Context, chain []Place, size int64) error {
	at := chain[len(chain)-1]
	i, err := j.load(at)
	if err != nil {
		return err
	}
	j.at("resize")
	if err := j.fail["resize"]; err != nil {
		return err
	}
	if size > i.Size && at.Granted < i.end()+fakeTable {
		return fmt.Errorf("resize volume %s: no room for a table behind %d bytes in %d: %w", at.VolumeUUID, i.end(), at.Granted, block.ErrNoSpace)
	}
	i.Size = max(i.Size, size)
	return j.store(at, i)
}

// fakeServers serve such images. They outlive the manager.
type fakeServers struct {
	jobs *fakeJobs
	// places asks the manager of the day where a volume and what is below it lie; nil:
	// there are no images.
	places func(volume string) ([]Place, error)
	grow   func(p Place, need int64) error // asks it for space
	ahead  int64                           // is what a server has reserved behind the data

	mu    sync.Mutex
	byKey map[string]*Server
	hang  bool // a merge does not become ready

	mute   map[string]bool // images whose servers do not answer
	unsaid int             // questions that they have not answered yet
	most   int             // of these at a time
}

func (s *fakeServers) Start(_ context.Context, v Serve) (Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if have := s.byKey[v.Image]; have != nil {
		if have.Domain != v.Domain || have.Leaf != v.Leaf || have.ReadOnly != v.ReadOnly {
			return Server{}, fmt.Errorf("image %s is served otherwise: %w", v.Image, block.ErrInUse)
		}
		return *have, nil
	}
	s.byKey[v.Image] = &Server{Domain: v.Domain, Image: v.Image, Leaf: v.Leaf, ReadOnly: v.ReadOnly, URI: "nbd+unix:///?socket=" + v.Image, PID: 1}
	return *s.byKey[v.Image], nil
}

func (s *fakeServers) Find(ctx context.Context, image string) (Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mute[image] {
		s.unsaid++
		s.most = max(s.most, s.unsaid)
		s.mu.Unlock()
		<-ctx.Done()
		s.mu.Lock()
		s.unsaid--
		return Server{}, ctx.Err()
	}
	if have := s.byKey[image]; have != nil {
		if have.Merge == "copying" && !s.hang {
			have.Merge = mergeReady
		}
		return s.told(*have), nil
	}
	return Server{}, fs.ErrNotExist
}

// hush says of which images the servers do not answer from now on.
func (s *fakeServers) hush(mute map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = mute
}

// told adds what a server says of its image, if there is one.
func (s *fakeServers) told(have Server) Server {
	if s.places == nil {
		return have
	}
	if chain, err := s.places(have.Leaf); err == nil {
		if i, err := s.jobs.load(chain[len(chain)-1]); err == nil {
			have.End = i.end() + s.ahead
		}
	}
	return have
}

func (s *fakeServers) Adopt(_ context.Context, image string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err == nil {
		have.Foreign = false
	}
	return err
}

func (s *fakeServers) Stop(_ context.Context, image string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, image)
	return nil
}

func (s *fakeServers) get(image string) (*Server, error) {
	if have := s.byKey[image]; have != nil {
		return have, nil
	}
	return nil, fs.ErrNotExist
}

func (s *fakeServers) Snapshot(_ context.Context, image, leaf string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err != nil {
		return err
	}
	if err := s.jobs.fail["snapshot"]; err != nil {
		return err
	}
	have.Leaf = leaf
	return nil
}

func (s *fakeServers) MergeStart(_ context.Context, image, leaf string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err != nil {
		return err
	}
	if have.Leaf != leaf {
		return fmt.Errorf("image %s is served with leaf %s", image, have.Leaf)
	}
	chain, err := s.places(leaf)
	if err != nil {
		return err
	}
	if err := s.grow(chain[len(chain)-2], fakeMost); err != nil {
		return err
	}
	if chain, err = s.places(leaf); err != nil {
		return err
	}
	if err := s.jobs.Commit(context.Background(), chain, len(chain)-2, nil); err != nil {
		return err
	}
	have.Merge = "copying"
	return nil
}

func (s *fakeServers) MergePivot(_ context.Context, image, leaf string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err != nil {
		return err
	}
	chain, err := s.places(leaf)
	if err != nil {
		return err
	}
	if err := s.jobs.fail["pivot"]; err != nil {
		return err
	}
	have.Leaf, have.Merge = chain[len(chain)-2].VolumeUUID, ""
	return nil
}

func (s *fakeServers) MergeCancel(_ context.Context, image, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err != nil {
		return err
	}
	have.Merge = ""
	return nil
}

// Resize asks for what the larger image takes, which the manager may have granted before.
func (s *fakeServers) Resize(_ context.Context, image string, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err != nil {
		return err
	}
	chain, err := s.places(have.Leaf)
	if err != nil {
		return err
	}
	top := chain[len(chain)-1]
	i, err := s.jobs.load(top)
	if err != nil {
		return err
	}
	if size > i.Size {
		if err := s.grow(top, i.end()+s.ahead+fakeTable); err != nil {
			return err
		}
		if chain, err = s.places(have.Leaf); err != nil {
			return err
		}
	}
	return s.jobs.Resize(context.Background(), chain, size)
}

// write writes one block of a served image, to both volumes of a merge.
func (s *fakeServers) write(image string, n int, b byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, err := s.get(image)
	if err != nil {
		return err
	}
	chain, err := s.places(have.Leaf)
	if err != nil {
		return err
	}
	to := chain[len(chain)-1:]
	if have.Merge != "" {
		to = chain[len(chain)-2:]
	}
	for _, p := range to {
		if err := s.grow(p, fakeMost); err != nil {
			return err
		}
	}
	if chain, err = s.places(have.Leaf); err != nil {
		return err
	}
	for _, p := range chain[len(chain)-len(to):] {
		if err := s.jobs.write(p, n, b); err != nil {
			return err
		}
	}
	return nil
}

// write writes one block of a volume.
func (j *fakeJobs) write(p Place, n int, b byte) error {
	i, err := j.load(p)
	if err != nil {
		return err
	}
	i.Blocks[n] = b
	return j.store(p, i)
}
