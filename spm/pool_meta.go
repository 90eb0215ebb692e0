package spm

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// poolDomainsMax is how many domains a pool may have: they are listed in one tag of
// a volume group, which has 1,024 characters at most, and each takes 49 of them.
const poolDomainsMax = 20

// noHost is POOL_SPM_ID while nobody has the role.
const noHost = -1

// poolMeta is what the master's metadata say of the pool.
type poolMeta struct {
	id      uuid.UUID
	name    string
	master  uuid.UUID
	version int64
	members map[uuid.UUID]DomainState // Attached or Active
	host    int                       // that has the SPM role, or had it when it died; noHost: none
	epoch   int64
}

// pool reads the pool's keys of a master's metadata.
func (m domainMeta) pool() (p poolMeta, err error) {
	s, err := m.identity()
	if err != nil {
		return p, errorf(CodeDamaged, "%v", err)
	}
	p = poolMeta{id: s.pool, name: m[keyPoolDesc], master: s.domain, version: s.version, epoch: s.epoch}
	if p.host, err = strconv.Atoi(cmp.Or(m[keyPoolSPMID], strconv.Itoa(noHost))); err != nil {
		return p, errorf(CodeDamaged, "%s=%q: expected the number of a host", keyPoolSPMID, m[keyPoolSPMID])
	}
	if p.members, err = parseMembers(m[keyPoolDomains]); err != nil {
		return p, errorf(CodeDamaged, "%s: %v", keyPoolDomains, err)
	}
	return p, nil
}

func parseMembers(text string) (map[uuid.UUID]DomainState, error) {
	all := map[uuid.UUID]DomainState{}
	if text == "" {
		return all, nil
	}
	for member := range strings.SplitSeq(text, ",") {
		id, state, _ := strings.Cut(member, ":")
		d, err := uuid.Parse(id)
		if err != nil {
			return nil, fmt.Errorf("%q: expected UUID:Active or UUID:Attached: %w", member, err)
		}
		switch s := DomainState(state); s {
		case DomainActive, DomainAttached:
			all[d] = s
		default:
			return nil, fmt.Errorf("%q: expected UUID:Active or UUID:Attached", member)
		}
	}
	return all, nil
}

// formatMembers writes the master first, as it is read by people.
func (p poolMeta) formatMembers() string {
	order := slices.SortedFunc(maps.Keys(p.members), func(a, b uuid.UUID) int {
		if (a == p.master) != (b == p.master) {
			if a == p.master {
				return -1
			}
			return 1
		}
		return strings.Compare(a.String(), b.String())
	})
	all := make([]string, len(order))
	for i, d := range order {
		all[i] = d.String() + ":" + string(p.members[d])
	}
	return strings.Join(all, ",")
}

// clone copies what an edit may change.
func (p poolMeta) clone() poolMeta {
	p.members = maps.Clone(p.members)
	return p
}

// lead makes m the metadata of the pool's master.
func (m domainMeta) lead(p poolMeta) {
	m[keyRole] = roleMaster
	m[keyPoolUUID] = p.id.String()
	m[keyPoolDesc] = p.name
	m[keyMasterVersion] = strconv.FormatInt(p.version, 10)
	m[keyPoolDomains] = p.formatMembers()
	m[keyPoolSPMID] = strconv.Itoa(p.host)
	m[keyPoolSPMLver] = strconv.FormatInt(p.epoch, 10)
}

// follow makes m the metadata of a domain that claims a pool, or of none.
func (m domainMeta) follow(pool uuid.UUID) {
	for _, k := range []string{keyPoolDesc, keyMasterVersion, keyPoolDomains, keyPoolSPMID, keyPoolSPMLver} {
		delete(m, k)
	}
	m[keyRole] = roleRegular
	m[keyPoolUUID] = ""
	if pool != uuid.Nil {
		m[keyPoolUUID] = pool.String()
	}
}

// nameMax is how long the name of a domain or pool may be, in bytes; encoded it has
// to fit in a tag of LVM.
const nameMax = 100

// checkLabel refuses the name of a domain or pool that would break a line.
func checkLabel(name string) error {
	switch {
	case len(name) > nameMax:
		return fmt.Errorf("name %q has %d bytes, expected at most %d", name, len(name), nameMax)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }):
		return fmt.Errorf("name %+q contains a character that cannot be seen", name)
	}
	return nil
}
