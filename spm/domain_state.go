package spm

import (
	"fmt"

	"github.com/google/uuid"
)

// A standing is where a domain stands, seen from a pool.
type standing uint8

const (
	standsAlone     standing = iota // of no pool
	standsClaiming                  // claims the pool, and its master does not list it: of none
	standsElsewhere                 // claims another pool
	standsAttached                  // of the pool, and not in use
	standsActive                    // in use
	standsMaster                    // in use, and the master
	standings
)

func (s standing) String() string {
	return [standings]string{"alone", "claiming", "elsewhere", "attached", "active", "master"}[s]
}

// A domainVerb is what can be done with a domain and a pool.
type domainVerb uint8

const (
	verbFormat domainVerb = iota
	verbJoin              // become a domain of a new pool
	verbAttach
	verbActivate
	verbDeactivate
	verbDetach
	domainVerbs
)

func (v domainVerb) String() string {
	return [domainVerbs]string{"format", "join", "attach", "activate", "deactivate", "detach"}[v]
}

// act says what becomes of a request.
type act uint8

const (
	unthought act = iota // a hole in a table: a mistake of ours
	proceed              // do it
	already              // it is so already
	refused              // by the code, and what to do first
)

// A ruling is a cell of a table.
type ruling struct {
	act  act
	code Code
	why  string // of a refusal: what it is, and what to do
}

func (r ruling) String() string {
	switch r.act {
	case proceed:
		return "done"
	case already:
		return "nothing to do"
	case refused:
		return fmt.Sprintf("%d", r.code)
	}
	return ""
}

// refusal is the error of a refused request about something that has a name.
func (r ruling) refusal(what string) error {
	return errorf(r.code, "%s %s", what, r.why)
}

var (
	domainDone    = ruling{act: proceed}
	domainIsSo    = ruling{act: already}
	domainIsNone  = ruling{refused, CodeNotInPool, "is of no pool: attach it first"}
	domainIsOther = ruling{refused, CodeNotInPool, "is of another pool: name that one, or detach the domain from it first"}
	domainIsOf    = ruling{refused, CodeAttached, "is of a pool: detach it first"}
	domainInUse   = ruling{refused, CodeActive, "is active: deactivate it first"}
	domainMaster  = ruling{refused, CodeIsMaster, "is the master of its pool: deactivate it first, which moves that role, or destroy the pool"}
)

// domainTable says for each standing what becomes of each verb.
var domainTable = [standings][domainVerbs]ruling{
	standsAlone: {
		verbFormat: domainDone, verbJoin: domainDone, verbAttach: domainDone,
		verbActivate: domainIsNone, verbDeactivate: domainIsNone, verbDetach: domainIsNone,
	},
	standsClaiming: {
		verbFormat: domainIsOf, verbJoin: domainDone, verbAttach: domainDone,
		verbActivate: domainIsNone, verbDeactivate: domainIsNone, verbDetach: domainDone,
	},
	standsElsewhere: {
		verbFormat: domainIsOf, verbJoin: domainIsOf, verbAttach: domainIsOf,
		verbActivate: domainIsOther, verbDeactivate: domainIsOther, verbDetach: domainIsOther,
	},
	standsAttached: {
		verbFormat: domainIsOf, verbJoin: domainIsOf, verbAttach: domainIsSo,
		verbActivate: domainDone, verbDeactivate: domainIsSo, verbDetach: domainDone,
	},
	standsActive: {
		verbFormat: domainIsOf, verbJoin: domainIsOf, verbAttach: domainIsSo,
		verbActivate: domainIsSo, verbDeactivate: domainDone, verbDetach: domainInUse,
	},
	standsMaster: {
		verbFormat: domainIsOf, verbJoin: domainIsOf, verbAttach: domainIsSo,
		verbActivate: domainIsSo, verbDeactivate: domainDone, verbDetach: domainMaster,
	},
}

// standingOf says where a domain that claims a pool, or uuid.Nil, stands, seen from
// the pool that is asked about. listed is what that pool's master says of it, "" if
// nothing or if the master is not known.
func standingOf(claims, pool uuid.UUID, listed DomainState, master bool) standing {
	switch {
	case claims == uuid.Nil:
		return standsAlone
	case claims != pool:
		return standsElsewhere
	case master:
		return standsMaster
	case listed == DomainActive:
		return standsActive
	case listed == DomainAttached:
		return standsAttached
	}
	return standsClaiming
}

// state is the standing in VDSM's words.
func (s standing) state() DomainState {
	switch s {
	case standsAttached:
		return DomainAttached
	case standsActive, standsMaster:
		return DomainActive
	}
	return DomainUnattached
}

// A role is what this host is to a pool.
type role uint8

const (
	roleStranger role = iota // not connected
	roleFree                 // connected; others may manage the pool
	roleContend              // about to manage it, or to stop that
	roleSPM                  // manages it
	roles
)

func (r role) String() string { return [roles]string{"stranger", "Free", "Contend", "SPM"}[r] }

// A poolVerb is what can be done with a pool.
type poolVerb uint8

const (
	verbConnect poolVerb = iota
	verbDisconnect
	verbStart
	verbStop
	verbChange // attach, detach, activate and deactivate domains
	verbDestroy
	verbUse // volumes, images and tasks
	verbAsk // what it is
	poolVerbs
)

func (v poolVerb) String() string {
	return [poolVerbs]string{"connect", "disconnect", "start", "stop", "change", "destroy", "use", "ask"}[v]
}

var (
	roleDone       = ruling{act: proceed}
	roleIsSo       = ruling{act: already}
	roleNone       = ruling{refused, CodeNotConnected, "is not connected: connect it first"}
	roleNotManaged = ruling{refused, CodeNotSPM, "is not managed by this host: start the SPM first"}
	roleManages    = ruling{refused, CodeActive, "is managed by this host: stop the SPM first"}
	roleBetween    = ruling{refused, CodeWrongState, "is about to be managed, or not any more: wait for that"}
)

// roleTable says for each role what becomes of each verb.
var roleTable = [roles][poolVerbs]ruling{
	roleStranger: {
		verbConnect: roleDone, verbDisconnect: roleIsSo, verbStart: roleNone, verbStop: roleNone,
		verbChange: roleNone, verbDestroy: roleNone, verbUse: roleNone, verbAsk: roleNone,
	},
	roleFree: {
		verbConnect: roleIsSo, verbDisconnect: roleDone, verbStart: roleDone, verbStop: roleIsSo,
		verbChange: roleNotManaged, verbDestroy: roleDone, verbUse: roleNotManaged, verbAsk: roleDone,
	},
	roleContend: {
		verbConnect: roleIsSo, verbDisconnect: roleBetween, verbStart: roleIsSo, verbStop: roleBetween,
		verbChange: roleBetween, verbDestroy: roleBetween, verbUse: roleBetween, verbAsk: roleDone,
	},
	roleSPM: {
		verbConnect: roleIsSo, verbDisconnect: roleManages, verbStart: roleIsSo, verbStop: roleDone,
		verbChange: roleDone, verbDestroy: roleDone, verbUse: roleDone, verbAsk: roleDone,
	},
}
