package spm

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

var (
	testDomain = uuid.MustParse("11111111-2222-4333-8444-555555555555")
	testPool   = uuid.MustParse("66666666-7777-4888-9999-000000000000")
	testImage  = uuid.MustParse("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee")
)

// The seal was computed with Python's hashlib, as VDSM does it: SHA-1 of the
// lines in the order of their keys, without line ends.
const goldenDomain = `ALIGNMENT=1048576
BLOCK_SIZE=512
CLASS=Data
DESCRIPTION=tidemark
IOOPTIMEOUTSEC=10
LEASERETRIES=3
LEASETIMESEC=60
LOCKPOLICY=
LOCKRENEWALINTERVALSEC=5
MASTER_VERSION=1
POOL_DESCRIPTION=tidemark
POOL_DOMAINS=11111111-2222-4333-8444-555555555555:Active
POOL_SPM_ID=1
POOL_SPM_LVER=0
POOL_UUID=66666666-7777-4888-9999-000000000000
REMOTE_PATH=/srv/pool
ROLE=Master
SDUUID=11111111-2222-4333-8444-555555555555
TIDEMARK_CAPACITY=2147483648
TYPE=LOCALFS
VERSION=5
_SHA_CKSUM=165e05fbd910ef0ead9fc71410c7f354e2d699ba
`

func TestDomainMetaGolden(t *testing.T) {
	m := newDirMeta(2 << 30)
	require.Equal(t, goldenDomain, string(m.encode()))
	back, err := parseDomainMeta(m.encode())
	require.NoError(t, err)
	require.Equal(t, m, back)
	s, err := back.state(typeDir)
	require.NoError(t, err)
	require.Equal(t, domainState{domain: testDomain, pool: testPool, capacity: 2 << 30, name: "tidemark", master: true, version: 1}, s)
	p, err := back.pool()
	require.NoError(t, err)
	require.Equal(t, testPoolMeta(), p)
}

// A description that is not ASCII is sealed as XML character references.
func TestDomainMetaSealOfUnicode(t *testing.T) {
	require.Equal(t, "d9034c690f9b70b75dfdc05feb0cf8836980785a", domainMeta{keyDescription: "Größe 磁"}.checksum())
}

func TestDomainMetaRefused(t *testing.T) {
	good := newDirMeta(1)
	seal := func(change func(domainMeta)) string {
		m, err := parseDomainMeta(good.encode())
		require.NoError(t, err)
		change(m)
		return string(m.encode())
	}
	for name, c := range map[string]struct{ text, says string }{
		"damaged":         {strings.Replace(string(good.encode()), "=3", "=4", 1), "damaged"},
		"truncated":       {string(good.encode()[:100]), "truncated"},
		"empty":           {"", "truncated"},
		"not text":        {"\xff\xfe", "UTF-8"},
		"newer version":   {seal(func(m domainMeta) { m[keyVersion] = "6" }), "newer than 5"},
		"older version":   {seal(func(m domainMeta) { m[keyVersion] = "4" }), "upgrade"},
		"another type":    {seal(func(m domainMeta) { m[keyType] = "NFS" }), "LOCALFS"},
		"no UUID":         {seal(func(m domainMeta) { m[keySDUUID] = "x" }), keySDUUID},
		"two pools":       {seal(func(m domainMeta) { m[keyPoolUUID] += "," + m[keyPoolUUID] }), keyPoolUUID},
		"negative number": {seal(func(m domainMeta) { m[keyCapacity] = "-1" }), keyCapacity},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := parseDomainMeta([]byte(c.text))
			if err == nil {
				_, err = m.state(typeDir)
			}
			require.ErrorContains(t, err, c.says)
		})
	}
}

const goldenVolume = `CAP=10737418240
CTIME=1700000000
DESCRIPTION={"DiskAlias":"web<1>","DiskDescription":""}
DISKTYPE=DATA
DOMAIN=11111111-2222-4333-8444-555555555555
FORMAT=COW
GEN=0
IMAGE=aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee
LEGALITY=LEGAL
PUUID=00000000-0000-0000-0000-000000000000
SEQ=1
TYPE=SPARSE
VOLTYPE=LEAF
EOF
`

func TestVolumeMetaGolden(t *testing.T) {
	m, err := newVolumeMeta(testDomain, testImage, "web<1>", FormatQCOW2, 10<<30, time.Unix(1700000000, 0))
	require.NoError(t, err)
	b, err := m.encode()
	require.NoError(t, err)
	require.Equal(t, goldenVolume, string(b))
	back, err := parseVolumeMeta(b)
	require.NoError(t, err)
	require.Equal(t, m, back)
	require.Equal(t, "web<1>", back.alias())
}

func TestVolumeMetaLimits(t *testing.T) {
	_, err := newVolumeMeta(testDomain, testImage, strings.Repeat("n", 200), FormatRaw, 1, time.Now())
	require.ErrorContains(t, err, "shorter")
	long, err := newVolumeMeta(testDomain, testImage, strings.Repeat("n", 150), FormatRaw, sizeMax, time.Now())
	require.NoError(t, err)
	_, err = long.encode()
	require.NoError(t, err, "what the description allows must fit in a sector")
}

func TestVolumeMetaRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, says string }{
		"truncated":   {strings.TrimSuffix(goldenVolume, "EOF\n"), "EOF"},
		"missing key": {strings.Replace(goldenVolume, "VOLTYPE=LEAF\n", "", 1), "VOLTYPE"},
		"bad number":  {strings.Replace(goldenVolume, "CAP=1", "CAP=x", 1), "CAP"},
		"bad UUID":    {strings.Replace(goldenVolume, "IMAGE=a", "IMAGE=z", 1), "IMAGE"},
		"bad format":  {strings.Replace(goldenVolume, "=COW", "=VMDK", 1), "FORMAT"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseVolumeMeta([]byte(c.text))
			require.ErrorContains(t, err, c.says)
		})
	}
	old := strings.Replace(strings.Replace(goldenVolume, "GEN=0\n", "", 1), "SEQ=1\n", "", 1)
	_, err := parseVolumeMeta([]byte(old))
	require.NoError(t, err, "GEN and SEQ are younger than the format")
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"web1", "Größe", "a b", "1", "x.qcow2", "名前"} {
		require.NoError(t, checkName(good), good)
	}
	for _, bad := range []string{
		"", "a/b", "a\nb", " a", "a ", "-o", ".", "..", "\xff", "\ufffd", testImage.String(),
		"a\u009b31m", "a\u202eb", "\u200b", "a\u00a0b", // a terminal command, text backwards, nothing, not a space
	} {
		require.Error(t, checkName(bad), "%q", bad)
	}
}

func FuzzParseDomainMeta(f *testing.F) {
	f.Add([]byte(goldenDomain))
	f.Add([]byte("A=1\r\n=\n_SHA_CKSUM=0\n\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseDomainMeta(b)
		if err != nil {
			return
		}
		m.state(typeDir) //nolint:errcheck // must not panic
		again, err := parseDomainMeta(m.encode())
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}

func FuzzParseVolumeMeta(f *testing.F) {
	f.Add([]byte(goldenVolume))
	f.Add([]byte("CAP=\nEOF"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseVolumeMeta(b)
		if err != nil {
			return
		}
		m.alias()
		out, err := m.encode()
		if err != nil {
			return // too long for a sector
		}
		again, err := parseVolumeMeta(out)
		require.NoError(t, err)
		require.Equal(t, m, again)
	})
}

// newDirMeta is the metadata of a pool in a directory.
func newDirMeta(capacity int64) domainMeta {
	m := newDomainMeta(testDomain, "tidemark", capacity)
	m[keyType], m[keyRemotePath] = typeDir, "/srv/pool"
	m.lead(testPoolMeta())
	return m
}

// testPoolMeta is the pool in it.
func testPoolMeta() poolMeta {
	return poolMeta{id: testPool, name: "tidemark", master: testDomain, version: 1, host: localHostID,
		members: map[uuid.UUID]DomainState{testDomain: DomainActive}}
}

// What is too long is cut, in whole characters; of the engine's JSON only what is not the
// name, where that is enough.
func TestDescriptionsAreCut(t *testing.T) {
	ae := func(n int) string { return strings.Repeat("ä", n) }
	for text, want := range map[string]string{
		"":                         "",
		strings.Repeat("a", 210):   strings.Repeat("a", 210),
		strings.Repeat("a", 1<<20): strings.Repeat("a", 210),
		"a" + ae(200):              "a" + ae(104),
		`{"DiskAlias":"web","DiskDescription":"` + ae(1<<20) + `"}`: `{"DiskAlias":"web","DiskDescription":"` + ae(85) + `"}`,
		`{"DiskAlias":"` + ae(300) + `"}`:                           `{"DiskAlias":"` + ae(98),
	} {
		got := fittingDescription(text)
		require.Equal(t, want, got)
		require.LessOrEqual(t, len(got), descriptionMaxSize)
		require.True(t, utf8.ValidString(got))
	}
}
