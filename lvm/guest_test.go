package lvm

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/internal/testenv/guest"
)

// The tests of this package that need device-mapper run in a guest whose kernel
// has it, where this one does not.
func TestInGuest(t *testing.T) {
	testenv.Need(t, "long")
	if DeviceMapper() {
		t.Skip("this kernel has device-mapper: the tests run here")
	}
	tests := filepath.Join(t.TempDir(), "lvm.test")
	build := testenv.Command(t, testenv.Tool(t, "go"), "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", tests, ".")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)

	g := guest.Start(t, guest.Options{
		Modules: []string{"dm-mod", "loop"}, Programs: []string{"lvm", "sync"}, Memory: 768,
		Deadline: 5 * time.Minute, // hundreds of commands
		Files:    map[string]string{"/lvm.test": tests},
	})
	r := g.Run("/lvm.test", "-test.v", "-test.run", "^TestDeviceMapper")
	t.Log(r)
	require.Contains(t, r, "--- PASS: TestDeviceMapperFileConformance")
	require.Contains(t, r, "--- PASS: TestDeviceMapperGuards")
	require.Contains(t, r, "--- PASS: TestDeviceMapperShrinks")
	require.NotContains(t, r, "--- SKIP", "in the guest there is everything")
	g.PowerOff()
}
