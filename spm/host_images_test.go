package spm

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// storedImages is a host whose first domain has an image of a base and a leaf, with jobs
// on images that stop in the middle of one of that name until goOn is called.
func storedImages(t *testing.T, job string) (h *Host, base, leaf VolumeAt, reached chan struct{}, goOn func()) {
	reached, resume := make(chan struct{}, 100), make(chan struct{})
	jobs := &fakeJobs{fail: map[string]error{}, die: func(at string) {
		if at == job {
			reached <- struct{}{}
			<-resume
		}
	}}
	servers := &fakeServers{jobs: jobs, byKey: map[string]*Server{}}
	h, pool, domains := managed(t, t.TempDir(), func(o *HostOptions) {
		o.Images, o.Jobs, o.Servers, o.LockPatience = contentImages{}, jobs, servers, 20*time.Millisecond
	})
	servers.places = func(volume string) ([]Place, error) { return h.active(domains[0]).places(uuid.MustParse(volume)) }
	base = VolumeAt{Pool: pool, Domain: domains[0], Image: uuid.New(), Volume: uuid.New()}
	leaf = base
	leaf.Volume = uuid.New()
	for _, v := range []NewVolume{{VolumeAt: base}, {VolumeAt: leaf, Parent: base.Volume}} {
		v.Size, v.Format, v.Alloc, v.Type = gib, Cow, Sparse, Leaf
		id, err := h.CreateImageVolume(t.Context(), v)
		require.NoError(t, err)
		waitTask(t, h, id)
	}
	chain, err := h.active(domains[0]).places(leaf.Volume)
	require.NoError(t, err)
	require.NoError(t, jobs.write(chain[1], 0, 1))
	return h, base, leaf, reached, func() { close(resume) }
}

// An image that a cold merge works on is neither served nor removed before it has
// ended: the data are on their way.
func TestNothingIsServedDuringAMerge(t *testing.T) {
	h, base, leaf, reached, goOn := storedImages(t, "commit")
	id, err := h.MergeVolumes(t.Context(), MergeVolumes{
		Pool: base.Pool, Domain: base.Domain, Image: base.Image, Ancestor: base.Volume, Successor: leaf.Volume,
	})
	require.NoError(t, err)
	<-reached
	remove := VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: base.Image.String()}}
	requireCode(t, CodeUnfinished, second(h.PrepareImage(t.Context(), leaf, PrepareOptions{})))
	requireCode(t, CodeUnfinished, second(h.RemoveVolume(t.Context(), remove)))
	opened := VolumeInfoRequest{VolumeRef: VolumeRef{Volume: leaf.Volume.String()}}
	v, err := h.GetVolumeInfo(t.Context(), opened)
	require.NoError(t, err)
	require.Contains(t, v.ReadOnly, "a task that has not ended", "who opens it without the verbs is told so")
	goOn()
	waitTask(t, h, id)
	opened.Volume = base.Volume.String()
	v, err = h.GetVolumeInfo(t.Context(), opened)
	require.NoError(t, err)
	require.Empty(t, v.ReadOnly)
	_, err = h.PrepareImage(t.Context(), base, PrepareOptions{})
	require.NoError(t, err)
	require.NoError(t, h.TeardownImage(t.Context(), base))
	_, err = h.RemoveVolume(t.Context(), remove)
	require.NoError(t, err)
}

// An image that is copied may be served meanwhile, and is not removed.
func TestNothingIsRemovedDuringACopy(t *testing.T) {
	h, base, leaf, reached, goOn := storedImages(t, "copy")
	id, err := h.CopyImage(t.Context(), CopyImage{
		From: base, To: VolumeAt{Pool: base.Pool, Domain: base.Domain, Image: uuid.New(), Volume: uuid.New()},
	})
	require.NoError(t, err)
	<-reached
	_, err = h.PrepareImage(t.Context(), leaf, PrepareOptions{})
	require.NoError(t, err)
	require.NoError(t, h.TeardownImage(t.Context(), leaf))
	remove := VolumeRemoveRequest{VolumeRef: VolumeRef{Volume: base.Image.String()}}
	requireCode(t, CodeUnfinished, second(h.RemoveVolume(t.Context(), remove)))
	goOn()
	waitTask(t, h, id)
	_, err = h.RemoveVolume(t.Context(), remove)
	require.NoError(t, err)
}

// An image that is served as it should be is found so also while a task has it: a merge
// of a served image takes as long as it takes.
func TestServedImageIsFoundDuringATask(t *testing.T) {
	h, _, leaf, _, _ := storedImages(t, "")
	was, err := h.PrepareImage(t.Context(), leaf, PrepareOptions{})
	require.NoError(t, err)
	release, err := h.lockImage(t.Context(), leaf.Domain, leaf.Image, true)
	require.NoError(t, err)
	defer release()
	is, err := h.PrepareImage(t.Context(), leaf, PrepareOptions{})
	require.NoError(t, err)
	require.Equal(t, was, is)
	requireCode(t, CodeUnfinished, h.TeardownImage(t.Context(), leaf))
}

// A domain that a task works in is not taken out of use, and nobody else waits for that:
// who asked is told which task it is, and the next task begins.
func TestTaskUsesDomain(t *testing.T) {
	h, base, leaf, reached, goOn := storedImages(t, "commit")
	id, err := h.MergeVolumes(t.Context(), MergeVolumes{
		Pool: base.Pool, Domain: base.Domain, Image: base.Image, Ancestor: base.Volume, Successor: leaf.Volume,
	})
	require.NoError(t, err)
	<-reached
	var next uuid.UUID // the master to be
	for d := range h.pool.meta.members {
		if d != base.Domain {
			next = d
		}
	}
	err = h.DeactivateDomain(t.Context(), base.Pool, base.Domain, next, 0)
	requireCode(t, CodeUnfinished, err)
	require.ErrorContains(t, err, "is used by task "+id.String()+" (mergeSnapshots), which has not ended: wait for it, or stop it")
	v := NewVolume{VolumeAt: VolumeAt{Pool: base.Pool, Domain: base.Domain, Image: uuid.New(), Volume: uuid.New()},
		Size: gib, Format: Cow, Alloc: Sparse, Type: Leaf}
	other, err := h.CreateImageVolume(t.Context(), v)
	require.NoError(t, err)
	waitTask(t, h, other)
	goOn()
	waitTask(t, h, id)
	require.NoError(t, h.DeactivateDomain(t.Context(), base.Pool, base.Domain, next, 0))
}

// A request that names no domain is about none: it takes no lock of another name than
// the tasks of the domain do.
func TestNoDomainIsNotTheMaster(t *testing.T) {
	h, base, _, _, _ := storedImages(t, "")
	base.Domain = uuid.Nil
	requireCode(t, CodeUnknownDomain, second(h.PrepareImage(t.Context(), base, PrepareOptions{})))
	requireCode(t, CodeUnknownDomain, second(h.DeleteImage(t.Context(), DeleteImage{Pool: base.Pool, Image: base.Image})))
}

// Who wants to take a domain out of use is told which images are served of it, by
// their UUIDs: it is not the names of files and logical volumes that he can act upon.
func TestWhatIsServedOfADomainInUse(t *testing.T) {
	h, base, leaf, _, _ := storedImages(t, "")
	var next uuid.UUID // the master to be
	for d := range h.pool.meta.members {
		if d != base.Domain {
			next = d
		}
	}
	_, err := h.PrepareImage(t.Context(), leaf, PrepareOptions{})
	require.NoError(t, err)
	release, err := imageLocks{}.Hold(h.active(base.Domain).info(leaf.Volume).Path) // as its server does
	require.NoError(t, err)
	err = h.DeactivateDomain(t.Context(), base.Pool, base.Domain, next, 0)
	requireCode(t, CodeInUse, err)
	require.ErrorContains(t, err, "tear down what is served of it: image "+base.Image.String()+" by process 1 (nbd+unix:")
	require.NoError(t, release())
	require.NoError(t, h.TeardownImage(t.Context(), leaf))
	require.NoError(t, h.DeactivateDomain(t.Context(), base.Pool, base.Domain, next, 0))
}

// While the tasks move to another domain nobody knows which images they have, so nobody
// begins to write to one.
func TestNobodyBeginsToWriteWhileTasksMove(t *testing.T) {
	h, _, leaf, _, _ := storedImages(t, "")
	ask := func() string {
		r, err := h.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: leaf.Volume.String()}})
		require.NoError(t, err)
		return r.ReadOnly
	}
	require.Empty(t, ask())
	h.mu.Lock()
	e := h.pool.engine
	h.pool.engine = nil
	h.mu.Unlock()
	require.NotEmpty(t, ask())
	h.mu.Lock()
	h.pool.engine = e
	h.mu.Unlock()
	require.Empty(t, ask())
}

// Who asks for something that a task has the image for is not refused because of what that
// task has open, nor is he in its way: his own task waits, and looks then. Without one he
// is told at once.
func TestAskedWhileATaskHasTheImage(t *testing.T) {
	h, _, leaf, _, _ := storedImages(t, "")
	path := h.active(leaf.Domain).info(leaf.Volume).Path
	for name, ask := range map[string]func() (uuid.UUID, error){
		"createVolume": func() (uuid.UUID, error) {
			return h.CreateImageVolume(t.Context(), NewVolume{VolumeAt: VolumeAt{Pool: leaf.Pool, Domain: leaf.Domain, Image: leaf.Image, Volume: uuid.New()},
				Parent: leaf.Volume, Format: Cow, Alloc: Sparse, Type: Leaf})
		},
		"extendVolumeSize": func() (uuid.UUID, error) { return h.ExtendVolumeSize(t.Context(), leaf, 64*gib) },
	} {
		t.Run(name, func(t *testing.T) {
			unlock, err := h.locks().Acquire(t.Context(), locksOf(leaf.Domain, leaf.Image))
			require.NoError(t, err)
			defer unlock()
			release, err := imageLocks{}.Hold(path) // as its worker does
			require.NoError(t, err)
			id, err := ask()
			require.NoError(t, err)
			require.NoError(t, h.StopTask(t.Context(), id))
			unlock()
			_, err = ask()
			requireCode(t, CodeInUse, err)
			require.NoError(t, release())
		})
	}
}
