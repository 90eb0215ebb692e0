package spm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Limits of VDSM: metadata fits in one sector, so that it is written atomically
// on a block domain, and the description leaves room for everything else.
const (
	volumeMetaMaxSize  = 512
	descriptionMaxSize = 210
)

// The formats on the wire and in the metadata.
const (
	FormatQCOW2 = "qcow2"
	FormatRaw   = "raw"
)

// volumeMeta is the metadata of a volume, in VDSM's V5 format.
type volumeMeta struct {
	Capacity    int64 // CAP: virtual size, bytes
	Created     int64 // CTIME: seconds since the epoch
	Description string
	DiskType    string
	Domain      uuid.UUID
	Format      string // COW or RAW
	Generation  int
	Image       uuid.UUID
	Legality    string
	Parent      uuid.UUID
	Priority    int // TIDEMARK_PRIORITY, which is ours; not there: 0
	Sequence    int64
	Type        string // SPARSE or PREALLOCATED
	VolType     string // LEAF, INTERNAL or SHARED
}

// newVolumeMeta is the metadata of a new image's only volume.
func newVolumeMeta(domain, image uuid.UUID, name, format string, size int64, now time.Time) (volumeMeta, error) {
	description, err := encodeDescription(name)
	if err != nil {
		return volumeMeta{}, err
	}
	return volumeMeta{
		Capacity: size, Created: now.Unix(), Description: description, DiskType: "DATA",
		Domain: domain, Format: metaFormat(format), Image: image, Legality: "LEGAL",
		Sequence: 1, Type: "SPARSE", VolType: "LEAF",
	}, nil
}

func metaFormat(format string) string {
	if format == FormatRaw {
		return "RAW"
	}
	return "COW"
}

// wireFormat is the reverse of metaFormat.
func (m volumeMeta) wireFormat() string {
	if m.Format == "RAW" {
		return FormatRaw
	}
	return FormatQCOW2
}

// encode writes the lines in the order of their keys, ended by EOF.
func (m volumeMeta) encode() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "CAP=%d\nCTIME=%d\nDESCRIPTION=%s\nDISKTYPE=%s\nDOMAIN=%s\nFORMAT=%s\nGEN=%d\nIMAGE=%s\nLEGALITY=%s\nPUUID=%s\nSEQ=%d\n%sTYPE=%s\nVOLTYPE=%s\nEOF\n",
		m.Capacity, m.Created, m.Description, m.DiskType, m.Domain, m.Format, m.Generation,
		m.Image, m.Legality, m.Parent, m.Sequence, m.priorityLine(), m.Type, m.VolType)
	if b.Len() > volumeMetaMaxSize {
		return nil, fmt.Errorf("metadata of the volume takes %d bytes, at most %d are possible: choose a shorter name", b.Len(), volumeMetaMaxSize)
	}
	return b.Bytes(), nil
}

// priorityMax and its negative are the limits of a priority.
const priorityMax = 1000

func (m volumeMeta) priorityLine() string {
	if m.Priority == 0 {
		return ""
	}
	return fmt.Sprintf("%s=%d\n", keyPriority, m.Priority)
}

// keyPriority is the only key of a volume's metadata that is not VDSM's.
const keyPriority = "TIDEMARK_PRIORITY"

// generationMax is where GEN begins anew: it has three digits.
const generationMax = 999

func nextGeneration(n int) int { return (n + 1) % (generationMax + 1) }

// parseVolumeMeta reads the metadata of a volume. GEN and SEQ may be missing, as
// in volumes of older versions; every other key is required.
func parseVolumeMeta(b []byte) (volumeMeta, error) {
	if len(b) > domainMetaMaxSize {
		return volumeMeta{}, fmt.Errorf("%d bytes of volume metadata, expected at most %d", len(b), domainMetaMaxSize)
	}
	f := metaFields{values: map[string]string{"GEN": "0", "SEQ": "0", keyPriority: "0"}}
	ended := false
	for line := range strings.Lines(strings.TrimRight(string(b), "\x00")) {
		if ended = strings.HasPrefix(line, "EOF"); ended {
			break
		}
		if k, v, ok := strings.Cut(line, "="); ok && utf8.ValidString(line) {
			f.values[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	if !ended {
		return volumeMeta{}, errors.New("volume metadata does not end with EOF: it is truncated")
	}
	m := volumeMeta{
		Capacity: f.number("CAP"), Created: f.number("CTIME"), Description: f.text("DESCRIPTION"),
		DiskType: f.text("DISKTYPE"), Domain: f.uuid("DOMAIN"), Format: f.text("FORMAT"),
		Generation: int(min(f.number("GEN"), generationMax)), Image: f.uuid("IMAGE"), Legality: f.text("LEGALITY"),
		Parent: f.uuid("PUUID"), Priority: f.priority(), Sequence: f.number("SEQ"), Type: f.text("TYPE"), VolType: f.text("VOLTYPE"),
	}
	if f.err == nil && m.Format != "COW" && m.Format != "RAW" {
		f.err = fmt.Errorf("FORMAT=%q: expected COW or RAW", m.Format)
	}
	return m, f.err
}

// metaFields reads values and keeps the first error.
type metaFields struct {
	values map[string]string
	err    error
}

func (f *metaFields) text(key string) string {
	v, ok := f.values[key]
	if !ok && f.err == nil {
		f.err = fmt.Errorf("required key %s is missing", key)
	}
	return v
}

func (f *metaFields) number(key string) int64 {
	v := f.text(key)
	n, err := strconv.ParseInt(v, 10, 64)
	if (err != nil || n < 0) && f.err == nil {
		f.err = fmt.Errorf("%s=%q: expected a number that is not negative", key, v)
	}
	return n
}

func (f *metaFields) priority() int {
	v := f.text(keyPriority)
	n, err := strconv.Atoi(v)
	if (err != nil || n < -priorityMax || n > priorityMax) && f.err == nil {
		f.err = fmt.Errorf("%s=%q: expected a number from %d to %d", keyPriority, v, -priorityMax, priorityMax)
	}
	return n
}

func (f *metaFields) uuid(key string) uuid.UUID {
	v := f.text(key)
	id, err := uuid.Parse(v)
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("%s=%q: %w", key, v, err)
	}
	return id
}

// description is the JSON that oVirt's engine keeps in DESCRIPTION.
type description struct {
	DiskAlias       string `json:"DiskAlias"`
	DiskDescription string `json:"DiskDescription"`
}

func encodeDescription(alias string) (string, error) {
	text, err := encodeJSON(description{DiskAlias: alias})
	if err != nil {
		return "", err
	}
	if len(text) > descriptionMaxSize {
		return "", fmt.Errorf("name takes %d bytes in the metadata, at most %d are possible: choose a shorter one",
			len(text), descriptionMaxSize)
	}
	return text, nil
}

func encodeJSON(d description) (string, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(d)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// fittingDescription is a description that fits into the metadata: what is too long is
// cut, as VDSM does. Of the engine's JSON only the DiskDescription is cut, where that is
// enough, so that the image keeps its name.
func fittingDescription(text string) string {
	if len(text) <= descriptionMaxSize {
		return text
	}
	var d description
	if json.Unmarshal([]byte(text), &d) == nil && d.DiskAlias != "" {
		for cut := min(len(d.DiskDescription), descriptionMaxSize); cut >= 0; cut-- {
			d.DiskDescription = cutTo(d.DiskDescription, cut)
			if short, err := encodeJSON(d); err == nil && len(short) <= descriptionMaxSize {
				return short
			}
		}
	}
	return cutTo(text, descriptionMaxSize)
}

// cutTo is what n bytes of a text hold of it, in whole characters.
func cutTo(text string, n int) string {
	n = min(n, len(text))
	for n > 0 && n < len(text) && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// alias is the name of the image, or "" if the description holds none.
func (m volumeMeta) alias() string {
	var d description
	if json.Unmarshal([]byte(m.Description), &d) != nil {
		return ""
	}
	return d.DiskAlias
}

// checkName refuses names that could not be told from a UUID or a path, or that
// would break a line of metadata or output.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("the name is empty")
	case !utf8.ValidString(name) || strings.ContainsRune(name, utf8.RuneError): // which JSON puts for bad bytes
		return fmt.Errorf("name %q is not UTF-8", name)
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == '/' }):
		return fmt.Errorf("name %+q contains a slash, or a character that cannot be seen", name)
	case strings.TrimSpace(name) != name:
		return fmt.Errorf("name %q begins or ends with a space", name)
	case strings.HasPrefix(name, "-"):
		return fmt.Errorf("name %q begins with a dash", name)
	case name == "." || name == "..":
		return fmt.Errorf("name %q means a directory, and volumes are shown as files of their name", name)
	}
	if _, err := uuid.Parse(name); err == nil {
		return fmt.Errorf("name %q looks like a UUID, which volumes have besides their name", name)
	}
	return nil
}
