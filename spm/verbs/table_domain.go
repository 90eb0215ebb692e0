package verbs

import (
	"context"

	"github.com/google/uuid"

	"tidemark/spm"
)

// transition are the numbers of the verbs that change a domain's state.
var transition = map[spm.Code]int{spm.CodeWrongState: 381, spm.CodeDamaged: 753, spm.CodeNotFound: 453}

var connectionArgs = argsOf(
	Arg{Name: "domType", Kind: kindDomainType, Doc: "what lies there"}, Arg{Name: "spUUID", Kind: kindIgnored, Doc: "of VDSM"},
	Arg{Name: "conList", Kind: kindConnections, Doc: "what to connect"}, argOptions)

// connectionNumbers are those of what one connection may fail with.
var connectionNumbers = map[spm.Code]int{spm.CodeNotFound: 453}

var connectionReply = []Member{{"statuslist", "array of {id, status}: the UUID of each connection, and 0 or the code of its error; message says why, or that it was so before"}}

var domainVerbs = []Verb{
	{
		Name: "connectStorageServer", VDSM: true,
		Doc: "Make storage known to the host, beneath its roots or of its devices. Domains that lie there are found. " +
			"The verb succeeds if a connection does not: each has its own status.",
		Methods: []Method{{"StoragePool.connectStorageServer", "storagepoolID domainType connectionParams", "statuslist"}},
		Args:    connectionArgs, Reply: connectionReply,
		Codes: []spm.Code{spm.CodeOutsideRoots, spm.CodeNotFound, spm.CodeUnsupported, spm.CodeForeign, spm.CodeActive},
		As:    connectionNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			r, err := s.ConnectServer(ctx, get[spm.DomainType](a, "domType"), get[[]spm.Connection](a, "conList"))
			return connections(r, connectionNumbers), err
		},
	},
	{
		Name: "disconnectStorageServer", VDSM: true,
		Doc:     "Forget storage. Domains of it that a connected pool uses keep it.",
		Methods: []Method{{"StoragePool.disconnectStorageServer", "storagepoolID domainType connectionParams", "statuslist"}},
		Args:    connectionArgs, Reply: connectionReply,
		Codes: []spm.Code{spm.CodeActive, spm.CodeUnsupported},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			r, err := s.DisconnectServer(ctx, get[spm.DomainType](a, "domType"), get[[]spm.Connection](a, "conList"))
			return connections(r, nil), err
		},
	},
	{
		Name: "createStorageDomain", VDSM: true, Doc: "Make a domain of no pool in a connected, empty place.",
		Methods: []Method{{"StorageDomain.create", "storagedomainID domainType typeArgs name domainClass version blockSize maxHosts", ""}},
		Args: argsOf(
			Arg{Name: "storageType", Kind: kindDomainType, Doc: "where it lies"},
			Arg{Name: "sdUUID", Kind: kindNewUUID, Doc: "its UUID"},
			Arg{Name: "domainName", Kind: kindString, Doc: "its name"},
			Arg{Name: "typeSpecificArg", Kind: kindPlace, Doc: "where it lies"},
			Arg{Name: "domClass", Kind: kindClass, Doc: "what it is for"},
			Arg{Name: "domVersion", Kind: kindVersion, Optional: true, Doc: "its format"},
			argOptions,
			Arg{Name: "capacity", Kind: kindSize, Optional: true, Doc: "ours: what its volumes may be granted together, in a directory; 0: what its file system has"},
		),
		Codes: []spm.Code{spm.CodeExists, spm.CodeNotConnected, spm.CodeNotFound, spm.CodeOutsideRoots, spm.CodeForeign, spm.CodeDamaged, spm.CodeNewerVersion,
			spm.CodeInUse, spm.CodeDomainTooSmall, spm.CodeUnsupported},
		As: map[spm.Code]int{spm.CodeExists: 365, spm.CodeNotConnected: 360, spm.CodeNotFound: 453, spm.CodeDamaged: 753},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.CreateDomain(ctx, spm.CreateDomain{
				Type: get[spm.DomainType](a, "storageType"), ID: get[uuid.UUID](a, "sdUUID"), Name: get[string](a, "domainName"),
				Where: get[string](a, "typeSpecificArg"), Capacity: get[int64](a, "capacity"), Version: get[int](a, "domVersion"),
			}))
		},
	},
	{
		Name: "formatStorageDomain", VDSM: true, Doc: "Remove a domain of no pool, with everything in it.",
		Methods: []Method{{"StorageDomain.format", "storagedomainID autoDetach", ""}},
		Args:    argsOf(argDomain, Arg{Name: "autoDetach", Kind: kindBool, Optional: true, Doc: "detach it from its pool first"}, argOptions),
		Codes:   with(memberCodes, spm.CodeAttached, spm.CodeIsMaster, spm.CodeActive),
		As:      map[spm.Code]int{spm.CodeAttached: 391, spm.CodeWrongState: 381, spm.CodeDamaged: 753, spm.CodeNotFound: 453},
		call:    formatDomain,
	},
	{
		Name: "attachStorageDomain", VDSM: true, Doc: "Make a domain of no pool one of this pool.",
		Methods: []Method{{"StorageDomain.attach", "storagedomainID storagepoolID", ""}},
		Args:    argsOf(argDomain, argPool, argOptions),
		Codes:   with(memberCodes, spm.CodeAttached), As: transition,
		call: member(spm.Storage.AttachDomain),
	},
	{
		Name: "activateStorageDomain", VDSM: true, Doc: "Bring an attached domain into use.",
		Methods: []Method{{"StorageDomain.activate", "storagedomainID storagepoolID", ""}},
		Args:    argsOf(argDomain, argPool, argOptions), Codes: with(memberCodes, spm.CodeNotInPool), As: transition,
		call: member(spm.Storage.ActivateDomain),
	},
	{
		Name: "deactivateStorageDomain", VDSM: true,
		Doc:     "Take a domain out of use. If it is the master, that role moves to another domain of the pool first. Of a domain that has vanished its pool's metadata say so, and of the master that has vanished the new one's.",
		Methods: []Method{{"StorageDomain.deactivate", "storagedomainID storagepoolID masterSdUUID masterVersion", ""}},
		Args: argsOf(argDomain, argPool,
			Arg{Name: "msdUUID", Kind: kindUUID, Doc: "the new master, if the domain is the master; else blank"},
			Arg{Name: "masterVersion", Kind: kindInt, Doc: "the version of the new master"}, argOptions),
		Codes: with(memberCodes, spm.CodeNotInPool, spm.CodeIsMaster, spm.CodeWrongVersion, spm.CodeUnfinished),
		As:    map[spm.Code]int{spm.CodeWrongState: 381, spm.CodeDamaged: 753, spm.CodeNotFound: 453, spm.CodeIsMaster: 310, spm.CodeUnfinished: 406},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.DeactivateDomain(ctx, get[uuid.UUID](a, "spUUID"), get[uuid.UUID](a, "sdUUID"),
				get[uuid.UUID](a, "msdUUID"), get[int64](a, "masterVersion")))
		},
	},
	{
		Name: "detachStorageDomain", VDSM: true, Doc: "Make a domain that is not in use one of no pool, also one that has vanished.",
		Methods: []Method{{"StorageDomain.detach", "storagedomainID storagepoolID masterSdUUID masterVersion force", ""}},
		Args:    argsOf(argDomain, argPool, ignored("msdUUID"), ignored("masterVersion"), argOptions),
		Codes:   with(memberCodes, spm.CodeNotInPool, spm.CodeIsMaster, spm.CodeActive), As: transition,
		call: member(spm.Storage.DetachDomain),
	},
	{
		Name: "getStorageDomainInfo", VDSM: true, Doc: "What a domain's metadata says.",
		Methods: []Method{{"StorageDomain.getInfo", "storagedomainID", "info"}},
		Args:    argsOf(argDomain, argOptions),
		Reply: []Member{{"info", "object: uuid, type, class, name, role, pool (array of UUIDs), version, master_ver, lver, spm_id, " +
			"block_size, alignment, state (Unattached, Attached, Active; Unknown: in use, and nowhere that is connected); of a directory remotePath, of a volume group vguuid and vgName"}},
		Codes: domainCodes, As: map[spm.Code]int{spm.CodeDamaged: 753},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			i, err := s.DomainInfo(ctx, get[uuid.UUID](a, "sdUUID"))
			return Reply{"info": domainInfo(i)}, err
		},
	},
	{
		Name: "getStorageDomainStats", VDSM: true, Doc: "How a domain is used.",
		Methods: []Method{{"StorageDomain.getStats", "storagedomainID", "stats"}},
		Args:    argsOf(argDomain, argOptions),
		Reply:   []Member{{"stats", "object: disktotal, diskfree, mdasize, mdafree (bytes), mdavalid, mdathreshold; ours: " + statsDoc}},
		Codes:   domainCodes, As: map[spm.Code]int{spm.CodeDamaged: 753},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			d, err := s.DomainStats(ctx, get[uuid.UUID](a, "sdUUID"))
			return Reply{"stats": stats(d)}, err
		},
	},
	{
		Name: "getStorageDomainsList", VDSM: true, Doc: "The domains that the host has found, and what its pool lists beside them, or those of a pool.",
		Methods: []Method{{"Host.getStorageDomains", "storagepoolID domainClass storageType remotePath", "domlist"}},
		Args: argsOf(
			Arg{Name: "spUUID", Kind: kindUUID, Optional: true, Doc: "the pool; blank: all domains"},
			Arg{Name: "domainClass", Kind: kindClass, Optional: true, Doc: "only those of this class"},
			Arg{Name: "storageType", Kind: kindDomainType, Optional: true, Doc: "only those of this type"},
			Arg{Name: "remotePath", Kind: kindString, Optional: true, Doc: "only the one that lies there"}, argOptions),
		Reply: []Member{{"domlist", "array of UUIDs"}}, Codes: []spm.Code{spm.CodeNotConnected},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			infos, err := listDomains(ctx, s, a)
			ids := make([]string, len(infos))
			for i, d := range infos {
				ids[i] = d.ID.String()
			}
			return Reply{"domlist": ids}, err
		},
	},
	{
		Name: "getStorageDomainsDetails", Doc: "The domains that the host has found, and what its pool lists beside them, or those of a pool, with all that is known of them.",
		Args:  argsOf(Arg{Name: "spUUID", Kind: kindUUID, Optional: true, Doc: "the pool; blank: all domains"}),
		Reply: []Member{{"domains", "array of objects: info as in getStorageDomainInfo, and stats as in getStorageDomainStats, missing where they are not known"}},
		Codes: []spm.Code{spm.CodeNotConnected},
		call:  domainsDetails,
	},
}

// member is a verb about a domain of a pool.
func member(do func(spm.Storage, context.Context, uuid.UUID, uuid.UUID) error) call {
	return func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
		return nothing(do(s, ctx, get[uuid.UUID](a, "spUUID"), get[uuid.UUID](a, "sdUUID")))
	}
}

// formatDomain detaches the domain first where that is asked for.
func formatDomain(ctx context.Context, s spm.Storage, a args) (Reply, error) {
	domain := get[uuid.UUID](a, "sdUUID")
	if get[bool](a, "autoDetach") {
		i, err := s.DomainInfo(ctx, domain)
		if err == nil && i.Pool != uuid.Nil {
			err = s.DetachDomain(ctx, i.Pool, domain)
		}
		if err != nil {
			return nil, err
		}
	}
	return nothing(s.FormatDomain(ctx, domain))
}

// listDomains are the domains of a pool, or all, that pass the filters, in the order
// of their names.
func listDomains(ctx context.Context, s spm.Storage, a args) ([]spm.DomainInfo, error) {
	infos, err := domainsOf(ctx, s, get[uuid.UUID](a, "spUUID"))
	class, kind, where := get[string](a, "domainClass"), get[spm.DomainType](a, "storageType"), get[string](a, "remotePath")
	var out []spm.DomainInfo
	for _, i := range infos {
		if (class == "" || i.Class == class) && (kind == "" || i.Type == kind) && (where == "" || i.Where == where) {
			out = append(out, i)
		}
	}
	return out, err
}

// domainsOf are the domains of a pool, or with uuid.Nil all. One that cannot be
// read has its UUID and state only; one that has gone meanwhile is left out.
func domainsOf(ctx context.Context, s spm.Storage, pool uuid.UUID) ([]spm.DomainInfo, error) {
	states, err := s.Domains(ctx, pool)
	if err != nil {
		return nil, err
	}
	var infos []spm.DomainInfo
	for _, id := range sortedIDs(states) {
		i, err := s.DomainInfo(ctx, id)
		switch {
		case err == nil:
			infos = append(infos, i)
		case spm.CodeOf(err) != spm.CodeUnknownDomain || pool != uuid.Nil:
			infos = append(infos, spm.DomainInfo{ID: id, State: states[id], Pool: pool})
		}
	}
	return infos, nil
}

func domainsDetails(ctx context.Context, s spm.Storage, a args) (Reply, error) {
	infos, err := domainsOf(ctx, s, get[uuid.UUID](a, "spUUID"))
	list := make([]any, len(infos))
	for i, d := range infos {
		m := map[string]any{"info": domainInfo(d)}
		if st, err := s.DomainStats(ctx, d.ID); err == nil {
			m["stats"] = stats(st)
		}
		list[i] = m
	}
	return Reply{"domains": list}, err
}
