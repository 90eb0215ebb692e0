package spm

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/google/uuid"

	"tidemark/spm/task"
)

// A name is an image's, and no other image of the pool's active domains may be given it.
// Who makes an image of that name has the name as a lock from before he looks until the
// image is there: a task with its other locks, and a request that is no task for as long
// as it lasts.

func nameLock(name string) task.Lock {
	return task.Lock{Name: "02_name/" + name, Exclusive: true}
}

// nameLocks are what a task needs that makes a volume of that metadata.
func nameLocks(meta volumeMeta) []task.Lock {
	if name := meta.alias(); name != "" {
		return []task.Lock{nameLock(name)}
	}
	return nil
}

// mayName refuses a name that another image has.
func (o *operations) mayName(image uuid.UUID, name string) error {
	if name == "" {
		return nil
	}
	for _, m := range o.active() {
		if other, taken := m.named(name); taken && other != image {
			return errorf(CodeExists, "image %s in domain %s has the name %s already: choose another", other, m.ident.domain, name)
		}
	}
	return nil
}

// named is the image of a volume of that name, also of one that is being made.
func (m *Manager) named(name string) (image uuid.UUID, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.names[name]
	if v == nil {
		return uuid.Nil, false
	}
	return v.image, true
}

// reserveName keeps a name for an image that a request makes in a domain. Within the
// domain its manager says who has it, and knows a request that is repeated.
func (h *Host) reserveName(ctx context.Context, m *Manager, name string) (release func(), err error) {
	release, err = h.lock(ctx, nameLock(name))
	if errors.Is(err, errLockPatience) {
		return nil, errorf(CodeExists, "create %s: an image of that name is being made: choose another", name)
	}
	if err != nil {
		return nil, err
	}
	for _, other := range h.everyActive() {
		if image, taken := other.named(name); taken && other != m {
			release()
			return nil, errorf(CodeExists, "create %s: image %s in domain %s has that name already: choose another", name, image, other.ident.domain)
		}
	}
	return release, nil
}

// everyActive are the managers of the active domains, none without the role.
func (h *Host) everyActive() []*Manager {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pool == nil {
		return nil
	}
	return slices.Collect(maps.Values(h.pool.managers))
}
