package guest

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"tidemark/internal/testenv"
)

// A kernel is Debian's package, unpacked.
type kernel struct {
	image   string            // bzImage
	modules map[string]string // name, with underscores, to file
}

// findKernel finds what tools/deps has unpacked, or skips the test.
func findKernel(t testing.TB) kernel {
	t.Helper()
	dir := filepath.Join(moduleRoot(t), ".cache", "guest", "kernel")
	images, _ := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*")) // the pattern is good
	if len(images) != 1 {
		testenv.Missing(t, "Debian's kernel for virtual machines in %s; on Debian: make deps", dir)
	}
	modules, err := findModules(dir)
	if err != nil {
		t.Fatalf("modules of the guest's kernel: %v", err)
	}
	return kernel{images[0], modules}
}

// moduleRoot is the directory of go.mod.
func moduleRoot(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for d := dir; d != filepath.Dir(d); d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d
		}
	}
	t.Fatalf("no go.mod above %s", dir)
	return ""
}

func findModules(dir string) (map[string]string, error) {
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			all[moduleName(name)] = path
		}
		return err
	})
	return all, err
}

// moduleName is what the kernel calls a module, whose file may have dashes.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// loadOrder are the files of the modules named and of what they depend on, each
// behind what it needs.
func loadOrder(names []string, modules map[string]string, needs func(path string) ([]string, error)) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		if seen[name] {
			return nil
		}
		seen[name] = true
		path, found := modules[name]
		if !found {
			return fmt.Errorf("the guest's kernel has no module %s", name)
		}
		all, err := needs(path)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, n := range all {
			if err := add(n); err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
		}
		order = append(order, path)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleNeeds reads what a module says of itself, in its section .modinfo: strings
// KEY=VALUE that end with a zero byte, of which depends=A,B counts.
func moduleNeeds(path string) ([]string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("it has no section .modinfo")
	}
	b, err := s.Data()
	if err != nil {
		return nil, err
	}
	for _, entry := range strings.Split(string(b), "\x00") {
		if value, ok := strings.CutPrefix(entry, "depends="); ok && value != "" {
			return strings.Split(value, ","), nil
		}
	}
	return nil, nil
}
