//go:build linux

package main_test

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"tidemark/spm"
)

// A crowdTemplate is a template in a domain, which the images of all clients may be
// based on. Who made it copies it to the other domains, and deletes it when nobody is
// based on it. A template in two domains is two of them.
type crowdTemplate struct {
	id, volume string
	domain     int
	shows      [crowdBlocks]byte
	owner      *crowdClient
	users      int // images based on it, or about to be; guarded by the crowd
}

// hold finds a template, and keeps it from being deleted until letGo; nil if there is
// none.
func (c *crowdClient) hold(fits func(*crowdTemplate) bool) *crowdTemplate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*crowdTemplate
	for _, t := range c.templates {
		if fits(t) {
			all = append(all, t)
		}
	}
	if len(all) == 0 {
		return nil
	}
	t := all[c.rng.IntN(len(all))]
	t.users++
	return t
}

func (c *crowd) letGo(t *crowdTemplate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t != nil {
		t.users--
	}
}

func (c *crowd) add(t *crowdTemplate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.templates = append(c.templates, t)
}

// own are the client's templates.
func (c *crowdClient) own() (all []*crowdTemplate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.templates {
		if t.owner == c {
			all = append(all, t)
		}
	}
	return all
}

// otherDomain is one that is not this one.
func (c *crowdClient) otherDomain(n int) int {
	return (n + 1 + c.rng.IntN(len(c.domains)-1)) % len(c.domains)
}

func (c *crowdClient) moveTo(from, to int, image, op string) error {
	return c.run("moveImage", arguments{"spUUID": c.h.pool, "srcDomUUID": c.domains[from], "dstDomUUID": c.domains[to], "imgUUID": image,
		"vmUUID": blankID, "op": op, "postZero": c.rng.IntN(2) == 0, "force": false})
}

// full reports whether a request was refused, or its task rolled back, for want of space.
func full(err error) bool {
	return spm.CodeOf(err) == spm.CodePoolFull || err != nil && strings.Contains(err.Error(), "its task has failed: 397:")
}

// move moves an image that is no longer served to another domain, where the template
// must be that it is based on.
func (c *crowdClient) move(i *crowdImage) error {
	if err := c.teardown(i); err != nil {
		return err
	}
	to, base := c.otherDomain(i.domain), i.base
	if base != nil {
		if base = c.hold(func(t *crowdTemplate) bool { return t.domain == to && t.volume == i.base.volume }); base == nil {
			c.count("move without its template")
			return nil
		}
	}
	err := c.moveTo(i.domain, to, i.id, "MOVE")
	if full(err) {
		c.letGo(base)
		c.count("move into a full domain")
		return nil
	}
	if err != nil {
		return err
	}
	c.letGo(i.base)
	i.domain, i.base = to, base
	return nil
}

// mayCopy says whether the client may have a copy more: as a template, or as an image.
func (c *crowdClient) mayCopy() bool { return len(c.own()) == 0 || len(c.has) < c.images }

// copy copies what one volume of an image shows: to a template, if the client has none,
// otherwise to an image. The leaf of a served image would be written to.
func (c *crowdClient) copy(i *crowdImage) error {
	layer, to := c.rng.IntN(len(i.layers)), c.rng.IntN(len(c.domains))
	if layer == len(i.layers)-1 {
		if err := c.teardown(i); err != nil {
			return err
		}
	}
	kind := "LEAF"
	if len(c.own()) == 0 {
		kind = "SHARED"
	}
	image, l := uuid.NewString(), crowdLayer{id: uuid.NewString()}
	if err := c.run("copyImage", arguments{"sdUUID": c.domains[i.domain], "spUUID": c.h.pool, "vmUUID": blankID, "srcImgUUID": i.id,
		"srcVolUUID": i.layers[layer].id, "dstImgUUID": image, "dstVolUUID": l.id, "dstSdUUID": c.domains[to], "volType": kind}); err != nil {
		return err
	}
	shows := i.shows(layer)
	if kind == "SHARED" {
		c.count("template")
		c.add(&crowdTemplate{id: image, volume: l.id, domain: to, shows: shows, owner: c})
		return nil
	}
	for n, s := range shows {
		l.blocks[n] = int(s)
	}
	c.has = append(c.has, &crowdImage{id: image, domain: to, layers: []crowdLayer{l}})
	return nil
}

// tend copies a template of the client's to another domain, or deletes it. One that an
// image of the client is based on, whosever, cannot be deleted.
func (c *crowdClient) tend(i *crowdImage) error {
	if i.base != nil && c.rng.IntN(2) == 0 {
		return c.refused(i.base)
	}
	own := c.own()
	if len(own) == 0 {
		return nil
	}
	t := own[c.rng.IntN(len(own))]
	to := c.otherDomain(t.domain)
	if slices.ContainsFunc(own, func(o *crowdTemplate) bool { return o.domain == to && o.id == t.id }) {
		if c.rng.IntN(3) > 0 {
			return nil
		}
		return c.deleteTemplate(t)
	}
	if err := c.moveTo(t.domain, to, t.id, "COPY"); err != nil {
		return err
	}
	c.count("copy of a template")
	c.add(&crowdTemplate{id: t.id, volume: t.volume, domain: to, shows: t.shows, owner: c})
	return nil
}

// refused lets a template be deleted that an image is based on.
func (c *crowdClient) refused(t *crowdTemplate) error {
	a := c.h.at(c.domains[t.domain], t.id, "")
	delete(a, "volUUID")
	err := c.h.ask("deleteImage", a, nil)
	if spm.CodeOf(err) != spm.CodeHasChildren {
		return fmt.Errorf("deleteImage of template %s, which an image is based on: %w", t.id, cmp.Or(err, errors.New("it is not refused")))
	}
	c.count("refused")
	return nil
}

// deleteTemplate deletes a template, if nobody is based on it: none can be from then on.
func (c *crowdClient) deleteTemplate(t *crowdTemplate) error {
	c.mu.Lock()
	used := t.users > 0
	if !used {
		c.templates = slices.DeleteFunc(c.templates, func(o *crowdTemplate) bool { return o == t })
	}
	c.mu.Unlock()
	if used {
		return nil
	}
	a := c.h.at(c.domains[t.domain], t.id, "")
	delete(a, "volUUID")
	c.count("delete a template")
	return c.run("deleteImage", a)
}

func (c *crowdClient) deleteTemplates() error {
	var errs []error
	for _, t := range c.own() {
		errs = append(errs, c.deleteTemplate(t))
	}
	return errors.Join(errs...)
}
