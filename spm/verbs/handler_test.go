package verbs_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/xmlrpc"
	"tidemark/spm"
	"tidemark/spm/verbs"
)

// What is no call of a verb is a fault, and what is no request at all a status of
// HTTP.
func TestNotUnderstood(t *testing.T) {
	e := serve(t, newFake())
	for _, c := range []struct {
		body string
		code int
	}{
		{"", -32700}, {"<a/>", -32700}, {"<methodCall><methodName>createVolume</methodName><params><param/></params></methodCall>", -32700},
		{"<methodCall><methodName>flyAway</methodName></methodCall>", -32601},
		{"<methodCall><methodName>Task.getStatus</methodName></methodCall>", -32601},
	} {
		status, answer := e.post(t, "/RPC2", "text/xml", c.body)
		require.Equal(t, http.StatusOK, status)
		_, err := xmlrpc.DecodeReply([]byte(answer))
		var f *xmlrpc.Fault
		require.ErrorAs(t, err, &f, c.body)
		require.Equal(t, c.code, f.Code, c.body)
	}
	status, _ := e.post(t, "/RPC2", "text/xml", strings.Repeat("x", xmlrpc.SizeMax+1))
	require.Equal(t, http.StatusRequestEntityTooLarge, status)
	r, err := e.http.Get("http://spm/RPC2")
	require.NoError(t, err)
	require.NoError(t, r.Body.Close())
	require.Equal(t, http.StatusMethodNotAllowed, r.StatusCode)

	require.Equal(t, -32601, e.json(t, "flyAway", nil).Error.Code)
	_, answer := e.post(t, "/RPC2", "application/json", `{"jsonrpc": "2.0", "id": 1, "method": "clearTask", "params": 5}`)
	require.Contains(t, answer, `"error"`)
}

// Every verb's numbers, names and types of arguments are checked, and a wrong one
// has a code in both protocols: it is no fault, and nothing breaks.
func TestWrongArguments(t *testing.T) {
	e := serve(t, newFake())
	scene(t, e)
	cells := 0
	for _, v := range verbs.Table {
		good := make([]any, len(v.Args))
		for i, a := range v.Args {
			good[i] = sample(t, a)
		}
		refused := func(what string, params []any) {
			cells++
			b, err := xmlrpc.EncodeCall(v.Name, params...)
			require.NoError(t, err)
			status, answer := e.post(t, "/", "text/xml", string(b))
			require.Equal(t, http.StatusOK, status)
			reply, err := xmlrpc.DecodeReply([]byte(answer))
			require.NoError(t, err, "%s: %s", v.Name, what)
			n := code(t, reply.(verbs.Reply))
			require.NotZero(t, n, "%s: %s: %v", v.Name, what, reply)
			a := e.json(t, v.Name, params)
			require.NotNil(t, a.Error, "%s: %s", v.Name, what)
			require.Equal(t, n, int64(a.Error.Code), "%s: %s", v.Name, what)
			require.Contains(t, []spm.Code{spm.CodeInvalid, spm.CodeUnsupported}, a.Error.Data.Code, "%s: %s: %s", v.Name, what, a.Error.Message)
		}
		refused("surplus", append(append([]any{}, good...), "x"))
		named := e.json(t, v.Name, map[string]any{"colour": "red"})
		require.Equal(t, 1000, named.Error.Code, v.Name)
		for i, a := range v.Args {
			if !a.Optional && a.Kind.Type != "anything" {
				missing := append([]any{}, good...)
				missing[i] = nil
				refused("missing "+a.Name, missing)
			}
			for _, bad := range wrong(a.Kind.Type) {
				ill := append([]any{}, good...)
				ill[i] = bad
				refused("ill-typed "+a.Name, ill)
			}
		}
	}
	t.Logf("%d cells", cells)
	require.Greater(t, cells, 500)
}

// sample is a good value of an argument.
func sample(t *testing.T, a verbs.Arg) any {
	switch a.Kind.Type {
	case "UUID", "new UUID":
		return id(unknown)
	case "UUIDs":
		return []any{id(unknown)}
	case "states":
		return map[string]any{id(unknown): "Active"}
	case "string", "anything":
		return "text"
	case "integer", "bytes", "size":
		return 1
	case "boolean", "true":
		return true
	case "nothing":
		return false
	case "place":
		return "/srv/c"
	case "connections":
		return []any{map[string]any{"id": id(unknown), "connection": "/srv/c"}}
	case "domain type", "format", "format or UNKNOWN":
		return 4
	case "domain version":
		return 5
	case "domain class", "allocation", "allocation or UNKNOWN", "operation":
		return 1
	case "volume type", "disk type":
		return 8
	}
	t.Fatalf("%s: no sample of a %s", a.Name, a.Kind.Type)
	return nil
}

// wrong are values that a kind refuses. Every kind but one refuses an object of its
// own and a number with a fraction.
func wrong(kind string) []any {
	common := []any{1.5, map[string]any{"a": 1, "b": 2}, []any{[]any{}}, []any{1}}
	words := append(common, 99, -1, "", "PURPLE", "99", true)
	switch kind {
	case "anything":
		return nil
	case "UUID":
		return append(common, 5, true, "x", strings.ReplaceAll(id(unknown), "-", ""), "{"+id(unknown)+"}", "zzzzzzzz-0000-4000-8000-000000000001")
	case "new UUID":
		return append(common, 5, "", id(uuid.Nil))
	case "UUIDs":
		return append(common, 5, "", []any{""}, []any{id(unknown), "x"}, map[string]any{"a": id(unknown)})
	case "states":
		return append(common, 5, "", map[string]any{id(unknown): 5}, map[string]any{id(unknown): "PURPLE"}, map[string]any{"x": "Active"})
	case "string":
		return append(common, 5, true)
	case "place":
		return append(common, 5, "", true, map[string]any{"remotePath": 5}, map[string]any{"other": "x"})
	case "integer":
		return append(common, "x", "", "1.5", true)
	case "bytes", "size":
		return append(common, "x", "", "-1", -1, true, "99999999999999999999", "1G")
	case "boolean", "true":
		return append(common, "yes", 2, "")
	case "nothing":
		return append(common, true, 7, "x")
	case "connections":
		return append(common, "", 5, []any{}, []any{map[string]any{}}, []any{map[string]any{"connection": ""}}, []any{map[string]any{"connection": 5}},
			[]any{map[string]any{"id": "x", "connection": "/srv/c"}}, []any{map[string]any{"id": 5, "connection": "/srv/c"}})
	case "domain version":
		return append(common, 3, "4", 6, -1, "x", true)
	}
	return words
}

// A size beyond 63 bits is refused, not wrapped around.
func TestSectorsBeyondAllVolumes(t *testing.T) {
	e := serve(t, newFake())
	scene(t, e)
	a := e.json(t, "createVolume", map[string]any{"sdUUID": id(domainID), "spUUID": id(poolID), "imgUUID": id(derived(20)), "size": int64(1) << 60,
		"volFormat": 4, "preallocate": 2, "diskType": 2, "volUUID": id(derived(20)), "desc": ""})
	require.NotNil(t, a.Error)
	require.Contains(t, a.Error.Message, "more than a volume can have")
}

// VDSM's methods take its parameters, by name and by position, and answer with its
// results.
func TestMethodsOfVDSM(t *testing.T) {
	e := serve(t, newFake())
	scene(t, e)
	require.Equal(t, []any{id(poolID)}, e.json(t, "Host.getConnectedStoragePools", []any{}).Result)
	byName := e.json(t, "Volume.getSize", map[string]any{"storagepoolID": id(poolID), "storagedomainID": id(domainID), "imageID": id(imageID), "volumeID": id(volumeID)})
	require.Equal(t, map[string]any{"apparentsize": "1073741824", "truesize": "262144"}, byName.Result)
	byPosition := e.json(t, "Volume.getSize", []any{id(volumeID), id(poolID), id(domainID), id(imageID)})
	require.Equal(t, byName.Result, byPosition.Result)
	copied := e.json(t, "Image.move", map[string]any{"imageID": id(imageID), "storagepoolID": id(poolID), "storagedomainID": id(domainID), "dstSdUUID": id(otherID),
		"operation": 1, "postZero": false, "force": false, "discard": false})
	require.Nil(t, copied.Error)
	require.Equal(t, true, e.json(t, "StorageDomain.deactivate", []any{id(otherID), id(poolID), id(uuid.Nil), 0}).Result)
	task := e.json(t, "Image.delete", map[string]any{"imageID": id(imageID), "storagepoolID": id(poolID), "storagedomainID": id(domainID),
		"postZero": false, "force": false, "discard": true})
	require.Nil(t, task.Error)
	require.NotEqual(t, uuid.Nil, uuid.MustParse(task.Result.(string)))
	require.Equal(t, "finished", e.json(t, "Task.getStatus", []any{task.Result}).Result.(map[string]any)["taskState"])
	require.Equal(t, "/srv", e.json(t, spm.MethodPoolGetInfo, map[string]any{}).Result.(map[string]any)["dir"], "ours are there as well")
	require.Equal(t, 358, e.json(t, "StorageDomain.getInfo", []any{id(unknown)}).Error.Code)
	require.Equal(t, 1000, e.json(t, "StorageDomain.getInfo", []any{id(domainID), 1}).Error.Code)
	require.Equal(t, 1000, e.json(t, "StorageDomain.getInfo", map[string]any{"sdUUID": id(domainID)}).Error.Code)
	require.Equal(t, 1000, e.json(t, "StorageDomain.getInfo", map[string]any{}).Error.Code)
}

// A task that has not ended is stopped, and then has failed in VDSM's words; it is not
// reverted before that, and it is no error behind it. One that has finished is neither.
func TestStopAndRevert(t *testing.T) {
	f := newFake()
	e := serve(t, f)
	scene(t, e)
	held := make(chan struct{})
	defer close(held)
	finished := e.xml(t, "reduceVolume", id(poolID), id(domainID), id(imageID), id(volumeID))["uuid"]
	for _, verb := range []string{"stopTask", "revertTask"} {
		require.Equal(t, int64(410), code(t, e.xml(t, verb, finished)))
	}
	f.Hold = func(string) { <-held }
	task := e.xml(t, "reduceVolume", id(poolID), id(domainID), id(imageID), id(volumeID))["uuid"]
	require.Equal(t, "running", e.xml(t, "getTaskStatus", task)["taskStatus"].(map[string]any)["taskState"])
	require.Equal(t, int64(410), code(t, e.xml(t, "clearTask", task)))
	require.Equal(t, int64(406), code(t, e.xml(t, "spmStop", id(poolID))))
	require.Equal(t, int64(410), code(t, e.xml(t, "revertTask", task)))
	require.Zero(t, code(t, e.xml(t, "stopTask", task)))
	status := e.xml(t, "getTaskStatus", task)["taskStatus"].(map[string]any)
	require.Equal(t, []any{"finished", "cleanSuccess", int64(411)}, []any{status["taskState"], status["taskResult"], status["code"]})
	require.Equal(t, int64(410), code(t, e.xml(t, "stopTask", task)))
	require.Zero(t, code(t, e.xml(t, "revertTask", task)))
	require.Zero(t, code(t, e.xml(t, "clearTask", task)))
	require.Equal(t, int64(401), code(t, e.xml(t, "getTaskStatus", task)))
}

// A code has the number that VDSM has for it in the verb.
func TestNumbersOfVerbs(t *testing.T) {
	e := serve(t, newFake())
	scene(t, e)
	for _, c := range []struct {
		want   int64
		verb   string
		params []any
	}{
		{365, "createStorageDomain", []any{4, id(domainID), "x", "/srv/a", 1}},
		{361, "createStorageDomain", []any{4, id(unknown), "x", "/srv/a", 1}},
		{372, "createStorageDomain", []any{1, id(unknown), "x", "/srv/a", 1}},
		{386, "createStorageDomain", []any{4, id(unknown), "x", "/srv/a", 2}},
		{394, "createStorageDomain", []any{4, id(unknown), "x", "/srv/a", 1, 3}},
		{316, "createStoragePool", []any{4, id(poolID), "x", id(domainID), []any{id(domainID)}, 1}},
		{380, "createStoragePool", []any{4, id(unknown), "x", id(domainID), []any{id(domainID)}, 1}},
		{358, "activateStorageDomain", []any{id(unknown), id(poolID)}},
		{382, "detachStorageDomain", []any{id(otherID), id(poolID), id(uuid.Nil), 1}},
		{383, "detachStorageDomain", []any{id(domainID), id(poolID), id(uuid.Nil), 1}},
		{310, "deactivateStorageDomain", []any{id(domainID), id(poolID), id(uuid.Nil), 1}},
		{391, "formatStorageDomain", []any{id(domainID)}},
		{309, "getStoragePoolInfo", []any{id(unknown)}},
		{324, "connectStoragePool", []any{id(poolID), 1, "", id(otherID), 1}},
		{324, "connectStoragePool", []any{id(poolID), 1, "", id(domainID), 2}},
		{325, "reconstructMaster", []any{id(poolID), "x", id(domainID), map[string]any{id(domainID): "Active"}, 2}},
		{656, "disconnectStoragePool", []any{id(poolID), 1, ""}},
		{212, "createVolume", []any{id(domainID), id(poolID), id(imageID), "1", 4, 2, 2, id(volumeID), ""}},
		{229, "createVolume", []any{id(domainID), id(poolID), id(imageID), "0", 4, 2, 2, id(volumeID), ""}},
		{268, "deleteImage", []any{id(domainID), id(poolID), id(unknown)}},
		{201, "deleteVolume", []any{id(domainID), id(poolID), id(imageID), id(unknown)}},
		{358, "getVolumeInfo", []any{id(unknown), id(poolID), id(imageID), id(volumeID)}},
		{201, "mergeSnapshots", []any{id(domainID), id(poolID), "", id(imageID), id(unknown), id(volumeID)}},
		{922, "createVolume", []any{id(domainID), id(poolID), id(derived(9)), "0", 4, 2, 2, id(derived(9)), "", id(imageID), id(volumeID)}},
		{401, "clearTask", []any{id(unknown)}},
	} {
		r := e.xml(t, c.verb, c.params...)
		require.Equal(t, c.want, code(t, r), "%s: %v", c.verb, r)
	}
	r := e.xml(t, "connectStorageServer", 4, "", []any{map[string]any{"id": id(unknown), "connection": "/etc"}})
	require.Zero(t, code(t, r))
	require.Equal(t, int64(1022), r["statuslist"].([]any)[0].(map[string]any)["status"])
}
