//go:build linux

package main_test

import (
	"cmp"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
)

// shows tells what there is: each image of each domain, its volumes from the base up, with
// the letters that each shows, and those of its leaf at the end. QEMU reads them, and finds
// each volume clean. What is illegal has a ! behind its name, and shows nothing that counts.
func (w *world) shows() string {
	w.t.Helper()
	var images []string
	for n, domain := range w.domains {
		all := w.volumes(domain)
		for _, v := range all {
			require.Empty(w.t, v.Damaged)
			if len(v.Children) > 0 && slices.ContainsFunc(all, func(c vdsmVolume) bool { return c.Parent == v.ID && c.Image == v.Image }) {
				continue
			}
			var volumes []string
			for _, k := range chainOf(w.t, all, v.ID) {
				volumes = append(volumes, w.describe(n, all, k, k.ID != v.ID && k.Image == v.Image))
			}
			images = append(images, fmt.Sprintf("%d/%s: %s=%s", n, cmp.Or(w.names[v.Image], v.Image), strings.Join(volumes, " "), w.letters(n, all, v)))
		}
	}
	slices.Sort(images)
	return strings.Join(images, "; ")
}

// describe tells of a volume what shows does.
func (w *world) describe(n int, all []vdsmVolume, v vdsmVolume, below bool) string {
	w.t.Helper()
	illegal, more := "", ""
	if bytesOf(w.t, v.Granted) >= largeVolume {
		more = " large"
	}
	switch {
	case v.Legality != "LEGAL":
		illegal = "!"
	case below:
		more += ": " + w.once(n, "read", chainOf(w.t, all, v.ID), func() string { return w.read(chainFile(w.t, w.places[n], all, v.ID), v) })
	}
	return fmt.Sprintf("%s%s(%s %s %s %dM%s)", cmp.Or(w.names[v.ID], v.ID), illegal, v.Type, v.Format, v.Alloc, bytesOf(w.t, v.Capacity)/mib, more)
}

// rolledBack is what a story that was rolled back may show, with what it does, of which
// leaves may be there or not: of torn, what is illegal now shows nothing that counts.
func rolledBack(before, now, leaves, torn string) (want, is string) {
	if leaves != "" {
		before, now = strings.ReplaceAll(before, leaves, ""), strings.ReplaceAll(now, leaves, "")
	}
	for _, c := range torn {
		name := string(c)
		if strings.Contains(now, " "+name+"!(") {
			before = regexp.MustCompile(" "+name+`\(([^:)]*)(: [^)]*)?\)`).ReplaceAllString(before, " "+name+"!($1)")
		}
	}
	return before, now
}

// letters are what a volume shows at each step, as QEMU finds it, with a clean chain.
func (w *world) letters(n int, all []vdsmVolume, v vdsmVolume) string {
	w.t.Helper()
	chain := chainOf(w.t, all, v.ID)
	return w.once(n, "check and read", chain, func() string {
		file := chainFile(w.t, w.places[n], all, v.ID)
		for _, below := range chain {
			if below.Format == "COW" {
				path := below.Path
				if _, group := w.places[n].(*groupPool); group {
					path = filepath.Join(filepath.Dir(file), below.ID)
				}
				testenv.Run(w.t, "qemu-img", "check", "-q", path)
			}
		}
		return w.read(file, v)
	})
}

// read are the letters that QEMU reads from the file of a volume.
func (w *world) read(file string, v vdsmVolume) string {
	w.t.Helper()
	format := "raw"
	if v.Format == "COW" {
		format = "qcow2"
	}
	const most = 4
	var reads []string
	for i := range most {
		reads = append(reads, fmt.Sprintf("read -v %d 512", i*storyStep))
	}
	out := ""
	for line := range strings.Lines(runQEMUIO(w.t, file, format, reads...)) {
		at, hex, _ := strings.Cut(line, ":  ")
		for i := range most {
			if at == fmt.Sprintf("%08x", i*storyStep) {
				var c byte
				_, err := fmt.Sscanf(hex, "%02x", &c)
				require.NoError(w.t, err, line)
				out += string(rune(c))
			}
		}
	}
	require.Len(w.t, out, most)
	return strings.TrimRight(out, "\x00")
}
