package spm

import (
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/google/uuid"
)

// The keys of a file domain's metadata. All but the last are VDSM's.
const (
	keyAlignment      = "ALIGNMENT"
	keyBlockSize      = "BLOCK_SIZE"
	keyClass          = "CLASS"
	keyDescription    = "DESCRIPTION"
	keyIOTimeout      = "IOOPTIMEOUTSEC"
	keyLeaseRetries   = "LEASERETRIES"
	keyLeaseTime      = "LEASETIMESEC"
	keyLockPolicy     = "LOCKPOLICY"
	keyLockRenewal    = "LOCKRENEWALINTERVALSEC"
	keyMasterVersion  = "MASTER_VERSION"
	keyPoolDesc       = "POOL_DESCRIPTION"
	keyPoolDomains    = "POOL_DOMAINS"
	keyPoolSPMID      = "POOL_SPM_ID"
	keyPoolSPMLver    = "POOL_SPM_LVER"
	keyPoolUUID       = "POOL_UUID"
	keyRemotePath     = "REMOTE_PATH"
	keyRole           = "ROLE"
	keySDUUID         = "SDUUID"
	keyType           = "TYPE"
	keyVersion        = "VERSION"
	keyVGUUID         = "VGUUID"
	keyChecksum       = "_SHA_CKSUM"
	keyCapacity       = "TIDEMARK_CAPACITY"
	domainVersion     = 5
	domainMetaMaxSize = 64 << 10 // of one domain; the keys that are known take less than 1 KiB
)

// domainMeta is the metadata of a domain: every key, known or not, so that what
// others wrote survives.
type domainMeta map[string]string

// VDSM's types of a domain in a directory of this host, and on block devices
// that the host has.
const (
	typeDir   = "LOCALFS"
	typeGroup = "FCP"
)

// Roles of a domain in its pool.
const (
	roleMaster  = "Master"
	roleRegular = "Regular"
)

// newDomainMeta is the metadata of a fresh domain of no pool, but for what its
// store adds: the type, and where it is.
func newDomainMeta(domain uuid.UUID, name string, capacity int64) domainMeta {
	return domainMeta{
		keyAlignment:    "1048576",
		keyBlockSize:    "512",
		keyClass:        "Data",
		keyDescription:  name,
		keyIOTimeout:    "10",
		keyLeaseRetries: "3",
		keyLeaseTime:    "60",
		keyLockPolicy:   "",
		keyLockRenewal:  "5",
		keyPoolUUID:     "",
		keyRole:         roleRegular,
		keySDUUID:       domain.String(),
		keyVersion:      strconv.Itoa(domainVersion),
		keyCapacity:     strconv.FormatInt(capacity, 10),
	}
}

// encode writes the lines in the order of their keys and seals them: the last
// line is the SHA-1 of the others without their line ends.
func (m domainMeta) encode() []byte {
	var out strings.Builder
	for _, line := range m.lines() {
		out.WriteString(line)
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "%s=%s\n", keyChecksum, m.checksum())
	return []byte(out.String())
}

func (m domainMeta) lines() []string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+m[k])
	}
	return lines
}

// checksum hashes what is not ASCII as XML character references, as VDSM does.
func (m domainMeta) checksum() string {
	h := sha1.New()
	for _, line := range m.lines() {
		for _, r := range line {
			if r < utf8.RuneSelf {
				h.Write([]byte{byte(r)})
			} else {
				fmt.Fprintf(h, "&#%d;", r)
			}
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// parseDomainMeta reads metadata and checks its seal. A line without = is
// skipped, as VDSM does.
func parseDomainMeta(b []byte) (domainMeta, error) {
	switch {
	case len(b) > domainMetaMaxSize:
		return nil, fmt.Errorf("%d bytes of domain metadata, expected at most %d", len(b), domainMetaMaxSize)
	case !utf8.Valid(b):
		return nil, errors.New("domain metadata is not UTF-8")
	}
	m := domainMeta{}
	for line := range strings.Lines(strings.TrimRight(string(b), "\x00")) {
		if k, v, ok := strings.Cut(strings.TrimRight(line, "\r\n"), "="); ok {
			m[strings.TrimSpace(k)] = v
		}
	}
	sealed, ok := m[keyChecksum]
	delete(m, keyChecksum)
	if !ok {
		return nil, fmt.Errorf("domain metadata has no %s: it is not a domain's, or truncated", keyChecksum)
	}
	if sum := m.checksum(); sum != sealed {
		return nil, fmt.Errorf("domain metadata is damaged: %s is %s, its lines give %s", keyChecksum, sealed, sum)
	}
	return m, nil
}

// domainState is what the manager needs of the metadata. The pool's keys are those
// of a master.
type domainState struct {
	domain   uuid.UUID
	pool     uuid.UUID // that it claims; uuid.Nil: none
	epoch    int64     // of the pool
	capacity int64
	name     string
	master   bool
	version  int64 // of the master
}

// state validates the metadata of a domain that this package can manage.
func (m domainMeta) state(kind string) (s domainState, err error) {
	version, err := m.number(keyVersion, 0)
	switch {
	case err != nil:
		return s, errorf(CodeDamaged, "%v", err)
	case version > domainVersion:
		return s, errorf(CodeNewerVersion, "domain has version %d, newer than %d, the newest that this program knows: use a newer one", version, domainVersion)
	case version < domainVersion:
		return s, errorf(CodeUnsupported, "domain has version %d, expected %d: upgrade it with the program that made it", version, domainVersion)
	case m[keyType] != kind || m[keyClass] != "Data":
		return s, errorf(CodeForeign, "domain is of type %q and class %q, expected %s and Data", m[keyType], m[keyClass], kind)
	}
	if s, err = m.identity(); err != nil {
		return s, errorf(CodeDamaged, "%v", err)
	}
	return s, nil
}

// identity reads the keys that say which domain it is, and of which pool.
func (m domainMeta) identity() (s domainState, err error) {
	s.name, s.master = m[keyDescription], m[keyRole] == roleMaster
	if s.domain, err = uuid.Parse(m[keySDUUID]); err != nil {
		return s, fmt.Errorf("%s=%q: %w", keySDUUID, m[keySDUUID], err)
	}
	if p := m[keyPoolUUID]; p != "" {
		if s.pool, err = uuid.Parse(p); err != nil {
			return s, fmt.Errorf("%s=%q: expected the UUID of one pool: %w", keyPoolUUID, p, err)
		}
	}
	if s.version, err = m.number(keyMasterVersion, 0); err != nil {
		return s, err
	}
	if s.epoch, err = m.number(keyPoolSPMLver, 0); err != nil {
		return s, err
	}
	s.capacity, err = m.number(keyCapacity, 0)
	return s, err
}

// number reads a key that is a count; it may be absent.
func (m domainMeta) number(key string, absent int64) (int64, error) {
	v, ok := m[key]
	if !ok {
		return absent, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%s=%q: expected a number that is not negative", key, v)
	}
	return n, nil
}
