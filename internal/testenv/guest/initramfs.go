package guest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"tidemark/internal/testenv"
)

// agentPackage is the program that becomes /init.
const agentPackage = "tidemark/internal/testenv/guest/agent"

// builtAgent builds the agent once. The file is unlinked while it is open, so
// that nothing is left however the tests end.
var builtAgent = sync.OnceValues(func() (*os.File, error) {
	dir, err := os.MkdirTemp("", "tidemark-guest-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // the error of the build says more
	out := filepath.Join(dir, "agent")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", out, agentPackage)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go build %s: %w\n%s", agentPackage, err, text)
	}
	return os.Open(out)
})

// makeInitramfs writes what the guest starts with.
func makeInitramfs(t testing.TB, path string, k kernel, o Options) {
	t.Helper()
	agent, err := builtAgent()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"init": fmt.Sprintf("/proc/self/fd/%d", agent.Fd())}
	modules, err := loadOrder(o.Modules, k.modules, moduleNeeds)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range modules {
		files[fmt.Sprintf("modules/%03d-%s", i, filepath.Base(m))] = m
	}
	for _, name := range o.Programs {
		program := testenv.Tool(t, name)
		files[strings.TrimPrefix(program, "/")] = program
		for _, l := range libraries(t, program) {
			files[strings.TrimPrefix(l, "/")] = l
		}
	}
	for name, file := range o.Files {
		files[strings.TrimPrefix(name, "/")] = file
	}
	if err := writeArchive(path, files); err != nil {
		t.Fatalf("make an initramfs: %v", err)
	}
}

func writeArchive(path string, files map[string]string) (err error) {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	a := newArchive(out)
	for name, file := range files {
		if err := addFile(a, name, file); err != nil {
			return err
		}
	}
	return a.close()
}

func addFile(a *archive, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return a.file(name, st.Size(), f)
}

// libraryPath finds the paths in a line of ldd(1).
var libraryPath = regexp.MustCompile(`/[^ ]+`)

// libraries are the shared libraries of a program, with the loader.
func libraries(t testing.TB, program string) []string {
	t.Helper()
	var all []string
	for line := range strings.Lines(testenv.Run(t, testenv.Tool(t, "ldd"), program)) {
		if path := libraryPath.FindString(strings.TrimSpace(line)); path != "" {
			all = append(all, path)
		}
	}
	return all
}
