package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// A record is what is kept of a run: of each part the last one. All are of one commit.
type record struct {
	Commit   string          `json:"commit"` // as [commit] says it
	Parts    map[string]part `json:"parts"`
	Verdicts []verdict       `json:"verdicts"`
}

// A part is what was measured together.
type part struct {
	Machine []string `json:"machine"`
	Seed    uint64   `json:"seed"`
	Cells   []cell   `json:"cells"`
}

// A verdict is a goal in one cell.
type verdict struct {
	Pool    string  `json:"pool"`
	Op      string  `json:"op"`
	At      int     `json:"at"`
	Measure string  `json:"measure"`
	Most    float64 `json:"most_ms"`
	Is      float64 `json:"is_ms"`
	Few     bool    `json:"too_few,omitempty"` // were timed to tell a 99th percentile: then it is not held
	Held    bool    `json:"held"`
}

func (v verdict) word() string {
	switch {
	case v.Held:
		return "held"
	case v.Few:
		return "too few timed"
	}
	return "missed"
}

func readRecord(path string) (*record, error) {
	r := &record{Parts: map[string]part{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// begin takes into a record that some parts are measured now, at a commit. These are
// measured anew. What else is in it already has to be of the same commit: a tree with
// changes that are not committed is another one each time.
func (r *record) begin(commit string, now []string) error {
	if len(now) == 0 {
		return nil
	}
	for _, name := range now {
		delete(r.Parts, name)
	}
	if len(r.Parts) > 0 {
		kept := strings.Join(slices.Sorted(maps.Keys(r.Parts)), ", ")
		switch {
		case r.Commit != commit:
			return fmt.Errorf("%s was measured at commit %q, and the tree is at %q", kept, r.Commit, commit)
		case strings.HasSuffix(commit, dirty):
			return fmt.Errorf("%s was measured at commit %q: expected a tree whose changes are committed, whether they are still the same cannot be told", kept, commit)
		}
	}
	r.Commit = commit
	return nil
}

// dirty is the end of a commit with changes that are not committed.
const dirty = "-dirty"

// commit says which one the tree is of; "unknown" where there is no repository. A
// document that has changed, as this program changes one, makes no other tree.
func commit() string {
	text, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	is := strings.TrimSpace(string(text))
	if exec.Command("git", "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)docs").Run() != nil {
		is += dirty
	}
	return is
}

func (r *record) keep(path string) error {
	r.Verdicts = judge(r.cells())
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", b, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// cells are those of all parts, with lvm's own time in ours.
func (r *record) cells() []cell {
	list := slices.Concat(r.Parts["directory"].Cells, r.Parts["lvm"].Cells, r.Parts["vdsm"].Cells)
	for _, own := range r.Parts["own"].Cells {
		for i, c := range list {
			if c.Pool == own.Pool && c.Op == own.Op && c.At == own.At {
				list[i].LVM, list[i].LVMCommands = own.LVM, own.LVMCommands
			}
		}
	}
	return list
}

// judge says of every goal whether each of its cells holds it.
func judge(cells []cell) (list []verdict) {
	for _, g := range goals {
		for _, c := range cells {
			if c.Pool == g.Pool && slices.Contains(g.Ops, c.Op) && (g.At == nil || slices.Contains(g.At, c.At)) {
				is := g.of(c)
				few := g.Measure == p99 && !c.tail()
				list = append(list, verdict{c.Pool, c.Op, c.At, g.Measure, g.Most, is, few, is <= g.Most && !few})
			}
		}
	}
	return list
}

// machine says what is measured on.
func machine() []string {
	uname, _ := exec.Command("uname", "-srm").Output()
	list := []string{
		fmt.Sprintf("%d processors; %s", runtime.NumCPU(), strings.TrimSpace(string(uname))),
		time.Now().UTC().Format("2006-01-02 15:04 UTC"),
	}
	if version, err := exec.Command("lvm", "version").Output(); err == nil {
		line, _, _ := strings.Cut(string(version), "\n")
		list = append(list, strings.Join(strings.Fields(line), " "))
	}
	return list
}

// print writes the tables for people, and returns how many goals are missed.
func (r *record) print(w io.Writer) (missed int) {
	fmt.Fprint(w, r.tables())
	for _, v := range judge(r.cells()) {
		if !v.Held {
			missed++
		}
	}
	fmt.Fprintf(w, "%d goals are missed\n", missed)
	return missed
}

// document is docs/performance-spm.md.
func (r *record) document() string {
	var b strings.Builder
	fmt.Fprint(&b, "# Speed of the pool manager\n\n"+
		"Written by `go run ./bench/spm -only - -doc docs/performance-spm.md` from what `make bench-spm` has measured;\n"+
		"`go doc tidemark/bench/spm` says how. Change the program, not this file. Times are in milliseconds.\n\n")
	b.WriteString(r.tables())
	fmt.Fprintf(&b, "## Conditions\n\nAll parts are of tidemark commit %s.\n\n", r.Commit)
	for _, p := range parts {
		if m, ok := r.Parts[p.name]; ok {
			fmt.Fprintf(&b, "- %s, seed %d: %s\n", p.name, m.Seed, strings.Join(m.Machine, "; "))
		}
	}
	return b.String()
}

// tables are the goals and the figures.
func (r *record) tables() string {
	var b strings.Builder
	b.WriteString("## Goals\n\n| pool | operation | volumes | | at most | measured | |\n|---|---|---|---|---|---|---|\n")
	for _, v := range judge(r.cells()) {
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %g | %.1f | %s |\n", v.Pool, v.Op, v.At, v.Measure, v.Most, v.Is, v.word())
	}
	b.WriteString("\n## Figures\n\nVolumes are those that there are besides or, of extensions, those that cross at once; all is the time until the last\n" +
		"of these is answered, in the longest round. Commands and time of lvm itself are for each operation.\n" +
		fmt.Sprintf("What was timed less than %d times has no 99th percentile but its maximum.\n\n", tailNeeds) +
		"| pool | operation | volumes | timed | p50 | p99 | max | all | lvm commands | lvm's own time |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range r.cells() {
		tail := ""
		if c.tail() {
			tail = some(c.P99)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %.1f | %s | %.1f | %s | %s | %s |\n",
			c.Pool, c.Op, c.At, c.N, c.P50, tail, c.Max, some(c.All), some(c.LVMCommands), some(c.LVM))
	}
	return b.String() + "\n"
}

// some is a figure that not every cell has.
func some(f float64) string {
	if f == 0 {
		return ""
	}
	return fmt.Sprintf("%.1f", f)
}
