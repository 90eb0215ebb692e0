package verbs_test

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/spm/storagetest"
	"tidemark/spm/verbs"
)

// A step is a call of the scene: a verb, the UUID of the task before it being TASK. Between
// two that are holding no task ends that begins.
type step struct {
	verb   string
	params []any
}

const holding = "holding"

// everyVerb calls every verb with success, in an order in which that is possible.
func everyVerb() []step {
	blank, sd, sd2, sp, img, vol := id(uuid.Nil), id(domainID), id(otherID), id(poolID), id(imageID), id(volumeID)
	leaf, template, image2, image3 := id(derived(6)), id(derived(7)), id(derived(8)), id(derived(9))
	connection := []any{map[string]any{"id": sd, "connection": "/srv/a"}, map[string]any{"id": sd2, "path": "/srv/b", "port": ""}}
	return []step{
		{"connectStorageServer", []any{4, blank, connection}},
		{"createStorageDomain", []any{4, sd, "first", "/srv/a", 1, 0}},
		{"createStorageDomain", []any{"LOCALFS", sd2, "second", "/srv/b", "Data", "5", nil, "137438953472"}},
		{"createStoragePool", []any{4, sp, "my pool", sd, []any{sd}, 1}},
		{"connectStoragePool", []any{sp, 1, "key", sd, 1, map[string]any{sd: "active"}}},
		{"getConnectedStoragePoolsList", nil},
		{"getSpmStatus", []any{sp}},
		{"spmStart", []any{sp, -1, -1, -1, 0}},
		{"getTaskStatus", []any{"TASK"}},
		{"getTaskInfo", []any{"TASK"}},
		{"getAllTasksStatuses", nil},
		{"getAllTasksInfo", nil},
		{"getAllTasks", nil},
		{"clearTask", []any{"TASK"}},
		{"getSpmStatus", []any{sp}},
		{"attachStorageDomain", []any{sd2, sp}},
		{"activateStorageDomain", []any{sd2, sp}},
		{"getStorageDomainInfo", []any{sd}},
		{"getStorageDomainStats", []any{sd}},
		{"getStorageDomainsList", []any{sp}},
		{"getStorageDomainsList", []any{"", 1, "LOCALFS", "/srv/b"}},
		{"getStorageDomainsDetails", nil},
		{"getStoragePoolInfo", []any{sp}},
		{"getStoragePoolStats", []any{sp}},
		{"createVolume", []any{sd, sp, img, 20971520, 4, 2, 8, vol, "volly", blank, blank}},
		{"createVolume", []any{sd, sp, img, "0", "COW", "SPARSE", "DATA", leaf, "snapshot", img, vol, "1048576"}},
		{"getVolumeInfo", []any{sd, sp, img, vol}},
		{"getVolumeSize", []any{sd, sp, img, leaf}},
		{"measureVolume", []any{sd, sp, img, leaf, "RAW"}},
		{"getVolumesList", []any{sd, sp}},
		{"getVolumesDetails", []any{sd, img}},
		{"getImagesList", []any{sd}},
		{"setVolumePriority", []any{sd, sp, img, leaf, 7}},
		{"extendVolumeSize", []any{sp, sd, img, leaf, "21474836480"}},
		{"reduceVolume", []any{sp, sd, img, leaf, false}},
		{holding, nil},
		{"reduceVolume", []any{sp, sd, img, leaf}},
		{"getTaskStatus", []any{"TASK"}},
		{"stopTask", []any{"TASK"}},
		{"getTaskStatus", []any{"TASK"}},
		{"revertTask", []any{"TASK"}},
		{"clearTask", []any{"TASK"}},
		{holding, nil},
		{"prepareImage", []any{sp, sd, img, leaf}},
		{"teardownImage", []any{sp, sd, img}},
		{"mergeSnapshots", []any{sd, sp, blank, img, vol, leaf, "false"}},
		{"copyImage", []any{sd, sp, blank, img, vol, image2, template, "a template"}},
		{"deleteVolume", []any{sd, sp, image2, []any{template}, "true"}},
		{"moveImage", []any{sp, sd, sd2, img, blank, 2}},
		{"createVolume", []any{sd, sp, image3, 2097152, 5, 1, 2, image3, ""}},
		{"deleteImage", []any{sd, sp, image3, true, true}},
		{"deactivateStorageDomain", []any{sd2, sp, blank, 0}},
		{"detachStorageDomain", []any{sd2, sp, blank, 0}},
		{"formatStorageDomain", []any{sd2, false}},
		{"spmStop", []any{sp}},
		{"disconnectStoragePool", []any{sp, 1, "key"}},
		{"reconstructMaster", []any{sp, "my pool", sd, map[string]any{sd: "active", sd2: "Unknown"}, 2}},
		{"connectStoragePool", []any{sp, "1", "key", sd, "2"}},
		{"spmStart", []any{sp, -1, -1, -1, 0}},
		{"destroyStoragePool", []any{sp, 1, "key"}},
		{"disconnectStorageServer", []any{4, blank, connection}},
	}
}

// derived is a UUID of the scene.
func derived(n byte) uuid.UUID {
	u := domainID
	u[15] = n
	return u
}

// Every verb answers over XML-RPC what is written in testdata/replies.txt, and over
// JSON-RPC the same.
func TestReplies(t *testing.T) {
	now := func() time.Time { return time.Date(2026, 11, 26, 14, 0, 0, 0, time.UTC) }
	fakes := []*storagetest.Fake{{Root: "/srv", Now: now}, {Root: "/srv", Now: now}}
	xml, other := serve(t, fakes[0]), serve(t, fakes[1])
	held := make(chan struct{})
	defer close(held)
	var b strings.Builder
	b.WriteString("# What each verb answers, call after call, over XML-RPC; over JSON-RPC it is the same.\n# Written by: go test ./spm/verbs -run TestReplies -update\n")
	called := map[string]bool{}
	var tasks [2]string
	for _, s := range everyVerb() {
		if s.verb == holding {
			for _, f := range fakes {
				hold := func(string) { <-held }
				if f.Hold != nil {
					hold = nil
				}
				f.Hold = hold
			}
			continue
		}
		called[s.verb] = true
		params := func(i int) []any {
			out := make([]any, len(s.params))
			for j, p := range s.params {
				if out[j] = p; p == "TASK" {
					out[j] = tasks[i]
				}
			}
			return out
		}
		r := xml.xml(t, s.verb, params(0)...)
		require.Zero(t, code(t, r), "%s: %v", s.verb, r)
		a := other.json(t, s.verb, params(1))
		require.Nil(t, a.Error, "%s: %+v", s.verb, a.Error)
		require.Equal(t, anonymous(t, r), anonymous(t, a.Result), s.verb)
		fmt.Fprintf(&b, "\n%s%s\n%s\n", s.verb, anonymous(t, s.params), anonymous(t, r))
		if task, ok := r["uuid"].(string); ok {
			tasks = [2]string{task, a.Result.(map[string]any)["uuid"].(string)}
		}
	}
	for _, v := range verbs.Table {
		require.True(t, called[v.Name], "%s is not called", v.Name)
	}
	const golden = "testdata/replies.txt"
	if *verbs.Update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(golden, []byte(b.String()), 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	require.Equal(t, string(want), b.String())
}

var ids = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// anonymous is v as JSON with TASK for the UUIDs that are not of the scene.
func anonymous(t *testing.T, v any) string {
	b, err := json.Marshal(v)
	require.NoError(t, err)
	return ids.ReplaceAllStringFunc(string(b), func(s string) string {
		if strings.HasPrefix(s, "00000000-0000-4000-8000-") {
			return s
		}
		return "TASK"
	})
}

// What goes over the wire is written out once, byte for byte.
func TestOnTheWire(t *testing.T) {
	e := serve(t, newFake())
	scene(t, e)
	status, answer := e.post(t, "/RPC2", "", `<?xml version='1.0'?>
<methodCall>
<methodName>getVolumeSize</methodName>
<params>
<param><value><string>`+id(domainID)+`</string></value></param>
<param><value>`+id(poolID)+`</value></param>
<param><value><string>`+id(imageID)+`</string></value></param>
<param><value><string>`+id(volumeID)+`</string></value></param>
</params>
</methodCall>`)
	require.Equal(t, 200, status)
	require.Equal(t, `<?xml version="1.0" encoding="UTF-8"?>
<methodResponse><params><param><value><struct><member><name>apparentsize</name><value><string>1073741824</string></value></member>`+
		`<member><name>status</name><value><struct><member><name>code</name><value><int>0</int></value></member>`+
		`<member><name>message</name><value><string>OK</string></value></member></struct></value></member>`+
		`<member><name>truesize</name><value><string>262144</string></value></member></struct></value></param></params></methodResponse>
`, answer)

	status, answer = e.post(t, "/", "application/json", `{"jsonrpc": "2.0", "id": 7, "method": "getVolumeSize",
		"params": {"spUUID": "`+id(poolID)+`", "sdUUID": "`+id(domainID)+`", "imgUUID": "`+id(imageID)+`", "volUUID": "`+id(unknown)+`"}}`)
	require.Equal(t, 200, status)
	require.Equal(t, `{"jsonrpc":"2.0","id":7,"error":{"code":201,"message":"getVolumeSize: there is no volume `+id(unknown)+
		` in image `+id(imageID)+`","data":{"code":1003}}}`, answer)
	r := e.xml(t, "getVolumeSize", id(domainID), id(poolID), id(imageID), id(unknown))
	require.Equal(t, int64(201), code(t, r))
}
