package main

import (
	"bytes"
	"encoding/json"
	"io"
	"time"
)

// statusLines are what tidemark run tells a program: an object a line, whenever
// something has changed, the first when everything is ready. Sizes are in bytes.
type statusLines struct {
	out  io.Writer
	s    *service
	last []byte
}

func newStatusLines(out io.Writer, s *service) *statusLines { return &statusLines{out: out, s: s} }

type serviceJSON struct {
	SPM   string     `json:"spm"` // socket of the manager
	NBD   string     `json:"nbd"` // socket of the disks
	Disks []diskJSON `json:"disks"`
}

type diskJSON struct {
	Name       string     `json:"name"`
	URI        string     `json:"uri"`
	File       string     `json:"file,omitempty"` // where it is shown as one
	Virtual    int64      `json:"virtual"`
	Granted    int64      `json:"granted"`
	Used       int64      `json:"used"`
	Headroom   int64      `json:"headroom"`
	Extensions int64      `json:"extensions"`
	Latency    float64    `json:"last_extension"` // seconds
	Waiting    int64      `json:"waiting"`        // for so much more than there is
	Since      *time.Time `json:"since,omitempty"`
	Stopped    string     `json:"stopped,omitempty"` // why it accepts no writes
}

// Show writes a line if the disks are not as they were.
func (l *statusLines) Show(all []status) {
	v := serviceJSON{SPM: absolute(l.s.pool.socket), NBD: absolute(l.s.socket), Disks: []diskJSON{}}
	for _, s := range all {
		d := diskJSON{
			Name: s.name, URI: nbdURI(v.NBD, s.name), Virtual: s.virtual, Granted: s.granted, Used: s.used, Headroom: s.headroom,
			Extensions: s.extensions, Latency: s.latency.Seconds(), Waiting: s.waiting,
		}
		if l.s.files != nil {
			d.File = absolute(l.s.files.Path(s.name + ".raw"))
		}
		if s.waiting > 0 {
			since := s.since.UTC()
			d.Since = &since
		}
		if s.poisoned != nil {
			d.Stopped = s.poisoned.Error()
		}
		v.Disks = append(v.Disks, d)
	}
	b, err := json.Marshal(v)
	if err != nil || bytes.Equal(b, l.last) {
		return
	}
	l.last = b
	_, _ = l.out.Write(append(b, '\n'))
}
