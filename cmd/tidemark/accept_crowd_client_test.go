//go:build linux

package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"

	"tidemark/nbd"
)

// A crowdClient has images of its own, which nobody else touches. They may be based on
// the templates of all.
type crowdClient struct {
	*crowd
	rng   *rand.Rand
	has   []*crowdImage
	stamp int
}

// work makes, changes and deletes until the crowd has made what it is to make.
func (c *crowdClient) work() error {
	for {
		i := c.pick()
		var err error
		switch n := c.rng.IntN(25); {
		case i == nil || n < 3 && len(c.has) < c.images:
			if !c.take() {
				return nil
			}
			err = c.create()
		case n < 8 && len(i.layers) < c.layers:
			if !c.take() {
				return nil
			}
			err = c.snapshot(i)
		case n < 14:
			err = c.write(i)
		case n < 17 && len(i.layers) > 1:
			err = c.merge(i)
		case n < 18 && i.conn != nil:
			err = c.teardown(i)
		case n < 19 && i.conn == nil && len(i.layers) > 1:
			err = c.deleteLeaf(i)
		case n == 19 && i.conn == nil:
			err = c.deleteImage(i)
		case n == 20:
			err = c.move(i)
		case (n == 21 || n == 22) && c.mayCopy():
			if !c.take() {
				return nil
			}
			err = c.copy(i)
		case n > 22:
			err = c.tend(i)
		}
		if err != nil {
			return fmt.Errorf("image %+v: %w", i, err)
		}
	}
}

func (c *crowdClient) pick() *crowdImage {
	if len(c.has) == 0 {
		return nil
	}
	return c.has[c.rng.IntN(len(c.has))]
}

// run runs a task, and forgets it.
func (c *crowdClient) run(verb string, a arguments) error {
	var r struct {
		Task string `json:"uuid"`
	}
	if err := c.h.ask(verb, a, &r); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		s, err := c.h.task(r.Task)
		switch {
		case err != nil:
			return fmt.Errorf("%s: its task: %w", verb, err)
		case s.State != "finished":
			continue
		case s.Result != "success":
			return errors.Join(fmt.Errorf("%s: its task has failed: %d: %s", verb, s.Code, s.Message), c.h.ask("clearTask", arguments{"taskID": r.Task}, nil))
		}
		break
	}
	c.count(verb)
	return c.h.ask("clearTask", arguments{"taskID": r.Task}, nil)
}

func (c *crowdClient) at(i *crowdImage) arguments { return c.h.at(c.domains[i.domain], i.id, blankID) }

// create makes an image, blank or based on a template.
func (c *crowdClient) create() error {
	i := &crowdImage{id: uuid.NewString(), domain: c.rng.IntN(len(c.domains)), layers: []crowdLayer{{id: uuid.NewString()}}}
	var more arguments
	if c.rng.IntN(4) > 0 {
		i.base = c.hold(func(t *crowdTemplate) bool { return t.domain == i.domain })
	}
	if i.base != nil {
		more = arguments{"srcImgUUID": i.base.id, "srcVolUUID": i.base.volume}
		c.count("create on a template")
	}
	if err := c.run("createVolume", c.h.newVolume(c.domains[i.domain], i.id, i.leaf().id, crowdSize, more)); err != nil {
		return err
	}
	c.has = append(c.has, i)
	return nil
}

func (c *crowdClient) snapshot(i *crowdImage) error {
	l := crowdLayer{id: uuid.NewString()}
	a := c.h.newVolume(c.domains[i.domain], i.id, l.id, 0, arguments{"srcImgUUID": i.id, "srcVolUUID": i.leaf().id})
	if err := c.run("createVolume", a); err != nil {
		return err
	}
	if i.conn != nil {
		c.count("live snapshot")
	}
	i.layers = append(i.layers, l)
	return nil
}

// write writes some blocks of the leaf, and reads all that the image shows.
func (c *crowdClient) write(i *crowdImage) error {
	if err := c.prepare(i); err != nil {
		return err
	}
	for range 1 + c.rng.IntN(4) {
		n := c.rng.IntN(crowdBlocks)
		if n == crowdBlocks-1 && c.rng.IntN(4) > 0 {
			continue // it is large
		}
		c.stamp = c.stamp%255 + 1
		stamp := c.stamp
		if c.rng.IntN(5) == 0 {
			stamp = 256
		}
		if err := c.fill(i, n, stamp); err != nil {
			return err
		}
	}
	c.count("write")
	return errors.Join(i.conn.Flush(c.t.Context()), c.read(i))
}

// fill writes a block of the leaf of a served image.
func (c *crowdClient) fill(i *crowdImage, n, stamp int) error {
	off, size := crowdBlock(n)
	i.leaf().blocks[n] = stamp
	if stamp == 256 {
		return i.conn.WriteZeroes(c.t.Context(), off, size, 0)
	}
	for at := off; at < off+size; at += 8 * mib {
		if err := i.conn.WriteAt(c.t.Context(), bytes.Repeat([]byte{byte(stamp)}, int(min(8*mib, off+size-at))), at, 0); err != nil {
			return err
		}
	}
	return nil
}

// fillLeaf writes the first n blocks of the leaf of a served image.
func (c *crowdClient) fillLeaf(i *crowdImage, round, n int) error {
	for b := range n {
		if err := c.fill(i, b, (round+b)%255+1); err != nil {
			return err
		}
	}
	return errors.Join(i.conn.Flush(c.t.Context()), c.read(i))
}

// read compares what a served image shows with the model.
func (c *crowdClient) read(i *crowdImage) error {
	for n, want := range i.shows(len(i.layers) - 1) {
		off, size := crowdBlock(n)
		p := make([]byte, min(size, mib))
		if err := i.conn.ReadAt(c.t.Context(), p, off+size-int64(len(p)), 0); err != nil {
			return err
		}
		if at := slices.IndexFunc(p, func(b byte) bool { return b != want }); at >= 0 {
			return fmt.Errorf("block %d: found %d at %d of its end, expected %d", n, p[at], at, want)
		}
	}
	return nil
}

func (c *crowdClient) prepare(i *crowdImage) error {
	if i.conn != nil {
		return nil
	}
	var r struct {
		Info struct {
			Socket string `json:"socket"`
			PID    int    `json:"pid"`
		} `json:"info"`
	}
	if err := c.h.ask("prepareImage", c.at(i), &r); err != nil {
		return fmt.Errorf("prepareImage: %w", err)
	}
	c.t.Cleanup(func() { endServer(r.Info.PID) })
	c.count("prepareImage")
	conn, err := nbd.Dial(c.t.Context(), "unix", r.Info.Socket, nbd.ClientOptions{})
	i.conn = conn
	return err
}

// merge merges one volume into another one, also over some between them; a served one
// its leaf into the leaf's parent.
func (c *crowdClient) merge(i *crowdImage) error {
	top := 1 + c.rng.IntN(len(i.layers)-1)
	down := c.rng.IntN(top)
	if i.conn != nil {
		top, down = len(i.layers)-1, len(i.layers)-2
	}
	return c.mergeInto(i, down, top)
}

// mergeLowest merges the second volume of each image that has more into the first one:
// then there is one left that had to be based on another.
func (c *crowdClient) mergeLowest() error {
	for _, i := range c.has {
		if len(i.layers) < 3 {
			continue
		}
		if err := c.mergeInto(i, 0, 1); err != nil {
			return fmt.Errorf("image %+v: %w", i, err)
		}
		c.count("merge below a volume")
	}
	return nil
}

func (c *crowdClient) mergeInto(i *crowdImage, down, top int) error {
	a := arguments{"sdUUID": c.domains[i.domain], "spUUID": c.h.pool, "vmUUID": blankID, "imgUUID": i.id,
		"ancestor": i.layers[down].id, "successor": i.layers[top].id, "postZero": false}
	if err := c.run("mergeSnapshots", a); err != nil {
		return err
	}
	for _, l := range i.layers[down+1 : top+1] {
		for n, s := range l.blocks {
			if s != 0 {
				i.layers[down].blocks[n] = s
			}
		}
	}
	i.layers = slices.Delete(i.layers, down+1, top+1)
	if i.conn == nil {
		return nil
	}
	c.count("live merge")
	return c.read(i)
}

func (c *crowdClient) teardown(i *crowdImage) error {
	if i.conn == nil {
		return nil
	}
	err := i.conn.Close()
	i.conn = nil
	c.count("teardownImage")
	return errors.Join(err, c.h.ask("teardownImage", c.at(i), nil))
}

func (c *crowdClient) deleteLeaf(i *crowdImage) error {
	a := c.at(i)
	delete(a, "volUUID")
	a["volumes"], a["postZero"], a["force"] = []string{i.leaf().id}, c.rng.IntN(2) == 0, false
	if err := c.run("deleteVolume", a); err != nil {
		return err
	}
	i.layers = i.layers[:len(i.layers)-1]
	return nil
}

func (c *crowdClient) deleteImage(i *crowdImage) error {
	a := c.at(i)
	delete(a, "volUUID")
	a["postZero"], a["force"] = false, false
	if err := c.run("deleteImage", a); err != nil {
		return err
	}
	c.has = slices.DeleteFunc(c.has, func(o *crowdImage) bool { return o == i })
	c.letGo(i.base)
	return nil
}

func (c *crowdClient) teardownAll() error {
	var errs []error
	for _, i := range c.has {
		errs = append(errs, c.teardown(i))
	}
	return errors.Join(errs...)
}

func (c *crowdClient) deleteAll() error {
	for _, i := range slices.Clone(c.has) {
		if err := c.deleteImage(i); err != nil {
			return err
		}
	}
	return nil
}
