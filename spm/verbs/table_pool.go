package verbs

import (
	"context"

	"github.com/google/uuid"

	"tidemark/spm"
)

var (
	argHost    = Arg{Name: "hostID", Kind: kindInt, Doc: "of VDSM: the host that asks; there is one"}
	argSCSIKey = Arg{Name: "scsiKey", Kind: kindIgnored, Doc: "of VDSM"}
	// masterNumbers are the numbers of the verbs that read what a pool's master says.
	masterNumbers = map[spm.Code]int{spm.CodeDamaged: 753}
)

const spmDoc = "object: spmStatus (Free, Contend or SPM), spmLver (the epoch), spmId (-1: nobody)"

var poolVerbs = []Verb{
	{
		Name: "createStoragePool", VDSM: true,
		Doc:     "Make a pool of domains of no pool. They are attached, and the master is the one that keeps the pool's metadata and tasks.",
		Methods: []Method{{"StoragePool.create", "storagepoolID name masterSdUUID masterVersion domainList lockRenewalIntervalSec leaseTimeSec ioOpTimeoutSec leaseRetries", ""}},
		Args: argsOf(
			ignored("poolType"),
			Arg{Name: "spUUID", Kind: kindNewUUID, Doc: "its UUID"},
			Arg{Name: "poolName", Kind: kindString, Doc: "its name"},
			Arg{Name: "masterDom", Kind: kindNewUUID, Doc: "the master domain"},
			Arg{Name: "domList", Kind: kindUUIDs, Doc: "its domains, the master among them"},
			Arg{Name: "masterVersion", Kind: kindInt, Doc: "the master's version, above 0"},
			ignored("lockPolicy"), ignored("lockRenewalIntervalSec"), ignored("leaseTimeSec"), ignored("ioOpTimeoutSec"), ignored("leaseRetries"), argOptions),
		Codes: with(editCodes, spm.CodeExists, spm.CodeAttached),
		As:    map[spm.Code]int{spm.CodeExists: 316, spm.CodeDamaged: 753, spm.CodeNotFound: 453},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.CreatePool(ctx, spm.CreatePool{
				ID: get[uuid.UUID](a, "spUUID"), Name: get[string](a, "poolName"), Master: get[uuid.UUID](a, "masterDom"),
				Domains: get[[]uuid.UUID](a, "domList"), MasterVersion: get[int64](a, "masterVersion"),
			}))
		},
	},
	{
		Name: "destroyStoragePool", VDSM: true, Doc: "Detach all domains of a connected pool, the master last, with or without being its SPM. No other domain than the master may be active. Their images stay.",
		Methods: []Method{{"StoragePool.destroy", "storagepoolID hostID scsiKey", ""}},
		Args:    argsOf(argPool, argHost, argSCSIKey, argOptions),
		Codes:   with(editCodes, spm.CodeNotConnected, spm.CodeWrongState, spm.CodeWrongMaster, spm.CodeActive, spm.CodeUnfinished),
		As:      map[spm.Code]int{spm.CodeActive: 325, spm.CodeUnfinished: 406, spm.CodeDamaged: 753, spm.CodeNotFound: 453},
		call:    ofPool(spm.Storage.DestroyPool),
	},
	{
		Name: "connectStoragePool", VDSM: true, Doc: "Make the host one of a pool's, whose master must be as the caller believes. Again changes nothing.",
		Methods: []Method{{"StoragePool.connect", "storagepoolID hostID scsiKey masterSdUUID masterVersion domainDict", ""}},
		Args: argsOf(argPool, argHost, argSCSIKey,
			Arg{Name: "msdUUID", Kind: kindUUID, Doc: "the master domain"},
			Arg{Name: "masterVersion", Kind: kindInt, Doc: "its version"}, ignored("domainsMap"), argOptions),
		Codes: []spm.Code{spm.CodeUnknownPool, spm.CodeWrongMaster, spm.CodeWrongVersion, spm.CodeOtherPool, spm.CodeDamaged},
		As:    masterNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.ConnectPool(ctx, get[uuid.UUID](a, "spUUID"), get[uuid.UUID](a, "msdUUID"), get[int64](a, "masterVersion")))
		},
	},
	{
		Name: "reconstructMaster", VDSM: true,
		Doc: "Make another domain the master of a pool whose master is lost, and say what its domains are. The lost one is not believed any more when it is back; " +
			"the tasks are lost with it. Of a pool that this host manages deactivateStorageDomain does more.",
		Methods: []Method{{"StoragePool.reconstructMaster", "storagepoolID hostId name masterSdUUID masterVersion domainDict=domDict lockRenewalIntervalSec leaseTimeSec ioOpTimeoutSec leaseRetries", ""}},
		Args: argsOf(argPool,
			Arg{Name: "poolName", Kind: kindString, Doc: "its name"},
			Arg{Name: "masterDom", Kind: kindNewUUID, Doc: "the new master"},
			Arg{Name: "domDict", Kind: kindStates, Doc: "its domains, the master among them; those that are not there become Attached"},
			Arg{Name: "masterVersion", Kind: kindInt, Doc: "the version of the new master, higher than that of the lost one"},
			ignored("lockPolicy"), ignored("lockRenewalIntervalSec"), ignored("leaseTimeSec"), ignored("ioOpTimeoutSec"), ignored("leaseRetries"), ignored("hostId"), argOptions),
		Codes: with(editCodes, spm.CodeNotInPool, spm.CodeAttached, spm.CodeWrongState, spm.CodeWrongVersion, spm.CodeActive),
		As:    map[spm.Code]int{spm.CodeActive: 325, spm.CodeDamaged: 753, spm.CodeNotFound: 453},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return nothing(s.ReconstructMaster(ctx, spm.ReconstructMaster{
				Pool: get[uuid.UUID](a, "spUUID"), Name: get[string](a, "poolName"), Master: get[uuid.UUID](a, "masterDom"),
				Domains: get[map[uuid.UUID]spm.DomainState](a, "domDict"), MasterVersion: get[int64](a, "masterVersion"),
			}))
		},
	},
	{
		Name: "disconnectStoragePool", VDSM: true, Doc: "Make the host none of the pool's. Again changes nothing.",
		Methods: []Method{{"StoragePool.disconnect", "storagepoolID hostID scsiKey remove", ""}},
		Args:    argsOf(argPool, argHost, argSCSIKey, ignored("remove"), argOptions),
		Codes:   []spm.Code{spm.CodeActive, spm.CodeWrongState},
		As:      map[spm.Code]int{spm.CodeActive: 656},
		call:    ofPool(spm.Storage.DisconnectPool),
	},
	{
		Name: "getStoragePoolInfo", VDSM: true, Doc: "A pool, and its domains.",
		Methods: []Method{{"StoragePool.getInfo", "storagepoolID", "*"}},
		Args:    argsOf(argPool, argOptions),
		Reply: []Member{
			{"info", "object: name, type, version, master_uuid, master_ver, lver, spm_id, pool_status, isoprefix, domains (as uuid:state, separated by commas)"},
			{"dominfo", "object of each domain by its UUID: status, alerts, isoprefix, version, and of an active one disktotal and diskfree (bytes)"},
		},
		Codes: poolCodes, As: masterNumbers,
		call: poolInfo,
	},
	{
		Name: "getConnectedStoragePoolsList", VDSM: true, Doc: "The pools that the host is connected to.",
		Methods: []Method{{"Host.getConnectedStoragePools", "", "poollist"}},
		Args:    argsOf(argOptions), Reply: []Member{{"poollist", "array of UUIDs"}},
		call: func(ctx context.Context, s spm.Storage, _ args) (Reply, error) {
			pools, err := s.Pools(ctx)
			return Reply{"poollist": texts(pools)}, err
		},
	},
	{
		Name: "getStoragePoolStats", Doc: "How the active domains of a pool are used, together.",
		Args: argsOf(argPool), Reply: []Member{{"stats", "object as in getStorageDomainStats"}}, Codes: poolCodes, As: masterNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			i, err := s.PoolInfo(ctx, get[uuid.UUID](a, "spUUID"))
			return Reply{"stats": stats(i.Stats)}, err
		},
	},
	{
		Name: "spmStart", VDSM: true, Doc: "Make this host the one that manages the pool, and finish or roll back the tasks of who did before.",
		Methods: []Method{{"StoragePool.spmStart", "storagepoolID prevID prevLver enableScsiFencing maxHostID domVersion", "uuid"}},
		Args: argsOf(argPool, ignored("prevID"), ignored("prevLVER"), ignored("recoveryMode"), ignored("scsiFencing"),
			ignored("maxHostID"), ignored("domVersion"), argOptions),
		Reply: taskReply, Codes: with(editCodes, spm.CodeNotConnected, spm.CodeWrongMaster),
		As: map[spm.Code]int{spm.CodeDamaged: 753, spm.CodeNotFound: 453},
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			return begun(s.StartSPM(ctx, get[uuid.UUID](a, "spUUID")))
		},
	},
	{
		Name: "spmStop", VDSM: true, Doc: "Give up managing the pool. Volumes that are served go on with the space that they have.",
		Methods: []Method{{"StoragePool.spmStop", "storagepoolID", ""}},
		Args:    argsOf(argPool, argOptions), Codes: []spm.Code{spm.CodeNotConnected, spm.CodeWrongState, spm.CodeUnfinished},
		As:   map[spm.Code]int{spm.CodeUnfinished: 406},
		call: ofPool(spm.Storage.StopSPM),
	},
	{
		Name: "getSpmStatus", VDSM: true, Doc: "Who manages the pool.",
		Methods: []Method{{"StoragePool.getSpmStatus", "storagepoolID", "spm_st"}},
		Args:    argsOf(argPool, argOptions), Reply: []Member{{"spm_st", spmDoc}}, Codes: poolCodes, As: masterNumbers,
		call: func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
			st, err := s.SPMStatus(ctx, get[uuid.UUID](a, "spUUID"))
			return Reply{"spm_st": map[string]any{"spmStatus": st.Role, "spmLver": st.Epoch, "spmId": st.ID}}, err
		},
	},
}

// ofPool is a verb about a pool.
func ofPool(do func(spm.Storage, context.Context, uuid.UUID) error) call {
	return func(ctx context.Context, s spm.Storage, a args) (Reply, error) {
		return nothing(do(s, ctx, get[uuid.UUID](a, "spUUID")))
	}
}

func poolInfo(ctx context.Context, s spm.Storage, a args) (Reply, error) {
	p, err := s.PoolInfo(ctx, get[uuid.UUID](a, "spUUID"))
	if err != nil {
		return nil, err
	}
	master, err := s.DomainInfo(ctx, p.Master)
	if err != nil {
		return nil, err
	}
	domains := map[string]any{}
	for id, state := range p.Domains {
		d := map[string]any{"status": string(state), "alerts": []any{}, "isoprefix": ""}
		domains[id.String()] = d
		if i, err := s.DomainInfo(ctx, id); err == nil {
			d["version"] = i.Version
		}
		if state != spm.DomainActive {
			continue
		}
		if st, err := s.DomainStats(ctx, id); err == nil {
			d["disktotal"], d["diskfree"] = decimal(st.Capacity), decimal(st.Free)
		}
	}
	return Reply{"info": pool(p, master), "dominfo": domains}, nil
}
