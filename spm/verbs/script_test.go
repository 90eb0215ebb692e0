package verbs_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/spm/storagetest"
)

const script = "../testdata/create_volume.py"

// The classic sequence of VDSM's users, from nothing to a volume, runs as it is.
func TestCreateVolumeScript(t *testing.T) {
	dir := t.TempDir()
	e := serve(t, &storagetest.Fake{Root: dir})
	out, err := testenv.Command(t, testenv.Python(t), script, "http+unix://"+e.path, dir).Output()
	require.NoError(t, err, "%s", out)
	var made struct {
		Info struct {
			Capacity string `json:"capacity"`
			VolType  string `json:"voltype"`
			DiskType string `json:"disktype"`
			Status   string `json:"status"`
		} `json:"info"`
	}
	require.NoError(t, json.Unmarshal(out, &made))
	require.Equal(t, "10737418240", made.Info.Capacity)
	require.Equal(t, "LEAF", made.Info.VolType)
	require.Equal(t, "DATA", made.Info.DiskType)
	require.Equal(t, "OK", made.Info.Status)
}

// acceptanceVar is where the original of the script is, in whose words its users
// have agreed.
const acceptanceVar = "TIDEMARK_ACCEPTANCE"

func TestTheScriptIsTheOriginal(t *testing.T) {
	dir := os.Getenv(acceptanceVar)
	if dir == "" {
		t.Skipf("%s names no directory with the original", acceptanceVar)
	}
	want, err := os.ReadFile(filepath.Join(dir, filepath.Base(script)))
	require.NoError(t, err)
	got, err := os.ReadFile(script)
	require.NoError(t, err)
	require.Equal(t, string(want), string(got))
}
