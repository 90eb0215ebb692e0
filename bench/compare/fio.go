package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"tidemark/bench/load"
)

// This file has the client that is not ours.

// fioOutput is what is needed of fio's report.
type fioOutput struct {
	Jobs []struct {
		Write struct {
			TotalIOs int64 `json:"total_ios"`
			Runtime  int64 `json:"runtime"` // ms
			Clat     struct {
				Percentile map[string]int64 `json:"percentile"` // ns
			} `json:"clat_ns"`
		} `json:"write"`
	} `json:"jobs"`
}

// runFio does a Job that writes at random, with fio. What it notes in memory of every
// write, its place, is written beside the socket when the time is over.
func runFio(ctx context.Context, c cell, at string, j load.Job) (*load.Result, error) {
	notes := filepath.Join(filepath.Dir(at), "fio")
	args := append([]string{"--name=cell", "--rw=randwrite", "--bs=" + strconv.Itoa(j.Block), "--size=" + strconv.FormatInt(j.Set, 10),
		"--iodepth=" + strconv.Itoa(j.Depth), "--time_based", fmt.Sprintf("--runtime=%dms", j.Duration.Milliseconds()), "--end_fsync=1",
		"--verify=pattern", "--verify_pattern=%o", "--do_verify=0", "--verify_state_save=0", "--output-format=json",
		"--write_bw_log=" + notes, "--log_offset=1",
		"--norandommap", "--randseed=" + strconv.FormatUint(j.Seed, 10)}, c.fio...)
	args = append(args, "--uri=nbd+unix:///?socket="+strings.ReplaceAll(url.QueryEscape(at), "+", "%20"))
	said, err := output(ctx, "fio", args...)
	if err != nil {
		return nil, err
	}
	out := []byte(said)
	var report fioOutput
	if err := json.Unmarshal(out[max(bytes.IndexByte(out, '{'), 0):], &report); err != nil || len(report.Jobs) != 1 {
		return nil, fmt.Errorf("fio's report: %w: %s", err, out)
	}
	w := report.Jobs[0].Write
	r := &load.Result{Ops: w.TotalIOs, Asked: time.Duration(w.Runtime) * time.Millisecond}
	r.Closed = r.Asked // fio's own start and end are not the server's
	for q, n := range map[string]int64{"50.000000": 500, "99.000000": 490, "99.900000": 9, "99.990000": 1} {
		r.Latency.Add(time.Duration(w.Clat.Percentile[q]), n)
	}
	text, err := os.ReadFile(notes + "_bw.1.log")
	if err != nil {
		return nil, fmt.Errorf("where fio wrote: %w", err)
	}
	r.Written, err = fioPlaces(string(text), j)
	return r, err
}

// fioPlaces reads what fio notes of its writes: time, speed, direction, size and offset, in
// a line for each.
func fioPlaces(text string, j load.Job) (load.Places, error) {
	places := load.NewPlaces(j.Set / int64(j.Block))
	for line := range strings.Lines(text) {
		fields := strings.Split(line, ", ")
		if len(fields) < 5 {
			return nil, fmt.Errorf("where fio wrote: expected an offset in the fifth place, found %q", line)
		}
		off, err := strconv.ParseInt(strings.TrimSpace(fields[4]), 10, 64)
		if err != nil || off < 0 || off >= j.Set || off%int64(j.Block) != 0 {
			return nil, fmt.Errorf("where fio wrote: expected a multiple of %d below %d, found %q", j.Block, j.Set, line)
		}
		places.Add(off / int64(j.Block))
	}
	return places, nil
}
