package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// mailPoll is how often each side of VDSM's mailbox looks at it.
const mailPoll = 500 * time.Millisecond

// mailAlone is how many times as often one volume crosses alone: as one takes its time, not
// as often as in our pools.
const mailAlone = 5

// A mailbox is the path of VDSM's extensions: see the package comment.
type mailbox struct {
	group *group
	own   lvmTime

	mu       sync.Mutex
	requests []letter
	replies  []letter
}

// A letter is a request, and then its reply.
type letter struct {
	volume string
	size   int64 // absolute, in MiB
	done   chan error
	err    error
}

// extend puts a request into the mailbox and waits for its reply.
func (m *mailbox) extend(volume string, size int64) error {
	l := letter{volume: volume, size: size, done: make(chan error, 1)}
	m.mu.Lock()
	m.requests = append(m.requests, l)
	m.mu.Unlock()
	return <-l.done
}

// each calls do at every tick, from a moment that is not the others', until ctx ends.
func each(ctx context.Context, after time.Duration, do func()) {
	select {
	case <-time.After(after):
	case <-ctx.Done():
		return
	}
	tick := time.NewTicker(mailPoll)
	defer tick.Stop()
	for ctx.Err() == nil {
		do()
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// serve is the SPM: it takes what there is, one lvextend at a time.
func (m *mailbox) serve(ctx context.Context) {
	m.mu.Lock()
	all := m.requests
	m.requests = nil
	m.mu.Unlock()
	for _, l := range all {
		began := time.Now()
		_, l.err = m.group.lvm(ctx, "lvextend", "-qq", "--autobackup", "n", "--size", strconv.FormatInt(l.size, 10)+"m", m.group.name+"/"+l.volume)
		m.mu.Lock()
		m.own.commands++
		m.own.operations++
		m.own.took += time.Since(began)
		m.replies = append(m.replies, l)
		m.mu.Unlock()
	}
}

// deliver is the host: it finds its replies.
func (m *mailbox) deliver() {
	m.mu.Lock()
	all := m.replies
	m.replies = nil
	m.mu.Unlock()
	for _, l := range all {
		l.done <- l.err
	}
}

// measureMailbox times extensions on VDSM's path.
func measureMailbox(ctx context.Context, o options) (cells []cell, err error) {
	g, err := newGroup(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, g.remove()) }()
	var volumes []string
	for i := range slices.Max(o.crossing) {
		volumes = append(volumes, "volume"+strconv.Itoa(i))
		if _, err := g.lvm(ctx, "lvcreate", "-qq", "-an", "-Zn", "-Wn", "-L", "128m", "-n", volumes[i], g.name); err != nil {
			return nil, err
		}
	}
	for _, n := range o.crossing {
		c, err := crossMailbox(ctx, o, g, volumes[:n])
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(os.Stderr, "%s, %d at once: p50 %v ms, p99 %v ms, all %v ms\n", asVDSM, n, c.P50, c.P99, c.All)
		cells = append(cells, c)
	}
	return cells, nil
}

// crossMailbox lets these volumes cross at once, in some rounds.
func crossMailbox(ctx context.Context, o options, g *group, volumes []string) (cell, error) {
	rounds := o.rounds
	if len(volumes) == 1 {
		rounds *= mailAlone
	}
	m := &mailbox{group: g}
	rng := o.random()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go each(ctx, pause(rng), func() { m.serve(ctx) })
	go each(ctx, pause(rng), m.deliver)
	size := grantedMiB(ctx, g, volumes[0])
	var t crossing
	for range rounds {
		time.Sleep(pause(rng))
		size += extent / mib
		if err := crossOnce(&t, volumes, func(v string) error { return m.extend(v, size) }); err != nil {
			return cell{}, err
		}
	}
	return m.own.in(t.cell(asVDSM, len(volumes))), nil
}

// grantedMiB is the size of the largest of a group's volumes, which the first one is.
func grantedMiB(ctx context.Context, g *group, volume string) int64 {
	text, err := g.lvm(ctx, "lvs", "--noheadings", "--units", "m", "--nosuffix", "-o", "lv_size", g.name+"/"+volume)
	if err != nil {
		return 0
	}
	size, _ := strconv.ParseFloat(text, 64)
	return int64(size)
}

// pause is a random part of the time between two looks.
func pause(rng *rand.Rand) time.Duration { return time.Duration(rng.Int64N(int64(mailPoll))) }
