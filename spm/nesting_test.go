package spm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// No domain is made, or connected, inside another one or around one.
func TestDomainsAreNotNested(t *testing.T) {
	root := t.TempDir()
	h := openHost(t, root)
	outer := makeDomain(t, h, root, "c")
	own := filepath.Join(root, "c", outer.String())
	mkdir := func(path string) string {
		require.NoError(t, os.MkdirAll(path, 0o755))
		return path
	}
	for _, place := range []string{
		own, filepath.Join(own, dirImages), mkdir(filepath.Join(own, dirImages, uuid.NewString(), "x")),
		mkdir(filepath.Join(root, "c", prefixRemoved+uuid.NewString(), "x")), mkdir(filepath.Join(root, "c", prefixNew+uuid.NewString())),
	} {
		err := connectError(t, h, place)
		requireCode(t, CodeForeign, err)
		require.ErrorContains(t, err, place)
	}

	create := func(where string) error {
		return h.CreateDomain(t.Context(), CreateDomain{Type: DomainLocal, ID: uuid.New(), Name: "x", Where: where})
	}
	for _, place := range []string{root, filepath.Join(root, "c", "sub")} {
		connect(t, h, DomainLocal, mkdir(place))
		err := create(place)
		requireCode(t, CodeForeign, err)
		require.ErrorContains(t, err, outer.String(), "names the other one")
	}

	// A domain that was made while the other was not connected.
	disconnect(t, h, filepath.Join(root, "c"))
	require.NoError(t, create(filepath.Join(root, "c", "sub")))
	err := connectError(t, h, filepath.Join(root, "c"))
	requireCode(t, CodeForeign, err)
	require.ErrorContains(t, err, filepath.Join(root, "c", "sub"))

	// A place inside a domain that was not there when it was connected.
	away := filepath.Join(t.TempDir(), "away")
	require.NoError(t, os.Rename(own, away))
	disconnect(t, h, filepath.Join(root, "c", "sub"))
	inner := mkdir(filepath.Join(own, "inner"))
	connect(t, h, DomainLocal, inner)
	require.NoError(t, os.Rename(inner, filepath.Join(away, "inner")))
	require.NoError(t, os.Remove(own))
	require.NoError(t, os.Rename(away, own))
	requireCode(t, CodeForeign, create(inner))
	requireCode(t, CodeForeign, connectError(t, h, filepath.Join(root, "c")))
	require.FileExists(t, filepath.Join(own, dirMeta, fileMetadata))
}

func disconnect(t *testing.T, h *Host, dir string) {
	t.Helper()
	r, err := h.DisconnectServer(t.Context(), DomainLocal, []Connection{{Address: dir}})
	require.NoError(t, err)
	require.NoError(t, r[0].Err)
}

// A domain is not removed with another one that lies in it, however that came there.
func TestFormatSparesADomainInside(t *testing.T) {
	root := t.TempDir()
	h := openHost(t, root)
	outer, inner := makeDomain(t, h, root, "outer"), makeDomain(t, h, root, "inner")
	kept := filepath.Join(root, "outer", outer.String(), dirImages, "kept", inner.String())
	require.NoError(t, os.MkdirAll(filepath.Dir(kept), 0o755))
	require.NoError(t, os.Rename(filepath.Join(root, "inner", inner.String()), kept))
	err := h.FormatDomain(t.Context(), outer)
	requireCode(t, CodeForeign, err)
	require.ErrorContains(t, err, kept)
	require.FileExists(t, domainDir(kept).metadata())
	require.NoError(t, os.Rename(kept, filepath.Join(root, "inner", inner.String())))
	require.NoError(t, h.FormatDomain(t.Context(), outer))
	require.NoError(t, h.FormatDomain(t.Context(), inner))
}

func TestDomainAbove(t *testing.T) {
	root := t.TempDir()
	d := domainDir(filepath.Join(root, uuid.NewString()))
	require.NoError(t, os.MkdirAll(filepath.Join(string(d), dirMeta), 0o755))
	require.Empty(t, domainAbove(root, string(d)), "it is none yet")
	require.NoError(t, os.WriteFile(d.metadata(), nil, 0o600))
	for path, want := range map[string]domainDir{
		root:                                  "",
		filepath.Join(root, uuid.NewString()): "",
		string(d):                             d,
		filepath.Join(string(d), "a/b"):       d,
		string(d) + "x":                       "",
	} {
		require.Equal(t, want, domainAbove(root, path), path)
	}
	require.Empty(t, domainAbove(string(d)+"/a", string(d)+"/a/b"), "what is above the root is the administrator's")
}
