//go:build linux

package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"tidemark/internal/testenv"
)

// A fio is one run of fio against a server.
type fio struct {
	t      testing.TB
	proc   *testenv.Process
	report string
}

// A fioReport is what fio says of all its jobs together.
type fioReport struct {
	Error        int // errno of the first job that failed
	Written      int64
	Read         int64
	SlowestWrite time.Duration
}

// startFio starts fio's NBD engine. Jobs are threads: as processes they leave
// the process group, and would outlive a fio that is killed.
func startFio(t testing.TB, s *server, options ...string) *fio {
	t.Helper()
	tool := testenv.Tool(t, "fio")
	f := &fio{t: t, report: filepath.Join(t.TempDir(), "fio.json")}
	cmd := testenv.Command(t, tool, append([]string{"--name=job", "--ioengine=nbd", "--uri=" + s.uri(),
		"--thread", "--group_reporting", "--verify_state_save=0", "--output-format=json", "--output=" + f.report}, options...)...)
	cmd.Dir = filepath.Dir(f.report)
	diesWithUs(cmd)
	f.proc = testenv.Start(t, cmd)
	return f
}

// wait waits for the end of fio; err is not nil if it failed.
func (f *fio) wait(limit time.Duration) (fioReport, error) {
	f.t.Helper()
	err := f.proc.Wait(f.t, limit)
	r, rerr := readFioReport(f.report)
	if err == nil {
		err = rerr
	}
	if err != nil {
		err = fmt.Errorf("fio: %w\n%s", err, f.proc.Output())
	}
	return r, err
}

func readFioReport(path string) (out fioReport, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return out, err
	}
	// Remarks stand in front of the object.
	if i := bytes.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	type side struct {
		Bytes   int64 `json:"io_bytes"`
		Latency struct {
			Max int64 `json:"max"`
		} `json:"clat_ns"`
	}
	var r struct {
		Jobs []struct {
			Error       int
			Read, Write side
		}
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return out, fmt.Errorf("%s: %w", path, err)
	}
	if len(r.Jobs) != 1 {
		return out, fmt.Errorf("%s: expected one group of jobs, found %d", path, len(r.Jobs))
	}
	j := r.Jobs[0]
	return fioReport{Error: j.Error, Written: j.Write.Bytes, Read: j.Read.Bytes, SlowestWrite: time.Duration(j.Write.Latency.Max)}, nil
}
