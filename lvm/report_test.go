package lvm

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

// reportOfTwo is what LVM 2.03.16 said of a group of two physical volumes, one
// of them missing, with a linear volume on both and a mirror that is being moved.
const reportOfTwo = `{"report": [
 {"pv": [{"pv_name":"/dev/loop9", "pv_uuid":"orphan"}]},
 {"vg": [{"vg_name":"tv", "vg_uuid":"uxpEC7-9Af9-2OKa-lLnb-V4lO-J5aD-QatZqV", "vg_seqno":"4", "vg_extent_size":"134217728",
   "vg_extent_count":"636", "vg_free_count":"631", "vg_mda_size":"135262208", "vg_mda_free":"67628544", "vg_tags":"x,y", "vg_partial":"1", "vg_exported":"0"}],
  "pv": [
   {"pv_name":"/dev/loop0", "pv_uuid":"rwCSAg", "pe_start":"135266304", "pv_pe_count":"318", "pv_mda_used_count":"1", "pv_allocatable":"1", "pv_missing":"0", "pv_duplicate":"0"},
   {"pv_name":"[unknown]", "pv_uuid":"RFTNIz", "pe_start":"135266304", "pv_pe_count":"318", "pv_mda_used_count":"0", "pv_allocatable":"1", "pv_missing":"1", "pv_duplicate":"0"}],
  "lv": [
   {"lv_name":"d0", "lv_uuid":"RrX3eK", "lv_size":"536870912", "lv_tags":"IU_x,PU_y", "lv_health_status":"partial"},
   {"lv_name":"m", "lv_uuid":"mmmm", "lv_size":"134217728", "lv_tags":"", "lv_health_status":""}],
  "pvseg": [
   {"pv_uuid":"RFTNIz", "pvseg_start":"0", "pvseg_size":"5", "lv_uuid":""},
   {"pv_uuid":"RFTNIz", "pvseg_start":"5", "pvseg_size":"2", "lv_uuid":"RrX3eK"},
   {"pv_uuid":"RFTNIz", "pvseg_start":"7", "pvseg_size":"311", "lv_uuid":""},
   {"pv_uuid":"rwCSAg", "pvseg_start":"102", "pvseg_size":"215", "lv_uuid":""},
   {"pv_uuid":"rwCSAg", "pvseg_start":"0", "pvseg_size":"100", "lv_uuid":""},
   {"pv_uuid":"rwCSAg", "pvseg_start":"100", "pvseg_size":"2", "lv_uuid":"RrX3eK"},
   {"pv_uuid":"rwCSAg", "pvseg_start":"317", "pvseg_size":"1", "lv_uuid":"mmmm"}],
  "seg": [
   {"lv_uuid":"RrX3eK", "segtype":"linear", "seg_start":"268435456", "seg_size":"268435456", "seg_pe_ranges":"[unknown]:5-6"},
   {"lv_uuid":"RrX3eK", "segtype":"linear", "seg_start":"0", "seg_size":"268435456", "seg_pe_ranges":"/dev/loop0:100-101"},
   {"lv_uuid":"mmmm", "segtype":"linear", "seg_start":"0", "seg_size":"134217728", "seg_pe_ranges":"pvmove0:0-0"},
   {"lv_uuid":"hidden", "segtype":"linear", "seg_start":"0", "seg_size":"134217728", "seg_pe_ranges":"/dev/loop0:1-1"}]}
]}`

func TestParseReport(t *testing.T) {
	v, err := parseReport([]byte(reportOfTwo), "tv")
	require.NoError(t, err)
	require.Equal(t, &VG{
		Name: "tv", UUID: "uxpEC7-9Af9-2OKa-lLnb-V4lO-J5aD-QatZqV", Seqno: 4, ExtentSize: 128 * mib, Extents: 636, Free: 631,
		Tags: []string{"x", "y"}, Partial: true, MDASize: 135262208, MDAFree: 67628544, Segments: 3,
		PVs: []PV{
			{UUID: "rwCSAg", Device: "/dev/loop0", Start: 135266304, Extents: 318, Free: []Range{{0, 100}, {102, 215}}, HoldsMetadata: true, Allocatable: true},
			{UUID: "RFTNIz", Device: "[unknown]", Start: 135266304, Extents: 318, Free: []Range{{0, 5}, {7, 311}}, Allocatable: true, Missing: true},
		},
		LVs: []LV{
			{Name: "d0", UUID: "RrX3eK", Size: 512 * mib, Tags: []string{"IU_x", "PU_y"}, Partial: true, Segments: []Segment{
				{Type: "linear", Size: 256 * mib, PV: "rwCSAg", First: 100, Count: 2},
				{Type: "linear", Start: 256 * mib, Size: 256 * mib},
			}},
			{Name: "m", UUID: "mmmm", Size: 128 * mib, Segments: []Segment{{Type: "linear", Size: 128 * mib}}},
		},
	}, v)
	for _, name := range []string{"d0", "m"} {
		_, err = v.Map(name)
		require.ErrorIs(t, err, ErrUnusable, name)
	}
	_, err = v.Map("nope")
	require.ErrorIs(t, err, ErrNotFound)
	m := v.Metadata()
	require.EqualValues(t, (135262208-512)/2, m.Limit)
	require.EqualValues(t, 2304, m.Used)
	require.EqualValues(t, 3, m.Segments)
	require.Greater(t, m.SegmentsLimit, int64(400_000))
}

func TestParseReportMistakes(t *testing.T) {
	_, err := parseReport([]byte(reportOfTwo), "other")
	require.ErrorIs(t, err, ErrNotFound)
	require.ErrorContains(t, err, "tv")
	_, err = parseReport([]byte(`{"report":[]}`), "tv")
	require.ErrorIs(t, err, ErrNotFound)
	for _, c := range []struct{ from, to, want string }{
		{`"vg_seqno":"4"`, `"vg_seqno":"four"`, "vg_seqno"},
		{`"vg_extent_size":"134217728"`, `"vg_extent_size":"0"`, "vg_extent_size"},
		{`"pvseg_start":"317"`, `"pvseg_start":"-1"`, "pvseg_start"},
		{`"lv_uuid":"mmmm", "lv_size"`, `"lv_uuid":"", "lv_size"`, "lv_uuid"},
		{`"report": [`, `"report": [,`, "report of lvm"},
	} {
		_, err = parseReport([]byte(strings.Replace(reportOfTwo, c.from, c.to, 1)), "tv")
		require.ErrorContains(t, err, c.want)
	}
}

func FuzzParseReport(f *testing.F) {
	f.Add([]byte(reportOfTwo))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if v, err := parseReport(b, "tv"); err == nil {
			for _, l := range v.LVs {
				_, _ = v.Map(l.Name)
			}
			v.Metadata()
		}
	})
}

func TestActiveVolumes(t *testing.T) {
	const vg, lv = "uxpEC7-9Af9-2OKa-lLnb-V4lO-J5aD-QatZqV", "RrX3eK-LPqo-J4rN-WOKf-DdUg-LZVO-7rbjdw"
	sys := fstest.MapFS{
		"block/dm-0/dm/uuid": {Data: []byte("LVM-uxpEC79Af92OKalLnbV4lOJ5aDQatZqVRrX3eKLPqoJ4rNWOKfDdUgLZVO7rbjdw\n")},
		"block/dm-1/dm/uuid": {Data: []byte("CRYPT-LUKS2-abc\n")},
		"block/sda/size":     {Data: []byte("1\n")},
	}
	active, err := activeVolumes(sys)
	require.NoError(t, err)
	require.Equal(t, map[string]string{activeKey(vg, lv): "dm-0"}, active)
	_, err = OpenSegments(Map{VG: vg, LV: lv}, SegmentOptions{Name: "v", Sys: sys})
	require.ErrorContains(t, err, "/dev/dm-0")
}

func TestLabelUUID(t *testing.T) {
	head := make([]byte, labelArea)
	_, err := labelUUID(head)
	require.Error(t, err)
	s := head[512:]
	copy(s, "LABELONE")
	s[8], s[20] = 1, 32
	copy(s[24:], "LVM2 001rwCSAgplMjgzOWCoMiZvBySDm1Ci70DU12")
	id, err := labelUUID(head)
	require.NoError(t, err)
	require.Equal(t, "rwCSAgplMjgzOWCoMiZvBySDm1Ci70DU", id)
	s[8] = 2
	_, err = labelUUID(head)
	require.Error(t, err, "a label that was copied to another sector")
}
