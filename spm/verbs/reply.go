package verbs

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"tidemark/spm"
)

// decimal is a size in a reply.
func decimal(n int64) string { return strconv.FormatInt(n, 10) }

func texts(ids []uuid.UUID) []string {
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = id.String()
	}
	return out
}

func sortedIDs[V any](m map[uuid.UUID]V) []uuid.UUID {
	return slices.SortedFunc(maps.Keys(m), func(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) })
}

func connections(results []spm.ConnectionResult, as map[spm.Code]int) Reply {
	list := make([]any, len(results))
	for i, r := range results {
		m := map[string]any{"id": r.ID.String(), "status": 0}
		if r.Was && r.Err == nil {
			m["message"] = "it was so before"
		}
		if r.Err != nil {
			code := spm.CodeOf(r.Err)
			m["status"], m["message"] = cmp.Or(as[code], Number(code)), r.Err.Error()
		}
		list[i] = m
	}
	return Reply{"statuslist": list}
}

func domainInfo(i spm.DomainInfo) map[string]any {
	m := map[string]any{
		"uuid": i.ID.String(), "type": string(i.Type), "class": i.Class, "name": i.Name, "role": i.Role,
		"pool": []string{}, "version": strconv.Itoa(i.Version), "master_ver": i.Master, "lver": i.Lver, "spm_id": -1,
		"block_size": 512, "alignment": 1 << 20, "state": string(i.State),
	}
	if i.Pool != uuid.Nil {
		m["pool"] = []string{i.Pool.String()}
	}
	switch i.Type {
	case spm.DomainLocal:
		m["remotePath"] = i.Where
	case spm.DomainBlock:
		m["vguuid"], m["vgName"] = i.VGUUID, i.Where
	}
	return m
}

const statsDoc = "state (of a domain; of one that is Unknown nothing is free), granted, reserve, virtual, used (bytes), ratio (virtual to capacity), growth (bytes a second), time_to_full (seconds; 0: never), volumes, level (ok, warn, critical), waiting"

func stats(d spm.DomainStats) map[string]any {
	m := map[string]any{
		"disktotal": decimal(d.Capacity), "diskfree": decimal(d.Free),
		"mdavalid": d.State != spm.DomainUnknown, "mdathreshold": true, "mdasize": 0, "mdafree": 0,
		"granted": decimal(d.Granted), "reserve": decimal(d.Reserve), "virtual": decimal(d.Virtual), "used": decimal(d.Used),
		"ratio": d.Ratio, "growth": d.Growth, "time_to_full": d.TimeToFull, "volumes": d.Volumes, "level": d.Level, "waiting": d.Waiting,
	}
	if d.State != "" {
		m["state"] = string(d.State)
	}
	return m
}

func pool(p spm.PoolInfo, master spm.DomainInfo) map[string]any {
	var domains []string
	for _, id := range sortedIDs(p.Domains) {
		domains = append(domains, id.String()+":"+string(p.Domains[id]))
	}
	return map[string]any{
		"name": p.Name, "type": string(master.Type), "version": strconv.Itoa(master.Version), "master_uuid": p.Master.String(),
		"master_ver": p.MasterVersion, "lver": p.SPM.Epoch, "spm_id": p.SPM.ID, "pool_status": "connected", "isoprefix": "",
		"domains": strings.Join(domains, ","),
	}
}

func volumeInfo(v spm.VolumeInfo) map[string]any {
	status := "OK"
	switch {
	case v.Damaged != "":
		status = "INVALID"
	case v.Legality == spm.Illegal:
		status = spm.Illegal
	}
	m := map[string]any{
		"uuid": v.Volume.String(), "image": v.Image.String(), "domain": v.Domain.String(), "pool": v.Pool.String(),
		"parent": v.Parent.String(), "parentImage": v.ParentImage.String(), "children": texts(v.Children),
		"capacity": decimal(v.Capacity), "apparentsize": decimal(v.Granted), "truesize": decimal(v.Used), "bound": decimal(v.Bound),
		"format": v.Format, "type": v.Alloc, "voltype": v.Type, "disktype": v.DiskType,
		"legality": v.Legality, "status": status, "generation": v.Generation, "sequence": v.Sequence,
		"ctime": strconv.FormatInt(v.Created.Unix(), 10), "mtime": "0", "description": v.Description,
		"priority": v.Priority, "served": v.Served, "path": v.Path,
	}
	if v.Name != "" {
		m["name"] = v.Name
	}
	if v.ServedUnknown != "" {
		m["servedUnknown"] = v.ServedUnknown
	}
	if v.Damaged != "" {
		m["damaged"] = v.Damaged
	}
	return m
}

func prepared(p spm.Prepared) Reply {
	chain := make([]any, len(p.Chain))
	for i, v := range p.Chain {
		chain[i] = map[string]any{"domainID": v.Domain.String(), "imageID": v.Image.String(), "volumeID": v.Volume.String(), "path": v.Path}
	}
	return Reply{
		"path": p.URI,
		"info": map[string]any{
			"type": "network", "protocol": "nbd", "path": p.URI, "socket": p.Socket, "control": p.Control, "pid": p.PID,
			"domainID": p.Domain.String(), "imageID": p.Image.String(), "volumeID": p.Volume.String(),
		},
		"imgVolumesInfo": chain,
	}
}

func taskStatus(t spm.TaskStatus) map[string]any {
	word, result := taskWord(t)
	m := map[string]any{
		"taskID": t.ID.String(), "taskState": word, "taskResult": result, "code": 0, "message": cmp.Or(t.Message, t.Step, "OK"),
		"state": t.State, "step": t.Step, "done": decimal(t.Done), "total": decimal(t.Total), "result": decoded(t.Result),
	}
	if t.Code != 0 {
		m["code"] = taskNumber(t.Kind, t.Code)
	}
	return m
}

// taskNumber is the number of a code in the verb that has begun a task of that kind.
func taskNumber(kind string, code spm.Code) int {
	name, _, _ := strings.Cut(kind, ".")
	if v := Find(name); v != nil {
		return v.number(code)
	}
	return Number(code)
}

func taskInfo(t spm.TaskInfo) map[string]any {
	return map[string]any{"id": t.ID.String(), "verb": t.Kind}
}

func taskDetails(t spm.TaskInfo) map[string]any {
	m := taskStatus(t.TaskStatus)
	delete(m, "taskID")
	delete(m, "taskState")
	delete(m, "taskResult")
	m["id"], m["verb"], m["tag"], m["pool"], m["args"] = t.ID.String(), t.Kind, "spm", t.Pool.String(), string(t.Args)
	m["created"] = t.Created.Unix()
	if !t.Ended.IsZero() {
		m["ended"] = t.Ended.Unix()
	}
	return m
}

// decoded is JSON as values of a reply; "" if it is none.
func decoded(b json.RawMessage) any {
	v, err := parseJSON(b)
	if err != nil || v == nil {
		return ""
	}
	return v
}
