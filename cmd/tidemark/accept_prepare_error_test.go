//go:build linux

package main_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/testenv"
	"tidemark/nbd"
	"tidemark/spm"
)

// An image that cannot be served: the error says in its code why, although it is another
// process that has found it. When the cause is gone the image is served.
func TestVDSMPrepareSaysWhy(t *testing.T) {
	qemu := testenv.Tool(t, "qemu-nbd")
	h := newVDSMHost(t)
	domain := h.newDomains(h.newDir("domain"))[0]
	image, leaf := uuid.NewString(), uuid.NewString()
	h.run("createVolume", h.newVolume(domain, image, leaf, storySize, nil))
	path := h.volumes(domain)[0].Path
	for _, c := range []struct {
		name  string
		code  spm.Code
		spoil func() (mend func())
	}{
		{"somebody has it open", spm.CodeInUse, func() func() {
			socket := filepath.Join(t.TempDir(), "q")
			p := testenv.Start(t, testenv.Command(t, qemu, "-t", "-f", "qcow2", "-k", socket, path))
			testenv.Eventually(t, startLimit, "qemu-nbd serves", func() bool { // its socket is there before it has the image
				c, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
				return err == nil && c.Close() == nil
			})
			return p.Kill
		}},
		{"its file is gone", spm.CodeDamaged, func() func() { return takeAway(t, path) }},
		{"it is no image", spm.CodeDamaged, func() func() {
			back := takeAway(t, path)
			require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
			return back
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mend := c.spoil()
			err := h.ask("prepareImage", h.at(domain, image, ""), nil)
			require.Equal(t, c.code, spm.CodeOf(err), "%v", err)
			require.ErrorContains(t, err, leaf)
			mend()
			h.prepare(domain, image)
			h.teardown(domain, image)
		})
	}
}
