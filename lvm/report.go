package lvm

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// reportArgs ask for everything that this package knows of groups, in one
// command and so under one lock: what comes back is of one moment.
var reportArgs = []string{
	"--reportformat", "json", "--units", "b", "--nosuffix", "--binary",
	"--configreport", "vg", "-o", "vg_name,vg_uuid,vg_seqno,vg_extent_size,vg_extent_count,vg_free_count,vg_tags,vg_partial,vg_exported,vg_mda_size,vg_mda_free",
	"--configreport", "pv", "-o", "pv_name,pv_uuid,pe_start,pv_pe_count,pv_mda_used_count,pv_allocatable,pv_missing,pv_duplicate",
	"--configreport", "lv", "-o", "lv_name,lv_uuid,lv_size,lv_tags,lv_health_status",
	"--configreport", "pvseg", "-o", "pv_uuid,pvseg_start,pvseg_size,lv_uuid",
	"--configreport", "seg", "-o", "lv_uuid,segtype,seg_start,seg_size,seg_pe_ranges",
}

// A row is one line of a report: every value is text.
type row map[string]string

// A report is what lvm says of one group; of physical volumes without a group it
// has no rows of kind vg.
type report struct {
	VG    []row `json:"vg"`
	PV    []row `json:"pv"`
	LV    []row `json:"lv"`
	PVSeg []row `json:"pvseg"`
	Seg   []row `json:"seg"`
}

// read returns the group of that name on the devices of the tool.
func (t *Tool) read(ctx context.Context, name string) (*VG, error) {
	out, err := t.metadata(ctx, "fullreport", reportArgs...)
	if err != nil {
		return nil, err
	}
	vg, err := parseReport(out, name)
	if err != nil {
		return nil, fmt.Errorf("volume group %s on %s: %w", name, strings.Join(t.o.Devices, ", "), err)
	}
	return vg, nil
}

// Map reads a group, and returns where a volume of it lies. The error wraps
// ErrNotFound if there is none.
func (t *Tool) Map(ctx context.Context, group, volume string) (Map, error) {
	vg, err := t.read(ctx, group)
	if err != nil {
		return Map{}, err
	}
	return vg.Map(volume)
}

// Groups reads all groups on the devices of the tool.
func (t *Tool) Groups(ctx context.Context) ([]*VG, error) {
	out, err := t.metadata(ctx, "fullreport", reportArgs...)
	if err != nil {
		return nil, err
	}
	reports, err := decodeReport(out)
	if err != nil {
		return nil, err
	}
	var all []*VG
	for _, r := range reports {
		if len(r.VG) == 0 {
			continue
		}
		vg, err := r.group()
		if err != nil {
			return nil, err
		}
		all = append(all, vg)
	}
	return all, nil
}

func decodeReport(out []byte) ([]report, error) {
	var all struct {
		Report []report `json:"report"`
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("report of lvm: %w", err)
	}
	return all.Report, nil
}

// parseReport finds a group in the output of fullreport.
func parseReport(out []byte, name string) (*VG, error) {
	reports, err := decodeReport(out)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range reports {
		if len(r.VG) == 0 {
			continue
		}
		if r.VG[0]["vg_name"] == name {
			return r.group()
		}
		names = append(names, r.VG[0]["vg_name"])
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there is no group on these devices: %w", ErrNotFound)
	}
	return nil, fmt.Errorf("the groups on these devices are %s: %w", strings.Join(names, ", "), ErrNotFound)
}

// fields reads values of rows and keeps the first error.
type fields struct{ err error }

func (f *fields) number(r row, key string) int64 {
	n, err := strconv.ParseInt(r[key], 10, 64)
	if (err != nil || n < 0) && f.err == nil {
		f.err = fmt.Errorf("report of lvm: %s is %q, expected a number that is not negative", key, r[key])
	}
	return n
}

func (f *fields) text(r row, key string) string {
	if r[key] == "" && f.err == nil {
		f.err = fmt.Errorf("report of lvm: %s is empty", key)
	}
	return r[key]
}

// flag reads a value of --binary; one that lvm does not know is not set.
func flag(r row, key string) bool { return r[key] == "1" }

func tags(r row, key string) []string {
	if r[key] == "" {
		return nil
	}
	return strings.Split(r[key], ",")
}

// group turns the rows into values.
func (r report) group() (*VG, error) {
	var f fields
	v := r.VG[0]
	g := &VG{
		Name: f.text(v, "vg_name"), UUID: f.text(v, "vg_uuid"), Seqno: f.number(v, "vg_seqno"),
		ExtentSize: f.number(v, "vg_extent_size"), Extents: f.number(v, "vg_extent_count"), Free: f.number(v, "vg_free_count"),
		Tags: tags(v, "vg_tags"), Partial: flag(v, "vg_partial"), Exported: flag(v, "vg_exported"),
		MDASize: f.number(v, "vg_mda_size"), MDAFree: f.number(v, "vg_mda_free"),
	}
	for _, p := range r.PV {
		g.PVs = append(g.PVs, PV{
			UUID: f.text(p, "pv_uuid"), Device: p["pv_name"], Start: f.number(p, "pe_start"), Extents: f.number(p, "pv_pe_count"),
			HoldsMetadata: f.number(p, "pv_mda_used_count") > 0, Allocatable: flag(p, "pv_allocatable"),
			Missing: flag(p, "pv_missing"), Duplicate: flag(p, "pv_duplicate"),
		})
	}
	for _, l := range r.LV {
		g.LVs = append(g.LVs, LV{
			Name: f.text(l, "lv_name"), UUID: f.text(l, "lv_uuid"), Size: f.number(l, "lv_size"),
			Tags: tags(l, "lv_tags"), Partial: l["lv_health_status"] == "partial",
		})
	}
	if f.err == nil && g.ExtentSize == 0 {
		f.err = fmt.Errorf("report of lvm: vg_extent_size is 0")
	}
	if f.err != nil {
		return nil, f.err
	}
	return g, r.runs(g)
}

// runs adds the free extents and the segments.
func (r report) runs(g *VG) error {
	var f fields
	for _, s := range r.PVSeg {
		run := Range{First: f.number(s, "pvseg_start"), Count: f.number(s, "pvseg_size")}
		i := slices.IndexFunc(g.PVs, func(p PV) bool { return p.UUID == s["pv_uuid"] })
		switch {
		case run.Count == 0:
		case s["lv_uuid"] != "":
			g.Segments++
		case i >= 0:
			g.PVs[i].Free = append(g.PVs[i].Free, run)
		}
	}
	for _, s := range r.Seg {
		i := slices.IndexFunc(g.LVs, func(l LV) bool { return l.UUID == s["lv_uuid"] })
		if i < 0 {
			continue // of a hidden volume
		}
		seg := Segment{Type: f.text(s, "segtype"), Start: f.number(s, "seg_start"), Size: f.number(s, "seg_size")}
		if seg.Type == linear {
			g.place(&seg, s["seg_pe_ranges"])
		}
		g.LVs[i].Segments = append(g.LVs[i].Segments, seg)
	}
	for i := range g.PVs {
		slices.SortFunc(g.PVs[i].Free, func(a, b Range) int { return int(a.First - b.First) })
	}
	for i := range g.LVs {
		slices.SortFunc(g.LVs[i].Segments, func(a, b Segment) int { return int(a.Start - b.Start) })
	}
	return f.err
}

// place reads "device:first-last". What is not that, such as a segment that is
// being moved, stays without a physical volume and is refused by Map.
func (v *VG) place(s *Segment, text string) {
	i := strings.LastIndexByte(text, ':')
	if i < 0 {
		return
	}
	p := slices.IndexFunc(v.PVs, func(p PV) bool { return p.Device == text[:i] && !p.Missing })
	var first, last int64
	if _, err := fmt.Sscanf(text[i+1:], "%d-%d", &first, &last); err != nil || p < 0 || last < first || (last-first+1)*v.ExtentSize != s.Size {
		return
	}
	s.PV, s.First, s.Count = v.PVs[p].UUID, first, last-first+1
}

// activeVolumes returns the devices of device-mapper on this host that are
// logical volumes, by what activeKey says of them. sys is the root of sysfs.
func activeVolumes(sys fs.FS) (map[string]string, error) {
	found, err := fs.Glob(sys, "block/dm-*/dm/uuid")
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, path := range found {
		b, err := fs.ReadFile(sys, path)
		if err != nil {
			continue // it has gone meanwhile
		}
		id, ours := strings.CutPrefix(strings.TrimSpace(string(b)), "LVM-")
		if ours && len(id) >= 2*plainUUIDLen {
			out[id[:2*plainUUIDLen]] = strings.Split(path, "/")[1]
		}
	}
	return out, nil
}

// plainUUIDLen is the length of a UUID of LVM without its dashes.
const plainUUIDLen = 32

func plainUUID(s string) string { return strings.ReplaceAll(s, "-", "") }

// activeKey is what device-mapper's UUID of a logical volume begins with, behind
// LVM-; hidden layers of it have a suffix.
func activeKey(vg, lv string) string { return plainUUID(vg) + plainUUID(lv) }
