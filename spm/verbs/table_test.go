package verbs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/spm"
	"tidemark/spm/task"
)

// ofIssue are the verbs that there must be.
const ofIssue = `connectStorageServer disconnectStorageServer createStorageDomain formatStorageDomain
attachStorageDomain activateStorageDomain deactivateStorageDomain detachStorageDomain
getStorageDomainInfo getStorageDomainStats getStorageDomainsList createStoragePool destroyStoragePool
connectStoragePool disconnectStoragePool getStoragePoolInfo spmStart spmStop getSpmStatus createVolume
deleteVolume copyImage moveImage deleteImage mergeSnapshots extendVolumeSize reduceVolume getVolumeInfo
getVolumeSize getVolumesList getImagesList prepareImage teardownImage getTaskStatus getTaskInfo
getAllTasksStatuses getAllTasksInfo stopTask revertTask clearTask`

func TestTable(t *testing.T) {
	for name := range strings.FieldsSeq(ofIssue) {
		require.NotNil(t, Find(name), name)
	}
	seen := map[string]bool{}
	unused := []string{"discard", "blockSize", "maxHosts", "force", "storagepoolID"} // of VDSM, without an argument here
	for _, v := range Table {
		require.False(t, seen[v.Name], v.Name)
		seen[v.Name] = true
		require.NotEmpty(t, v.Doc, v.Name)
		require.Equal(t, len(v.Methods) > 0 || slices.Contains([]string{"mergeSnapshots", "createVolume", "getVolumeInfo"}, v.Name), v.VDSM, v.Name)
		names := map[string]bool{}
		optional := false
		for _, a := range v.Args {
			require.False(t, names[a.Name], "%s: %s", v.Name, a.Name)
			names[a.Name] = true
			require.Contains(t, kinds, a.Kind, "%s: %s", v.Name, a.Name)
			if a.Kind != kindIgnored {
				require.False(t, optional && !a.Optional, "%s: %s comes after optional ones", v.Name, a.Name)
				require.NotEmpty(t, a.Doc, "%s: %s", v.Name, a.Name)
			}
			optional = optional || a.Optional && a.Kind != kindIgnored
		}
		members := map[string]bool{"*": true, "": true}
		for _, m := range v.Reply {
			members[m.Name] = true
		}
		for _, m := range v.Methods {
			require.False(t, seen[m.Name], m.Name)
			seen[m.Name] = true
			require.True(t, members[m.Result], "%s: %s", m.Name, m.Result)
			for _, p := range v.argNames(m) {
				require.True(t, names[p.arg] || slices.Contains(unused, p.name), "%s: %s is no argument of %s", m.Name, p.name, v.Name)
			}
			given := map[string]any{}
			for _, p := range v.argNames(m) {
				given[p.name] = "x"
			}
			named, err := v.rename(m, v.argNames(m), nil, given)
			require.NoError(t, err)
			for _, a := range v.Args {
				require.True(t, a.Optional || named[a.Name] != nil, "%s can never succeed: it has no %s", m.Name, a.Name)
			}
		}
		listed := map[spm.Code]bool{}
		for _, c := range slices.Concat(v.Codes, everywhere) {
			require.False(t, listed[c], "%s lists %d twice", v.Name, c)
			listed[c] = true
		}
		for c := range v.As {
			require.Contains(t, v.Codes, c, "%s has a number for a code that it does not have", v.Name)
		}
	}
	// A method of VDSM that is ours already is none of the table's.
	for name := range spm.Methods(noMethods{}) {
		require.False(t, seen[name], name)
	}
}

type noMethods struct{ spm.API }

// Every code of package spm has a number, and no number of ours is one of VDSM's.
func TestCodes(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../errors.go", nil, 0)
	require.NoError(t, err)
	known := map[spm.Code]bool{}
	for _, c := range codes {
		require.False(t, known[c.Code], c.Code)
		known[c.Code] = true
		require.Equal(t, c.Name == "", c.Number == int(c.Code), "%d", c.Number)
		require.False(t, c.Name == "" && c.Number < 1002, "%d is one of VDSM's", c.Number)
	}
	found := 0
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "Code") {
			return true
		}
		number, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
		require.NoError(t, err)
		require.True(t, known[spm.Code(number)], "%s has no number", v.Names[0].Name)
		found++
		return true
	})
	require.Equal(t, len(codes), found)
	named := map[int]bool{1000: true}
	for _, c := range slices.Concat(codes, numbersOfVerbs) {
		named[c.Number] = true
	}
	for _, v := range Table {
		for _, n := range slices.Concat(slices.Collect(maps.Values(v.As)), v.more()) {
			require.True(t, named[n], "%s: %d has no name", v.Name, n)
		}
	}
}

func TestTaskWords(t *testing.T) {
	for state, want := range map[task.State][2]string{ // of one that has not been given up
		task.Queued: {"running", ""}, task.Running: {"running", ""}, task.Aborting: {"aborting", ""}, task.Recovering: {"cleaning", ""},
		task.Finished: {"finished", "success"}, task.Failed: {"finished", "cleanSuccess"}, task.Cleared: {"unknown", ""},
	} {
		word, result := taskWord(spm.TaskStatus{State: string(state)})
		require.Equal(t, want, [2]string{word, result}, state)
	}
	word, result := taskWord(spm.TaskStatus{State: string(task.Failed), GivenUp: true})
	require.Equal(t, [2]string{"finished", "cleanFailure"}, [2]string{word, result})
	r := taskStatus(spm.TaskStatus{State: "failed", Code: spm.CodePoolFull, Message: "full", Done: 1, Total: 1 << 40})
	require.Equal(t, 397, r["code"])
	require.Equal(t, "full", r["message"])
	require.Equal(t, "1099511627776", r["total"])
	damaged := taskStatus(spm.TaskStatus{Kind: "spmStart", State: "failed", Code: spm.CodeDamaged})
	require.Equal(t, 753, damaged["code"], "as the verb that has begun it says it")
	state := taskStatus(spm.TaskStatus{Kind: "mergeSnapshots.live", State: "failed", Code: spm.CodeWrongState})
	require.Equal(t, 922, state["code"])
}
