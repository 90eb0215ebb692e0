//go:build linux

package main_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
	"tidemark/spm/verbs"
)

// A vdsmHost is a manager whose domains come through the verbs that VDSM's users know.
type vdsmHost struct {
	t      testing.TB
	dir    string // of what follows
	root   string // where domains may be connected
	socket string
	env    []string
	args   []string
	proc   *testenv.Process
	client *spm.Client
	pool   string

	capacity string // of new domains in directories; "": much
}

// newVDSMHost starts one that has nothing yet, in a directory with a short name.
func newVDSMHost(t testing.TB, devices ...string) *vdsmHost {
	t.Helper()
	return newVDSMHostIn(t, "", devices...)
}

// newVDSMHostIn does that in a directory, "" for that of temporary files.
func newVDSMHostIn(t testing.TB, parent string, devices ...string) *vdsmHost {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "vdsm")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	h := &vdsmHost{t: t, dir: dir, root: filepath.Join(dir, "root"), socket: filepath.Join(dir, "s"), pool: uuid.NewString()}
	h.args = []string{"--root", h.root, "--state", filepath.Join(dir, "state"), "--socket", h.socket}
	if len(devices) > 0 {
		h.args = append(h.args, "--devices", strings.Join(devices, ","))
	}
	h.env = []string{deathVar + "=" + h.deaths()}
	require.NoError(t, os.Mkdir(h.root, 0o700))
	require.NoError(t, os.Mkdir(h.deaths(), 0o700))
	h.client = spm.NewClient(h.socket)
	t.Cleanup(func() {
		_ = h.client.Close()
		for _, pid := range serversOf(h.socket) { // the test has ended before them
			endServer(pid)
		}
	})
	h.start()
	return h
}

// deaths is where the manager's death is planned.
func (h *vdsmHost) deaths() string { return filepath.Join(h.dir, "deaths") }

// launch starts the manager.
func (h *vdsmHost) launch() {
	h.t.Helper()
	cmd := program(h.t, append([]string{"spm"}, h.args...)...)
	cmd.Env = append(cmd.Env, h.env...)
	h.proc = testenv.Start(h.t, cmd)
}

// start starts the manager, and waits until it answers.
func (h *vdsmHost) start() {
	h.t.Helper()
	h.launch()
	ready(h.t, h.proc, func() error { return h.ask("getConnectedStoragePoolsList", nil, nil) })
}

// arguments are those of a verb, by name.
type arguments map[string]any

// ask asks a verb. An error must be one of those that its reference names.
func (h *vdsmHost) ask(verb string, a arguments, out any) error {
	if a == nil {
		a = arguments{}
	}
	if out == nil {
		out = &struct{}{}
	}
	err := h.client.Call(h.t.Context(), verb, a, out)
	if v := verbs.Find(verb); err != nil && v != nil && !v.Lists(spm.CodeOf(err)) {
		h.t.Errorf("%s answers a code that its reference does not name: %d: %v", verb, spm.CodeOf(err), err)
	}
	return err
}

// do asks a verb that must succeed.
func (h *vdsmHost) do(verb string, a arguments) {
	h.t.Helper()
	require.NoError(h.t, h.ask(verb, a, nil), verb)
}

// begin asks a verb for a task.
func (h *vdsmHost) begin(verb string, a arguments) string {
	h.t.Helper()
	var r struct {
		Task string `json:"uuid"`
	}
	require.NoError(h.t, h.ask(verb, a, &r), verb)
	return r.Task
}

// A taskState is what a task says of itself.
type taskState struct {
	State   string `json:"taskState"`
	Result  string `json:"taskResult"`
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (h *vdsmHost) task(id string) (taskState, error) {
	var r struct {
		Status taskState `json:"taskStatus"`
	}
	err := h.ask("getTaskStatus", arguments{"taskID": id}, &r)
	return r.Status, err
}

// await waits until a task has ended.
func (h *vdsmHost) await(id string) (s taskState) {
	h.t.Helper()
	testenv.Eventually(h.t, startLimit, "task "+id+" ends", func() bool {
		var err error
		s, err = h.task(id)
		require.NoError(h.t, err)
		return s.State == "finished"
	})
	h.judge(id, s)
	return s
}

// judge makes sure that a task has failed with an error that the reference of its verb
// names, or because it was stopped.
func (h *vdsmHost) judge(id string, s taskState) {
	h.t.Helper()
	if s.Code == 0 || s.Code == verbs.Number(spm.CodeAborted) {
		return
	}
	kind, _, _ := strings.Cut(h.tasks()[id], ".")
	v := verbs.Find(kind)
	require.NotNil(h.t, v, "task %s is of kind %q", id, kind)
	for c := spm.CodeInternal; c <= spm.CodeNotActive; c++ {
		number, own := v.As[c]
		if !own {
			number = verbs.Number(c)
		}
		if v.Lists(c) && number == s.Code {
			return
		}
	}
	h.t.Errorf("a task of %s ends with a code that its reference does not name: %d: %s", kind, s.Code, s.Message)
}

// run runs a task that must succeed, and forgets it.
func (h *vdsmHost) run(verb string, a arguments) {
	h.t.Helper()
	id := h.begin(verb, a)
	s := h.await(id)
	require.Equal(h.t, "success", s.Result, "%s: %s", verb, s.Message)
	h.do("clearTask", arguments{"taskID": id})
}

// tasks are the tasks that there are, with what they are.
func (h *vdsmHost) tasks() map[string]string {
	h.t.Helper()
	var r struct {
		Tasks map[string]struct {
			Verb string `json:"verb"`
		} `json:"tasks"`
	}
	require.NoError(h.t, h.ask("getAllTasks", nil, &r))
	all := map[string]string{}
	for id, task := range r.Tasks {
		all[id] = task.Verb
	}
	return all
}

// A place is where a domain lies: a directory beneath the root, or a volume group.
type place interface {
	connection() (kind, address string)
	where() string
}

type dirPlace string

func (d dirPlace) connection() (kind, address string) { return "LOCALFS", string(d) }
func (d dirPlace) where() string                      { return string(d) }

func (g *groupPool) connection() (kind, address string) { return "FCP", strings.Join(g.paths(), ",") }
func (g *groupPool) where() string                      { return g.name }

// newDir makes a directory beneath the root.
func (h *vdsmHost) newDir(name string) dirPlace {
	h.t.Helper()
	path := filepath.Join(h.root, name)
	require.NoError(h.t, os.Mkdir(path, 0o700))
	return dirPlace(path)
}

// connect makes places known, and returns what is wrong with them.
func (h *vdsmHost) connect(all ...place) error {
	h.t.Helper()
	for _, p := range all {
		kind, address := p.connection()
		var r struct {
			Results []struct {
				Status  int    `json:"status"`
				Message string `json:"message"`
			} `json:"statuslist"`
		}
		err := h.ask("connectStorageServer", arguments{"domType": kind, "spUUID": uuid.Nil, "conList": []any{arguments{"connection": address}}}, &r)
		if err != nil {
			return err
		}
		if r.Results[0].Status != 0 {
			return fmt.Errorf("%d: %s", r.Results[0].Status, r.Results[0].Message)
		}
	}
	return nil
}

// newDomains makes a pool of new domains, the first of which is its master, and makes
// the host manage it.
func (h *vdsmHost) newDomains(all ...place) []string {
	h.t.Helper()
	require.NoError(h.t, h.connect(all...))
	var domains []string
	for i, p := range all {
		kind, _ := p.connection()
		domains = append(domains, uuid.NewString())
		a := arguments{"storageType": kind, "sdUUID": domains[i], "domainName": fmt.Sprint("domain ", i), "typeSpecificArg": p.where(), "domClass": "Data"}
		if kind == "LOCALFS" {
			a["capacity"] = cmp.Or(h.capacity, "64000000000")
		}
		h.do("createStorageDomain", a)
	}
	h.do("createStoragePool", arguments{"spUUID": h.pool, "poolName": "pool", "masterDom": domains[0], "domList": domains, "masterVersion": 1})
	h.manage(domains[0])
	for _, d := range domains[1:] {
		h.do("activateStorageDomain", arguments{"spUUID": h.pool, "sdUUID": d})
	}
	return domains
}

// manage makes the host the SPM of its pool.
func (h *vdsmHost) manage(master string) {
	h.t.Helper()
	h.do("connectStoragePool", arguments{"spUUID": h.pool, "hostID": 1, "scsiKey": "", "msdUUID": master, "masterVersion": 1})
	h.run("spmStart", arguments{"spUUID": h.pool})
}

// A vdsmVolume is what the verbs tell of a volume.
type vdsmVolume struct {
	ID       string   `json:"uuid"`
	Image    string   `json:"image"`
	Parent   string   `json:"parent"`
	Capacity string   `json:"capacity"`
	Granted  string   `json:"apparentsize"`
	Format   string   `json:"format"`
	Alloc    string   `json:"type"`
	Type     string   `json:"voltype"`
	Legality string   `json:"legality"`
	Children []string `json:"children"`
	Served   bool     `json:"served"`
	Path     string   `json:"path"`
	Damaged  string   `json:"damaged"`
}

func bytesOf(t testing.TB, decimal string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(decimal, 10, 64)
	require.NoError(t, err)
	return n
}

// volumes are those of a domain.
func (h *vdsmHost) volumes(domain string) []vdsmVolume {
	h.t.Helper()
	var r struct {
		Volumes []vdsmVolume `json:"volumes"`
	}
	require.NoError(h.t, h.ask("getVolumesDetails", arguments{"sdUUID": domain}, &r))
	return r.Volumes
}

// chainOf is what a volume is based on, from the base up to itself.
func chainOf(t testing.TB, all []vdsmVolume, leaf string) (chain []vdsmVolume) {
	t.Helper()
	for id := leaf; id != uuid.Nil.String(); {
		i := slices.IndexFunc(all, func(v vdsmVolume) bool { return v.ID == id })
		require.GreaterOrEqual(t, i, 0, "volume %s", id)
		chain, id = append([]vdsmVolume{all[i]}, chain...), all[i].Parent
	}
	return chain
}

// newVolume makes a volume. Members of more replace or follow the arguments.
func (h *vdsmHost) newVolume(domain, image, id string, size int64, more arguments) arguments {
	a := arguments{"sdUUID": domain, "spUUID": h.pool, "imgUUID": image, "size": fmt.Sprint(size), "volFormat": "COW", "preallocate": "SPARSE",
		"diskType": "DATA", "volUUID": id, "desc": ""}
	for k, v := range more {
		a[k] = v
	}
	return a
}

// at are the arguments that name a volume.
func (h *vdsmHost) at(domain, image, volume string) arguments {
	return arguments{"spUUID": h.pool, "sdUUID": domain, "imgUUID": image, "volUUID": volume}
}

// prepare lets an image be served, and returns its address.
func (h *vdsmHost) prepare(domain, image string) (uri, socket string) {
	h.t.Helper()
	var r struct {
		Path string `json:"path"`
		Info struct {
			Socket string `json:"socket"`
		} `json:"info"`
	}
	require.NoError(h.t, h.ask("prepareImage", h.at(domain, image, ""), &r))
	return r.Path, r.Info.Socket
}

// endServer ends what serves an image, if a test has ended before it.
func endServer(pid int) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && strings.HasPrefix(string(line), "tidemark\x00nbd\x00") && strings.Contains(string(line), testRunDir()) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

// serversOf are the processes that serve images for the manager at a socket.
func serversOf(socket string) (pids []int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, err := os.ReadFile(path)
		args := strings.Split(string(line), "\x00")
		if err == nil && len(args) > 1 && args[1] == "nbd" && slices.Contains(args, socket) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			pids = append(pids, pid)
		}
	}
	return pids
}

func (h *vdsmHost) teardown(domain, image string) {
	h.t.Helper()
	h.do("teardownImage", h.at(domain, image, ""))
}

// chainFile is a file that QEMU opens as a leaf: in a directory the volume itself, of a
// group a copy beside copies of what is below it.
func chainFile(t testing.TB, p place, all []vdsmVolume, leaf string) string {
	t.Helper()
	chain := chainOf(t, all, leaf)
	top := chain[len(chain)-1]
	g, ok := p.(*groupPool)
	if !ok {
		return top.Path
	}
	dir := t.TempDir()
	for _, v := range chain {
		require.NoError(t, os.Rename(g.copyOf(t, v.ID), filepath.Join(dir, v.ID)))
	}
	return filepath.Join(dir, leaf)
}

// runQEMUIO runs commands of qemu-io, which must find what they look for.
func runQEMUIO(t testing.TB, file, format string, commands ...string) string {
	t.Helper()
	args := []string{"-f", format}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := testenv.Run(t, testenv.Tool(t, "qemu-io"), append(args, file)...)
	require.NotContains(t, out, "verification failed", "%s: %s", file, strings.Join(commands, "; "))
	return out
}

// runScript runs VDSM's classic sequence, and returns what it has made.
func (h *vdsmHost) runScript(dir dirPlace) (domain, image, volume string) {
	h.t.Helper()
	out, err := testenv.Command(h.t, testenv.Python(h.t), "../../spm/testdata/create_volume.py", "http+unix://"+h.socket, string(dir)).Output()
	var exit *exec.ExitError
	if e, is := err.(*exec.ExitError); is { //nolint:errorlint // as Output returns it
		exit = e
		require.NoError(h.t, err, "%s", exit.Stderr)
	}
	require.NoError(h.t, err)
	var made struct{ Pool, Domain, Image, Volume string }
	require.NoError(h.t, json.Unmarshal(out, &made))
	h.pool = made.Pool
	return made.Domain, made.Image, made.Volume
}
