package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm"
	"tidemark/spm/storagetest"
	"tidemark/spm/verbs"
)

// noManager is an API of a host without a domain in use.
type noManager struct{ spm.API }

func (noManager) GetPoolInfo(context.Context, spm.PoolInfoRequest) (spm.PoolReply, error) {
	return spm.PoolReply{}, &spm.Error{Code: spm.CodeNotSPM, Message: "no pool"}
}

// fakeStorage serves storage in memory on the socket that TIDEMARK_SPM names.
func fakeStorage(t *testing.T) *storagetest.Fake {
	t.Helper()
	f := &storagetest.Fake{Root: "/srv"}
	serveFake(t, f, func(string) {})
	return f
}

// serveFake serves it on a socket more, which TIDEMARK_SPM names from now on. at is told
// of each request that comes, before it is looked at.
func serveFake(t *testing.T, f *storagetest.Fake, at func(body string)) {
	t.Helper()
	dir, err := os.MkdirTemp("", "storage-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "spm.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	h := verbs.Handler(f, noManager{})
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client has gone
		}
		at(string(body))
		r.Body = io.NopCloser(bytes.NewReader(body))
		h.ServeHTTP(w, r)
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close() //nolint:errcheck // the test has ended
		require.True(t, errors.Is(<-served, http.ErrServerClosed))
	})
	t.Setenv("TIDEMARK_SPM", path)
}

// does runs a command line, expects success, and returns what it has printed.
func does(t *testing.T, line string) string {
	t.Helper()
	r := cli(t, strings.Fields(line)...)
	require.Zero(t, r.code, r)
	require.Empty(t, r.stderr, r)
	return r.stdout
}

// told runs a command line with --output=json.
func told[T any](t *testing.T, line string) (v T) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(does(t, line+" --output=json")), &v))
	return v
}

// aPool makes two domains, and a pool of them with one image.
func aPool(t *testing.T) (f *storagetest.Fake, volume volumeView) {
	f = fakeStorage(t)
	does(t, "domain create first /srv/a --capacity 100G")
	does(t, "domain create second /srv/b")
	does(t, "pool create office first second")
	d := told[domainView](t, "domain info first")
	b := told[begun](t, "volume snapshot "+newVolumeIn(t, d)+" --wait")
	return f, told[imageView](t, "image info "+b.Image).leaf()
}

// newVolumeIn makes a volume through the verb that users of VDSM know.
func newVolumeIn(t *testing.T, d domainView) string {
	t.Helper()
	s, err := dialStorage("")
	require.NoError(t, err)
	defer s.Close()
	id, err := newID("")
	require.NoError(t, err)
	require.NoError(t, s.ask(t.Context(), "createVolume", named{"sdUUID": d.UUID, "spUUID": d.pool(), "imgUUID": id, "size": "10737418240",
		"volFormat": "COW", "preallocate": "SPARSE", "diskType": "DATA", "volUUID": id, "desc": "base"}, nil))
	return id
}

func TestDomainAndPoolVerbs(t *testing.T) {
	fakeStorage(t)
	require.Equal(t, "no domains; make one with: tidemark domain create NAME DIR\n", does(t, "domain list"))
	require.Equal(t, "no pools; make one with: tidemark pool create NAME DOMAIN\n", does(t, "pool list"))
	require.Equal(t, "[]\n", does(t, "domain list --output=json"))
	require.Contains(t, does(t, "domain create first /srv/a --capacity 100G"), "next: "+self()+" pool create POOL first\n")
	require.Equal(t, "connected /srv/b\nconnected /srv/c\n", does(t, "domain connect /srv/b /srv/c"))
	require.Equal(t, "/srv/b was connected before\n", does(t, "domain connect /srv/b"))
	require.Equal(t, "disconnected /srv/c\n/srv/nix was not connected\n", does(t, "domain disconnect /srv/c /srv/nix"))
	for _, what := range []string{"domain", "pool"} {
		r := cli(t, what, "create", "", "first")
		require.NotZero(t, r.code)
		require.Contains(t, r.stderr, "expected a name for the "+what)
	}
	id := "00000000-0000-4000-8000-00000000000a"
	require.Equal(t, id, told[domainView](t, "domain create second /srv/b --id "+id).UUID)

	require.Contains(t, does(t, "pool create office first"), "this host manages it; next: ")
	require.Equal(t, "second: attached\n", does(t, "domain attach 00000000"))
	require.Equal(t, "second: active\n", does(t, "domain activate second"))
	list := does(t, "domain list")
	require.Contains(t, list, "NAME    DOMAIN")
	require.Regexp(t, `first +\S+ +LOCALFS +Active +Master +100 GiB +0 B +100 GiB +ok +/srv/a\n`, list)
	require.Regexp(t, `second +`+id+` +LOCALFS +Active +Regular `, list)
	require.Contains(t, does(t, "domain info /srv/a"), "capacity             100 GiB (107374182400 bytes)\n")
	require.Regexp(t, `office +\S+ +yes +SPM +\S+ +1 +2\n`, does(t, "pool list"))
	p := told[poolView](t, "pool info")
	require.Equal(t, "Active", p.Domains[id])
	require.Equal(t, int64(1), p.Epoch)
	require.Contains(t, does(t, "pool info office"), "domain               "+id+" Active\n")

	require.Equal(t, "first: not in use any more\n", does(t, "domain deactivate first --new-master second"))
	p = told[poolView](t, "pool info")
	require.Equal(t, []any{id, int64(2)}, []any{p.Master, p.MasterVersion})
	require.Equal(t, "first: of no pool\n", does(t, "domain detach first"))
	require.Equal(t, "first: removed\n", does(t, "domain format first"))
	require.Equal(t, "office: stopped\n", does(t, "pool stop"))
	require.Equal(t, "office: disconnected\n", does(t, "pool disconnect"))
	require.Regexp(t, `^NAME .*\n- +\S+ +no +- +`+id+` +2 +1\n$`, does(t, "pool list"))
	require.Equal(t, p.UUID+": managed by this host\n", does(t, "pool start "+p.UUID[:8]))
	require.Equal(t, "office: destroyed\n", does(t, "pool destroy office"))
}

func TestImageAndVolumeVerbs(t *testing.T) {
	_, leaf := aPool(t)
	base := leaf.Parent
	info := does(t, "image info "+leaf.Image)
	require.Regexp(t, `(?s)\n`+base+` +INTERNAL +COW .*base\n`+leaf.UUID+` +LEAF +COW .*`, info)
	require.Regexp(t, `- +`+leaf.Image+` +2 +10 GiB +2.0 GiB +no `, does(t, "image list --domain first"))

	address := does(t, "image prepare "+leaf.Image)
	require.Equal(t, "nbd+unix:///?socket=/run/tidemark/images/"+leaf.Image+"/nbd.sock\n", address)
	require.Regexp(t, `2.0 GiB +yes `, does(t, "image list"))
	require.Equal(t, leaf.Image+": served no more\n", does(t, "image teardown "+leaf.Image))

	require.Equal(t, leaf.UUID+": 20 GiB\n", does(t, "volume resize "+leaf.UUID+" 20G --wait"))
	require.Equal(t, decimalBytes(20<<30), told[imageView](t, "image info "+leaf.Image).leaf().Capacity)
	require.Equal(t, leaf.UUID+" reduced\n", does(t, "volume reduce "+leaf.UUID+" --wait"))
	require.Equal(t, leaf.UUID+": priority 7\n", does(t, "volume priority "+leaf.UUID+" 7"))
	require.Contains(t, does(t, "volume measure --format raw "+leaf.UUID), "required         256 KiB (262144 bytes)\n")

	require.Equal(t, leaf.UUID+" merged into "+base+"\n", does(t, "volume merge "+leaf.UUID+" --wait"))
	require.Len(t, told[imageView](t, "image info "+leaf.Image).Volumes, 1)
	b := told[begun](t, "image copy "+leaf.Image+" --template --to second --wait")
	require.Equal(t, "SHARED", told[imageView](t, "image info "+b.Image).leaf().Type)
	require.Contains(t, does(t, "volume move "+leaf.Image+" --to second --wait"), leaf.Image+" to second\n")
	require.Len(t, told[[]imageView](t, "image list --domain second"), 2)
	require.Equal(t, b.Volume+" removed\n", does(t, "volume delete "+b.Volume+" --wait"))
	require.Equal(t, "image "+leaf.Image+" removed\n", does(t, "image delete --wait "+leaf.Image))
	require.Contains(t, does(t, "image list"), "no images; make one with: ")
}

func TestTaskVerbs(t *testing.T) {
	f, leaf := aPool(t)
	does(t, "task clear --all")
	require.Equal(t, "no tasks\n", does(t, "task list"))
	hold := make(chan struct{})
	f.Hold = func(string) { <-hold }
	b := told[begun](t, "volume reduce "+leaf.UUID)
	f.Progress(45)
	require.Regexp(t, `TASK .*\n`+b.Task+` +reduceVolume +running +work +45 % +\S+ \S+ +-\n$`, does(t, "task list"))
	require.Contains(t, does(t, "task info "+b.Task[:8]), "progress   45 %\n")
	require.Equal(t, "cleared 0\n", does(t, "task clear --all"))
	require.Contains(t, cli(t, "task", "clear", b.Task).stderr, "has not ended")

	// Who waits sees the progress on a terminal, and gives up when told.
	s, err := dialStorage("")
	require.NoError(t, err)
	defer s.Close()
	var screen bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	seen := &onText{w: &screen, text: "running work: 45 %", do: cancel}
	_, err = s.waitFor(ctx, b.Task, seen)
	require.ErrorContains(t, err, "task wait "+b.Task)

	stopped := told[begun](t, "volume reduce "+leaf.UUID)
	require.Equal(t, stopped.Task+": stopped\n", does(t, "task stop "+stopped.Task))
	r := cli(t, "task", "wait", stopped.Task)
	require.Equal(t, exitFailure, r.code, r)
	require.Contains(t, r.stderr, "has failed, and what it had done is undone: stopped (code 411)")
	require.Contains(t, does(t, "task list"), "stopped (code 411)\n")

	go close(hold)
	require.Equal(t, "reduceVolume: finished\n", does(t, "task wait "+b.Task))
	require.Equal(t, "cleared 1\n", does(t, "task clear --all"))
}

// Whenever who waits for a task is interrupted, he is told which it is, and how to go on.
func TestInterruptedWaits(t *testing.T) {
	f, leaf := aPool(t)
	var requests atomic.Int64 // until he is interrupted
	var interrupt atomic.Value
	serveFake(t, f, func(string) {
		if requests.Add(-1) == 0 {
			interrupt.Load().(context.CancelFunc)()
		}
	})
	named := 0
	for n := 1; ; n++ {
		does(t, "task clear --all")
		ctx, cancel := context.WithCancel(t.Context())
		interrupt.Store(cancel)
		requests.Store(int64(n))
		var stdout, stderr bytes.Buffer
		code := run(ctx, []string{"volume", "reduce", leaf.UUID, "--wait"}, &stdout, &stderr)
		interrupted := ctx.Err() != nil
		cancel()
		requests.Store(-1)
		all, err := f.Tasks(t.Context())
		require.NoError(t, err)
		if code == exitOK {
			require.Empty(t, all)
			if !interrupted {
				break // all requests have been tried
			}
			continue
		}
		for _, task := range all {
			require.Contains(t, stderr.String(), "task "+task.ID.String()+" goes on; wait for it with: "+self()+" task wait "+task.ID.String(), "request %d", n)
			named++
		}
	}
	require.NotZero(t, named)
}

// What is printed of a task says no more than what has become of it.
func TestTasksAreNotOver(t *testing.T) {
	f, leaf := aPool(t)
	hold := make(chan struct{})
	f.Hold = func(string) { <-hold }
	text := does(t, "volume reduce "+leaf.UUID)
	require.Regexp(t, `^task (\S+) has begun; when it has ended: `+leaf.UUID+` reduced; wait for that with: \S+ task wait \S+\n$`, text)
	close(hold)
	for _, c := range []struct{ was, is, want string }{
		{"running", "failed", "undone"},
		{"finished", "finished", "is being undone"},
		{"running", "aborting", "is being undone"},
		{"recovering", "finished", "could not be undone any more: it went on, and has finished"},
		{"recovering", "recovering", "set going again (recovering): it is undone, or finished if it has gone too far for that"},
	} {
		require.Equal(t, c.want, reverted(taskView{State: c.was}, taskView{State: c.is}))
	}
}

// An onText is told when a text has been written.
type onText struct {
	w    *bytes.Buffer
	text string
	do   func()
}

func (o *onText) Write(b []byte) (int, error) {
	o.w.Write(b)
	if strings.Contains(o.w.String(), o.text) {
		o.do()
	}
	return len(b), nil
}

func TestProgressLine(t *testing.T) {
	var b bytes.Buffer
	line := drawProgress(&b, "", taskView{State: "running", Step: "copy", Done: 1, Total: 4})
	line = drawProgress(&b, line, taskView{State: "running", Step: "copy", Done: 1, Total: 4})
	line = drawProgress(&b, line, taskView{State: "running", Step: "end"})
	line = drawProgress(&b, line, taskView{State: "finished"})
	require.Empty(t, line)
	require.Equal(t, "\rrunning copy: 25 %\rrunning end: -    \r              \r", b.String())
}

func TestStorageMistakes(t *testing.T) {
	aPool(t)
	for line, want := range map[string]string{
		"domain frob":                         `domain: there is no verb "frob": expected connect, `,
		"pool frob":                           `expected create, connect, `,
		"image frob":                          `expected list, info, `,
		"task frob":                           `expected list, info, `,
		"domain info third":                   `there is no domain "third"; there are first (`,
		"domain info":                         "expected DOMAIN",
		"domain connect /etc":                 "/etc: expected a place beneath /srv (code 1022)",
		"domain create third /srv/a":          "lies there",
		"domain create third /srv/c --id x":   "--id x: expected a UUID",
		"domain format first":                 "formatStorageDomain: domain",
		"domain create x /srv/x --capacity y": "--capacity y: ",
		"pool create two first":               "is of pool",
		"pool info nix":                       `there is no pool "nix"; there are office (`,
		"image info nix":                      `there is no image "nix"`,
		"image list --domain nix":             `there is no domain "nix"`,
		"volume merge nix":                    `there is no volume "nix"`,
		"volume resize nix":                   "expected NAME SIZE",
		"volume snapshot":                     "expected NAME",
		"task wait nix":                       `there is no task "nix"`,
		"task clear":                          "expected TASK",
		"task clear --all x":                  "takes options only",
		"task list --output xml":              "expected human or json",
	} {
		r := cli(t, strings.Fields(line)...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, want, r)
		require.Empty(t, r.stdout, r)
	}
	image := told[[]imageView](t, "image list")[0]
	for line, want := range map[string]string{
		"volume snapshot " + image.Volumes[0].UUID:   "is a snapshot already",
		"volume merge " + image.Volumes[0].UUID:      "is based on no other",
		"volume delete " + image.Volumes[0].UUID:     "is based on",
		"volume resize " + image.UUID + " 1X":        "not a size",
		"volume resize " + image.UUID + " 1G":        "extendVolumeSize: ",
		"volume measure --format vmdk " + image.UUID: "expected COW or 4",
		"volume priority " + image.UUID + " high":    "expected an integer",
		"image move " + image.UUID:                   "give --to DOMAIN",
		"image prepare --volume abcd " + image.UUID:  `there is no volume "abcd"`,
	} {
		r := cli(t, strings.Fields(line)...)
		require.Equal(t, exitFailure, r.code, r)
		require.Contains(t, r.stderr, want, r)
	}
	t.Setenv("TIDEMARK_SPM", "")
	require.Contains(t, cli(t, "task", "list").stderr, "which host? give --spm PATH")
	require.Contains(t, cli(t, "task", "list", "--spm", "/nowhere/spm.sock").stderr, "there is no such socket: start the manager with: ")
}

// An image may be in two domains, with the same UUIDs: then the domain tells which is meant.
func TestOneImageInTwoDomains(t *testing.T) {
	all := []imageView{{UUID: "aaaa1111", Name: "x", Domain: "d1"}, {UUID: "aaaa1111", Name: "x", Domain: "d2"}}
	_, err := match("image", "x", all)
	require.EqualError(t, err, `there are 2 images "x" of one UUID: say of which domain, as DOMAIN/x: x (aaaa1111) in domain d1, x (aaaa1111) in domain d2`)
	for name, want := range map[string][2]string{"x": {"", "x"}, "first/x": {"first", "x"}, "/srv/a/x": {"/srv/a", "x"}} {
		domain, rest := inDomain(name)
		require.Equal(t, want, [2]string{domain, rest})
	}
}

// Names that several objects have, or that several begin with, are not guessed.
func TestMatch(t *testing.T) {
	all := []domainView{{UUID: "aaaa1111", Name: "x"}, {UUID: "aaaa2222", Name: "x"}, {UUID: "bbbb", Name: "aaaa"}}
	for name, want := range map[string]string{"bbbb": "bbbb", "aaaa": "bbbb", "aaaa1": "aaaa1111"} {
		d, err := match("domain", name, all)
		require.NoError(t, err)
		require.Equal(t, want, d.UUID)
	}
	for name, want := range map[string]string{"x": "there are 2 domains", "aaa": "there is no domain", "": "there is no domain", "c": "there is no domain"} {
		_, err := match("domain", name, all)
		require.ErrorContains(t, err, want)
	}
	_, err := match("domain", "aaaa", all[:2])
	require.ErrorContains(t, err, "there are 2 domains")
	_, err = match("domain", "x", []domainView{})
	require.ErrorContains(t, err, "there are no others")
}

// The shell is told names and UUIDs, and nothing where nobody answers.
func TestCompletion(t *testing.T) {
	_, leaf := aPool(t)
	for line, want := range map[string]string{
		"domain info ":                    "first\t",
		"pool start ":                     "office\t",
		"pool create new ":                "second\t",
		"image prepare ":                  leaf.Image + "\n",
		"image move x --to ":              "second\t",
		"volume merge ":                   leaf.UUID + "\n",
		"domain deactivate --new-master ": "first\t",
		"task ":                           "revert\t",
	} {
		r := cli(t, append([]string{"__complete"}, strings.Split(line, " ")...)...)
		require.Contains(t, r.stdout, want, r)
	}
	t.Setenv("TIDEMARK_SPM", "/nowhere/spm.sock")
	r := cli(t, "__complete", "domain", "info", "")
	require.Equal(t, ":4\n", r.stdout, r)
	require.Contains(t, does(t, "completion bash"), "__start_tidemark")
}

// The classic script, and the command line, speak of the same things.
func TestTheScriptsVolumeIsListed(t *testing.T) {
	dir := t.TempDir()
	f := fakeStorage(t)
	f.Root = dir
	require.NoError(t, testenv.Command(t, testenv.Python(t), "../../spm/testdata/create_volume.py", "http+unix://"+os.Getenv("TIDEMARK_SPM"), dir).Run())
	require.Contains(t, does(t, "domain list"), "my local domain")
	require.Contains(t, does(t, "pool info"), "name                 my pool\n")
	require.Equal(t, "volly", told[[]imageView](t, "image list")[0].leaf().Description)
}

// Who names a volume that a merge has torn is told what to repeat.
func TestNothingBelow(t *testing.T) {
	a := volumeView{UUID: "a", Legality: spm.Illegal, Children: []string{"b"}}
	b := volumeView{UUID: "b", Legality: spm.Illegal, Children: []string{"c"}, Parent: "a"}
	c := volumeView{UUID: "c", Legality: spm.Legal, Parent: "b"}
	require.ErrorContains(t, nothingBelow(a, []volumeView{a, b, c}), "volume merge c --into a")
	for _, all := range [][]volumeView{{a}, {a, b}} { // nobody knows of which
		require.ErrorContains(t, nothingBelow(a, all), "is based on no other: there is nothing to merge it into")
	}
	a.Legality = spm.Legal
	require.ErrorContains(t, nothingBelow(a, []volumeView{a, b, c}), "is based on no other: there is nothing to merge it into")
}
