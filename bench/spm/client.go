package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"tidemark/spm"
)

// A client is connected to a manager, and told of the ends of its tasks.
type client struct {
	*spm.Client
	pool, domain string
	close        context.CancelFunc

	mu    sync.Mutex
	ended map[string]ending // by the task
	more  chan struct{}     // closed and replaced when there is one more
	over  error             // there are no more events
}

// An ending is how and when a task ended, as far as a client knows.
type ending struct {
	state string
	at    time.Time
}

type named = map[string]any

// dial connects to the manager on a socket.
func dial(ctx context.Context, socket string) (*client, error) {
	up, err := spm.Dial(socket)
	if err != nil {
		return nil, err
	}
	info, err := up.GetPoolInfo(ctx, spm.PoolInfoRequest{})
	if err != nil {
		return nil, err
	}
	c := &client{Client: up, pool: info.PoolUUID, domain: info.DomainUUID, ended: map[string]ending{}, more: make(chan struct{})}
	ctx, c.close = context.WithCancel(ctx)
	var d net.Dialer
	events := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) },
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://spm/events?kinds="+spm.EventTask, nil)
	if err != nil {
		return nil, err
	}
	response, err := events.Do(request)
	if err != nil {
		return nil, err
	}
	go c.watch(response)
	return c, nil
}

// watch notes the tasks that end.
func (c *client) watch(r *http.Response) {
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		text, data := strings.CutPrefix(lines.Text(), "data: ")
		var e spm.Event
		if !data || json.Unmarshal([]byte(text), &e) != nil || e.State != "finished" && e.State != "failed" {
			continue
		}
		c.mu.Lock()
		c.ended[e.TaskUUID] = ending{e.State, time.Now()}
		close(c.more)
		c.more = make(chan struct{})
		c.mu.Unlock()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = errors.Join(errors.New("the manager tells no more events"), lines.Err())
	close(c.more)
	c.more = make(chan struct{})
}

// task asks a verb that begins a task, and waits until that has ended. It returns how
// long that took.
func (c *client) task(ctx context.Context, verb string, args named) (time.Duration, error) {
	var r struct {
		UUID string `json:"uuid"`
	}
	began := time.Now()
	if err := c.Call(ctx, verb, args, &r); err != nil {
		return 0, fmt.Errorf("%s: %w", verb, err)
	}
	for {
		c.mu.Lock()
		end, ok := c.ended[r.UUID]
		delete(c.ended, r.UUID)
		more, over := c.more, c.over
		c.mu.Unlock()
		switch {
		case ok && end.state == "finished":
			return end.at.Sub(began), c.Call(ctx, "clearTask", named{"taskID": r.UUID}, &struct{}{})
		case ok:
			var s json.RawMessage
			err := c.Call(ctx, "getTaskStatus", named{"taskID": r.UUID}, &s)
			return 0, errors.Join(fmt.Errorf("%s has failed: %s", verb, s), err)
		case over != nil:
			return 0, fmt.Errorf("%s: %w", verb, over)
		}
		select {
		case <-more:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// A disk is an image and one volume of it.
type disk struct{ image, volume string }

func newDisk() disk { return disk{uuid.NewString(), uuid.NewString()} }

// create makes a volume of an image of its own, or on a parent.
func (c *client) create(ctx context.Context, d disk, parent string, size, initial int64) (time.Duration, error) {
	return c.task(ctx, "createVolume", named{
		"sdUUID": c.domain, "spUUID": c.pool, "imgUUID": d.image, "size": strconv.FormatInt(size, 10),
		"volFormat": "COW", "preallocate": "SPARSE", "diskType": "DATA", "volUUID": d.volume, "desc": "",
		"srcImgUUID": d.image, "srcVolUUID": parent, "initialSize": strconv.FormatInt(initial, 10),
	})
}

func (c *client) remove(ctx context.Context, d disk) (time.Duration, error) {
	return c.task(ctx, "deleteVolume", named{
		"sdUUID": c.domain, "spUUID": c.pool, "imgUUID": d.image, "volumes": []string{d.volume}, "postZero": false, "force": false,
	})
}
