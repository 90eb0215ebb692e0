package spm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm/task"
)

// Clients create, snapshot, write, merge, copy, extend, reduce, stop and delete at
// random, offline and under a server. What images show is what a model says, the
// disk and the books agree, and at last the space is back.
func TestClientsAtRandom(t *testing.T) {
	both(t, 1, func(t *testing.T, w *world) {
		seed, _ := testenv.Seed(t)
		e := task.New(t.Context(), &task.MemoryStore{}, w.ops.kinds(), task.Options{
			CodeOf: func(err error) int { return int(CodeOf(err)) }, Pause: time.Millisecond,
		})
		_, err := e.Recover(t.Context())
		require.NoError(t, err)
		const clients, turns = 8, 60
		errs := make([]error, clients)
		var wg sync.WaitGroup
		all := make([]*client, clients)
		for n := range clients {
			c := &client{w: w, e: e, rng: testenv.Rand(seed + uint64(n)), images: map[uuid.UUID]*model{}}
			all[n] = c
			wg.Go(func() {
				for range turns {
					if errs[n] = c.turn(t.Context()); errs[n] != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		require.NoError(t, errors.Join(errs...))
		e.Close()
		for _, c := range all {
			for image, is := range c.images {
				id, shows := w.leaf(w.m[0], image)
				require.Equal(t, is.layers[len(is.layers)-1].id, id)
				require.Equal(t, is.shows(), shows)
				require.NoError(t, w.servers.Stop(t.Context(), image.String()))
			}
		}
		w.consistent()
		for _, c := range all {
			for image := range c.images {
				_, err := w.m[0].dropImage(t.Context(), image, false)
				require.NoError(t, err)
			}
		}
		require.Zero(t, pool(t, w.m[0]).Granted)
		w.consistent()
	})
}

// A client has images of its own, and models of them.
type client struct {
	w      *world
	e      *task.Engine
	rng    *rand.Rand
	images map[uuid.UUID]*model
}

// A model is an image: what each volume has written, from the base up.
type model struct {
	layers []layer
	size   int64
	served bool
}

type layer struct {
	id     uuid.UUID
	blocks [fakeBlocks]byte
}

func (i *model) shows() string {
	var out [fakeBlocks]byte
	for n := range out {
		out[n] = ' '
		for _, l := range i.layers {
			if l.blocks[n] != 0 {
				out[n] = l.blocks[n]
			}
		}
	}
	end := len(out)
	for end > 0 && out[end-1] == ' ' {
		end--
	}
	return string(out[:end])
}

func (i *model) leaf() *layer { return &i.layers[len(i.layers)-1] }

// do runs a task, which is stopped at times; it reports whether it has succeeded.
func (c *client) do(ctx context.Context, kind string, args any, err error) (bool, error) {
	if CodeOf(err) == CodePoolFull {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s is refused: %w", kind, err)
	}
	id, err := c.e.Start(ctx, kind, args, task.StartOptions{})
	if err != nil {
		return false, err
	}
	stopped := c.rng.IntN(8) == 0
	if stopped {
		if err := c.e.Stop(ctx, id); err != nil && !errors.Is(err, task.ErrState) {
			return false, err
		}
	}
	info, err := c.e.Wait(ctx, id)
	switch {
	case err != nil:
		return false, err
	case info.State == task.Finished:
		return true, nil
	case info.State == task.Failed && (stopped || info.Error.Code == int(CodePoolFull)):
		return false, nil
	}
	record, err := json.Marshal(info.Record)
	return false, errors.Join(err, fmt.Errorf("%s has become %s", kind, record))
}

func (c *client) turn(ctx context.Context) error {
	if len(c.images) == 0 || len(c.images) < 4 && c.rng.IntN(4) == 0 {
		return c.create(ctx)
	}
	images := make([]uuid.UUID, 0, len(c.images))
	for image := range c.images {
		images = append(images, image)
	}
	slices.SortFunc(images, func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
	image := images[c.rng.IntN(len(images))]
	turns := []func(context.Context, uuid.UUID, *model) error{
		c.snapshot, c.snapshot, c.write, c.write, c.write, c.merge, c.merge, c.serve, c.extend, c.reduce, c.copy, c.deleteLeaf, c.deleteImage,
	}
	if err := turns[c.rng.IntN(len(turns))](ctx, image, c.images[image]); err != nil {
		return fmt.Errorf("image %s: %w", image, err)
	}
	return nil
}

func (c *client) create(ctx context.Context) error {
	r := c.w.newVolume(uuid.New(), uuid.New())
	kind, args, err := c.w.ops.createVolume(ctx, r)
	ok, err := c.do(ctx, kind, args, err)
	if ok {
		c.images[r.Image] = &model{size: r.Size, layers: []layer{{id: r.Volume}}}
	}
	return err
}

func (c *client) snapshot(ctx context.Context, image uuid.UUID, i *model) error {
	if len(i.layers) > 6 {
		return nil
	}
	r := c.w.newVolume(image, uuid.New())
	r.Parent, r.Size = i.leaf().id, 0
	kind, args, err := c.w.ops.createVolume(ctx, r)
	ok, err := c.do(ctx, kind, args, err)
	if ok {
		i.layers = append(i.layers, layer{id: r.Volume})
	}
	return err
}

func (c *client) write(_ context.Context, image uuid.UUID, i *model) error {
	n, b := c.rng.IntN(fakeBlocks), byte('a'+c.rng.IntN(26))
	i.leaf().blocks[n] = b
	if i.served {
		return c.w.servers.write(image.String(), n, b)
	}
	at, err := c.w.m[0].places(i.leaf().id)
	if err != nil {
		return err
	}
	if err := c.w.grow(at[len(at)-1], fakeMost); err != nil {
		return err
	}
	if at, err = c.w.m[0].places(i.leaf().id); err != nil {
		return err
	}
	return c.w.jobs.write(at[len(at)-1], n, b)
}

func (c *client) merge(ctx context.Context, image uuid.UUID, i *model) error {
	if len(i.layers) < 2 {
		return nil
	}
	top := 1 + c.rng.IntN(len(i.layers)-1)
	down := c.rng.IntN(top)
	if i.served {
		top, down = len(i.layers)-1, len(i.layers)-2
	}
	for {
		kind, args, err := c.w.merge(image, i.layers[down].id, i.layers[top].id)
		ok, err := c.do(ctx, kind, args, err)
		if err != nil {
			return err
		}
		if ok {
			break
		}
		// A merge that was rolled back may have left an illegal ancestor, which has to be
		// merged before anything else can be done with it.
		if c.w.m[0].info(i.layers[down].id).Legality != Illegal {
			return nil
		}
	}
	for _, l := range i.layers[down+1 : top+1] {
		for n, b := range l.blocks {
			if b != 0 {
				i.layers[down].blocks[n] = b
			}
		}
	}
	i.layers = slices.Delete(i.layers, down+1, top+1)
	return nil
}

func (c *client) serve(ctx context.Context, image uuid.UUID, i *model) error {
	if i.served {
		i.served = false
		return c.w.ops.teardown(ctx, c.w.at(image, uuid.Nil))
	}
	p, err := c.w.ops.prepare(ctx, c.w.at(image, uuid.Nil), PrepareOptions{})
	if err == nil && (p.Volume != i.leaf().id || len(p.Chain) != len(i.layers)) {
		return fmt.Errorf("served is %+v", p)
	}
	i.served = err == nil
	return err
}

func (c *client) extend(ctx context.Context, image uuid.UUID, i *model) error {
	kind, args, err := c.w.ops.extendVolumeSize(ctx, c.w.at(image, uuid.Nil), i.size+mib)
	ok, err := c.do(ctx, kind, args, err)
	if ok {
		i.size += mib
	}
	return err
}

func (c *client) reduce(ctx context.Context, image uuid.UUID, i *model) error {
	at := c.w.at(image, i.layers[c.rng.IntN(len(i.layers))].id)
	kind, args, err := c.w.ops.reduceVolume(ctx, at)
	if i.served {
		if CodeOf(err) != CodeInUse {
			return fmt.Errorf("reducing what is served: %w", err)
		}
		return nil
	}
	_, err = c.do(ctx, kind, args, err)
	return err
}

func (c *client) copy(ctx context.Context, image uuid.UUID, i *model) error {
	if i.served || len(c.images) > 4 {
		return nil
	}
	to := c.w.at(uuid.New(), uuid.New())
	kind, args, err := c.w.ops.copyImage(ctx, CopyImage{From: c.w.at(image, uuid.Nil), To: to})
	ok, err := c.do(ctx, kind, args, err)
	if ok {
		l := layer{id: to.Volume}
		for n, b := range []byte(i.shows()) {
			if b != ' ' {
				l.blocks[n] = b
			}
		}
		c.images[to.Image] = &model{size: i.size, layers: []layer{l}}
	}
	return err
}

func (c *client) deleteLeaf(ctx context.Context, image uuid.UUID, i *model) error {
	if i.served || len(i.layers) < 2 {
		return nil
	}
	kind, args, err := c.w.ops.deleteVolumes(ctx, DeleteVolumes{Domain: c.w.domain(), Image: image, Volumes: []uuid.UUID{i.leaf().id}})
	ok, err := c.do(ctx, kind, args, err)
	if ok {
		i.layers = i.layers[:len(i.layers)-1]
	}
	return err
}

func (c *client) deleteImage(ctx context.Context, image uuid.UUID, i *model) error {
	if i.served {
		return nil
	}
	kind, args, err := c.w.ops.deleteImage(ctx, DeleteImage{Domain: c.w.domain(), Image: image})
	ok, err := c.do(ctx, kind, args, err)
	if ok {
		delete(c.images, image)
	}
	return err
}
