package main

import (
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A record is what is kept of one run. It is written after every turn, so that a run
// that was stopped can go on, and the document is made of several.
type record struct {
	Run       string   `json:"run"`
	Machine   []string `json:"machine"` // what was measured on, when it began, with which versions
	Arms      []string `json:"arms"`    // each with its command
	Missing   []string `json:"missing,omitempty"`
	Rounds    int      `json:"rounds"`
	Time      string   `json:"time"` // of a turn
	Seed      uint64   `json:"seed"`
	Floors    []floor  `json:"floors"`
	Syncs     []syncs  `json:"syncs"`
	Samples   []sample `json:"samples"`
	Curves    []curve  `json:"curves"`
	directory string
}

// A floor is what the machine does without a disk (floor.go).
type floor struct {
	Name string  `json:"name"`
	IOPS float64 `json:"iops"`
}

// syncs is how many syncs an arm makes for each flush of a cell.
type syncs struct {
	Cell     string  `json:"cell"`
	Arm      string  `json:"arm"`
	PerFlush float64 `json:"per_flush"`
}

const recordName = "run.json"

func newRecord(o options) *record {
	return &record{Run: o.run, Rounds: o.rounds, Time: o.duration.String(), Seed: o.seed, directory: o.out}
}

// orKept is the record that is in the directory, to go on with; r if there is none.
func (r *record) orKept() (*record, error) {
	path := filepath.Join(r.directory, recordName)
	kept, err := readRecord(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return r, nil
	case err != nil:
		return nil, fmt.Errorf("go on with a run: %w", err)
	}
	if err := kept.goOn(r); err != nil {
		return nil, fmt.Errorf("go on with %s: %w; name another run (-run-id, or make bench RUN=), or remove that file", path, err)
	}
	return kept, nil
}

// goOn takes into a record what is to be measured now. What is in it already has to be of
// the same program and of turns of the same time: a tree with changes that are not
// committed is another one each time. The date of the begin stays, as does the seed;
// there may be more rounds, other arms, and programs of other versions, which are named
// beside the first.
func (r *record) goOn(now *record) error {
	switch had, have := commitOf(r.Machine), commitOf(now.Machine); {
	case had != have:
		return fmt.Errorf("it was measured at commit %s, and the tree is at %s", had, have)
	case strings.HasSuffix(have, dirty):
		return fmt.Errorf("it was measured at commit %s: expected a tree whose changes are committed, whether they are still the same cannot be told", had)
	case r.Time != now.Time:
		return fmt.Errorf("its turns are of %s: expected that time, found %s", r.Time, now.Time)
	}
	r.Run, r.directory, r.Rounds, r.Missing = now.Run, now.directory, max(r.Rounds, now.Rounds), now.Missing
	for _, line := range now.Machine {
		if _, err := time.Parse(begun, line); err != nil {
			r.Machine = including(r.Machine, line)
		}
	}
	for _, line := range now.Arms {
		r.Arms = including(r.Arms, line)
	}
	return nil
}

// including is a list that has a line.
func including(list []string, line string) []string {
	if slices.Contains(list, line) {
		return list
	}
	return append(list, line)
}

// How the lines of a record's machine are written.
const (
	begun    = "2006-01-02 15:04 UTC"
	commitIs = "tidemark commit "
	dirty    = "-dirty"
)

// commitOf is the commit that the lines of a machine name; "" for none, where there is
// no repository.
func commitOf(machine []string) string {
	for _, line := range machine {
		if commit, ok := strings.CutPrefix(line, commitIs); ok {
			return commit
		}
	}
	return ""
}

// builtHere refuses a program that was built of another commit than the tree's, which is
// what a record names. One that does not say of which it was is believed.
func builtHere(program string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	head, err := exec.Command("git", "rev-parse", "HEAD").Output()
	if err != nil {
		return nil // there is no repository
	}
	return builtOf(program, info.Settings, strings.TrimSpace(string(head)))
}

func builtOf(program string, settings []debug.BuildSetting, head string) error {
	for _, s := range settings {
		if s.Key == "vcs.revision" && s.Value != head {
			return fmt.Errorf("%s was built of commit %s, and the tree is at %s: build it again (make build)", program, s.Value, head)
		}
	}
	return nil
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// keep writes the record.
func (r *record) keep() error {
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	path := filepath.Join(r.directory, recordName)
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// has reports whether a turn was kept.
func (r *record) has(cell, arm string, round int) bool {
	return slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Cell == cell && s.Arm == arm && s.Round == round })
}

// describe notes what is measured with and on, so that it can be done again.
func (r *record) describe(list []arm, missing []string) {
	r.Missing = missing
	uname, _ := exec.Command("uname", "-srm").Output()
	model := "a processor without a name"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(text), "model name"); ok {
			model, _, _ = strings.Cut(strings.TrimLeft(rest, "\t :"), "\n")
		}
	}
	r.Machine = []string{
		fmt.Sprintf("%d processors, %s; %s", runtime.NumCPU(), model, strings.TrimSpace(string(uname))),
		time.Now().UTC().Format(begun),
	}
	if commit, err := exec.Command("git", "describe", "--always", "--dirty="+dirty).Output(); err == nil {
		r.Machine = append(r.Machine, commitIs+strings.TrimSpace(string(commit)))
	}
	seen := map[string]bool{}
	for _, a := range list {
		if a.bare {
			r.Arms = append(r.Arms, a.name+": nobody")
			continue
		}
		args := a.args(bed{image: "IMAGE", socket: "SOCKET", part: part{device: "DEVICE", offset: lunStart, size: lunGranted}})
		if program := args[0]; !seen[program] {
			seen[program] = true
			r.Machine = append(r.Machine, versionOf(program))
		}
		r.Arms = append(r.Arms, a.name+": "+filepath.Base(args[0])+" "+strings.Join(args[1:], " "))
	}
	if _, err := exec.LookPath("fio"); err == nil {
		r.Machine = append(r.Machine, versionOf("fio"))
	}
}

// versionOf is the first line of what a program says of its version.
func versionOf(program string) string {
	how := "--version"
	if filepath.Base(program) == ours {
		how = "version"
	}
	text, _ := exec.Command(program, how).Output()
	first, _, _ := strings.Cut(string(text), "\n")
	return first
}
