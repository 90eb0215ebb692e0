//go:build linux

package fusefs

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// subtype is how a mount of ours is known in /proc/mounts: fuse.tidemark.
const subtype = "tidemark"

// A mounted is a line of /proc/self/mountinfo, which proc(5) describes.
type mounted struct {
	device string // major:minor, as 0:42
	target string
	kind   string // file system and subtype, as fuse.tidemark
	source string
}

func (m mounted) ours() bool { return m.kind == "fuse."+subtype }

// mountAt returns what is mounted at target, the topmost of several, or false.
func mountAt(target string) (m mounted, found bool, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return m, false, err
	}
	defer f.Close() //nolint:errcheck // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if l, ok := parseMountinfo(lines.Text()); ok && l.target == target {
			m, found = l, true // later lines lie on top
		}
	}
	return m, found, lines.Err()
}

// parseMountinfo reads a line:
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//	id parent device root target options [optional fields] - kind source options
func parseMountinfo(line string) (mounted, bool) {
	before, after, ok := strings.Cut(line, " - ")
	b, a := strings.Fields(before), strings.Fields(after)
	if !ok || len(b) < 6 || len(a) < 2 {
		return mounted{}, false
	}
	return mounted{device: b[2], target: unescape(b[4]), kind: a[0], source: unescape(a[1])}, true
}

// unescape undoes what the kernel does to blanks and backslashes: \040.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		var c byte
		if s[i] == '\\' && i+4 <= len(s) {
			if _, err := fmt.Sscanf(s[i+1:i+4], "%03o", &c); err == nil {
				b.WriteByte(c)
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
