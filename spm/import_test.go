package spm

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// A pool whose daemon and state are gone is found elsewhere from what is on disk.
func TestImport(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	v := create(t, h, "web1", gib)
	w, err := h.CreateVolume(t.Context(), VolumeCreateRequest{Name: "web2", Size: gib, DomainUUID: domains[1].String()})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(v.Path, []byte("the data"), 0o600))
	require.NoError(t, os.Truncate(v.Path, v.Granted))
	killHost(t, h)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.Rename(root, elsewhere))

	h = openHost(t, elsewhere)
	for _, name := range []string{"a", "b", "c"} {
		makeDir(t, h, elsewhere, name)
	}
	info, err := h.DomainInfo(t.Context(), domains[0])
	require.NoError(t, err)
	require.Equal(t, pool, info.Pool, "the domain says what pool it is of")
	require.NoError(t, h.ConnectPool(t.Context(), info.Pool, uuid.Nil, 0))
	startSPM(t, h, pool)
	require.Equal(t, []string{"web1", "web2"}, volumeNames(t, h))
	found, err := h.GetVolumeInfo(t.Context(), VolumeInfoRequest{VolumeRef: VolumeRef{Volume: "web1"}})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(elsewhere, "a"), filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(found.Path)))))
	data, err := os.ReadFile(found.Path)
	require.NoError(t, err)
	require.Equal(t, "the data", string(data[:8]))

	// One domain of it alone, into another pool.
	killHost(t, h)
	require.NoError(t, os.RemoveAll(filepath.Join(elsewhere, "a")))
	h = openHost(t, elsewhere)
	makeDir(t, h, elsewhere, "b")
	other := makeDomain(t, h, elsewhere, "other")
	next := makePool(t, h, other)
	startSPM(t, h, next)
	requireCode(t, CodeOtherPool, h.ConnectPool(t.Context(), pool, uuid.Nil, 0))
	requireCode(t, CodeAttached, h.AttachDomain(t.Context(), next, domains[1]))
	require.NoError(t, h.DetachDomain(t.Context(), pool, domains[1]), "its pool is gone")
	require.NoError(t, h.AttachDomain(t.Context(), next, domains[1]))
	require.NoError(t, h.ActivateDomain(t.Context(), next, domains[1]))
	require.Equal(t, []string{"web2"}, volumeNames(t, h))
	require.EqualValues(t, 200*mib, extend(t, h, w.VolumeUUID, 200*mib, 0))
}

// What is not a domain of ours is refused, and nothing is written.
func TestImportRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m domainMeta) []byte // of the metadata
		code   Code
		says   string
	}{
		"another type":  {func(m domainMeta) []byte { m[keyType] = "NFS"; return m.encode() }, CodeForeign, `type "NFS"`},
		"an ISO domain": {func(m domainMeta) []byte { m[keyClass] = "Iso"; return m.encode() }, CodeForeign, `class "Iso"`},
		"newer version": {func(m domainMeta) []byte { m[keyVersion] = "6"; return m.encode() }, CodeNewerVersion, "newer than 5"},
		"older version": {func(m domainMeta) []byte { m[keyVersion] = "4"; return m.encode() }, CodeUnsupported, "upgrade it"},
		"torn":          {func(m domainMeta) []byte { return m.encode()[:300] }, CodeDamaged, "truncated"},
		"damaged":       {func(m domainMeta) []byte { b := m.encode(); b[len(b)-2] ^= 1; return b }, CodeDamaged, "damaged"},
		"another name":  {func(m domainMeta) []byte { m[keySDUUID] = uuid.NewString(); return m.encode() }, CodeDamaged, "the name of the directory"},
		"bad members":   {func(m domainMeta) []byte { m[keyPoolDomains] = "x:Active"; return m.encode() }, CodeDamaged, keyPoolDomains},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			h := openHost(t, root)
			d := makeDomain(t, h, root, "a")
			pool := makePool(t, h, d)
			require.NoError(t, h.Close())
			path := domainDir(filepath.Join(root, "a", d.String())).metadata()
			meta, err := readDomain(domainDir(filepath.Dir(filepath.Dir(path))))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, c.change(meta), 0o600))
			before := tree(t, root)

			h = openHost(t, root)
			makeDir(t, h, root, "a")
			if name != "bad members" {
				requireCode(t, c.code, second(h.DomainInfo(t.Context(), d)))
				requireCode(t, c.code, h.FormatDomain(t.Context(), d))
				err = h.CreatePool(t.Context(), CreatePool{ID: uuid.New(), Master: d, Domains: []uuid.UUID{d}, MasterVersion: 1})
				requireCode(t, c.code, err)
				require.ErrorContains(t, err, c.says)
				requireCode(t, c.code, h.CreateDomain(t.Context(), CreateDomain{Type: DomainLocal, ID: uuid.New(), Where: filepath.Join(root, "a")}))
			}
			require.Error(t, h.ConnectPool(t.Context(), pool, uuid.Nil, 0))
			require.ErrorContains(t, h.ConnectPool(t.Context(), pool, uuid.Nil, 0), c.says)
			require.Equal(t, before, tree(t, root))
		})
	}
}

// A volume group of oVirt is left alone, and so is one whose tags are torn.
func TestImportRefusesGroups(t *testing.T) {
	root := t.TempDir()
	ovirt, torn := namedGroup(t, "ovirt", 8), namedGroup(t, "torn", 8)
	id := uuid.New()
	ovirt.state.Tags = []string{tagOVirt, "MDT_SDUUID=" + id.String(), "MDT_TYPE=FCP"}
	meta := newDomainMeta(testDomain, "", 0)
	meta[keyType] = typeGroup
	torn.state.Tags = append(meta.tags()[1:], tagDomain)
	ovirt.live(0)
	torn.live(0)
	h := openHost(t, root, func(o *HostOptions) {
		o.Devices = []string{"/dev/one", "/dev/two"}
		o.Groups = fakeGroups{"/dev/one": ovirt, "/dev/two": torn}
	})
	connect(t, h, DomainBlock, "/dev/two, /dev/one")
	requireCode(t, CodeForeign, second(h.DomainInfo(t.Context(), id)))
	requireCode(t, CodeForeign, h.CreateDomain(t.Context(), CreateDomain{Type: DomainBlock, ID: uuid.New(), Where: "ovirt"}))
	requireCode(t, CodeDamaged, second(h.DomainInfo(t.Context(), testDomain)))
	requireCode(t, CodeDamaged, h.CreateDomain(t.Context(), CreateDomain{Type: DomainBlock, ID: uuid.New(), Where: "torn"}))
	all, err := h.Domains(t.Context(), uuid.Nil)
	require.NoError(t, err)
	require.Empty(t, all)
}

// Nothing beyond the roots and the devices can be connected.
func TestConnectionsAreConfined(t *testing.T) {
	outside, root := t.TempDir(), t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "dir"), 0o755))
	require.NoError(t, os.Symlink(outside, filepath.Join(root, "link")))
	require.NoError(t, os.Symlink("dir", filepath.Join(root, "inner")))
	require.NoError(t, os.WriteFile(filepath.Join(root, "file"), nil, 0o600))
	h := openHost(t, root, func(o *HostOptions) { o.Devices = []string{"/dev/one"} })
	for address, code := range map[string]Code{
		outside:                 CodeOutsideRoots,
		root + "/link":          CodeOutsideRoots,
		root + "/inner":         CodeOutsideRoots,
		root + "/../" + outside: CodeOutsideRoots,
		root + "/dir/../..":     CodeOutsideRoots,
		root + "x":              CodeOutsideRoots,
		root + "/file":          CodeInvalid,
		root + "/nothing":       CodeNotFound,
		"dir":                   CodeInvalid,
		"":                      CodeInvalid,
	} {
		requireCode(t, code, connectError(t, h, address))
	}
	for _, address := range []string{root, root + "/dir", root + "/dir/", root + "/./dir"} {
		require.NoError(t, connectError(t, h, address))
	}
	require.Len(t, h.connections, 2, "a connection that is there is not made again")
	r, err := h.ConnectServer(t.Context(), DomainBlock, []Connection{{Address: "/dev/two"}, {Address: "/dev/one,/dev/two"}, {Address: ""}, {Address: "/dev/one"}})
	require.NoError(t, err)
	for _, r := range r[:3] {
		requireCode(t, CodeOutsideRoots, r.Err)
	}
	require.NoError(t, r[3].Err)
	requireCode(t, CodeUnsupported, second(h.ConnectServer(t.Context(), "NFS", nil)))

	// Nor does a domain lead out of them.
	away := makeDomain(t, h, root, "linked")
	images := domainDir(filepath.Join(root, "linked", away.String())).images()
	require.NoError(t, os.Remove(images))
	require.NoError(t, os.Symlink(outside, images))
	requireCode(t, CodeForeign, second(h.DomainInfo(t.Context(), away)))
	requireCode(t, CodeForeign, h.FormatDomain(t.Context(), away))

	// A directory that is replaced after it was connected is not the one.
	d := makeDomain(t, h, root, "swap")
	require.NoError(t, os.Rename(filepath.Join(root, "swap"), filepath.Join(root, "kept")))
	require.NoError(t, os.Symlink(filepath.Join(root, "kept"), filepath.Join(root, "swap")))
	err = second(h.DomainInfo(t.Context(), d))
	requireCode(t, CodeUnknownDomain, err)
	require.ErrorContains(t, err, "not the directory that was connected")
}

func TestDisconnectServer(t *testing.T) {
	root := t.TempDir()
	h, pool, domains := managed(t, root)
	bye := func(name string) error {
		r, err := h.DisconnectServer(t.Context(), DomainLocal, []Connection{{Address: filepath.Join(root, name)}})
		require.NoError(t, err)
		return r[0].Err
	}
	requireCode(t, CodeActive, bye("b"))
	require.NoError(t, bye("nothing"))
	require.NoError(t, h.DeactivateDomain(t.Context(), pool, domains[1], uuid.Nil, 0))
	require.NoError(t, bye("b"))
	requireCode(t, CodeUnknownDomain, h.ActivateDomain(t.Context(), pool, domains[1]))
	require.Equal(t, DomainAttached, states(t, h, pool)[domains[1]], "it stays what the master says")

	// A domain that is not there keeps nobody from the others.
	require.NoError(t, h.StopSPM(t.Context(), pool))
	require.NoError(t, bye("c"))
	startSPM(t, h, pool)
	require.Equal(t, DomainUnknown, states(t, h, pool)[domains[2]])
	requireCode(t, CodeNotActive, second(h.manager(domains[2])))
	makeDir(t, h, root, "c")
	require.NoError(t, h.ActivateDomain(t.Context(), pool, domains[2]))
	require.NoError(t, second(h.manager(domains[2])))
}

// What is not connected, or no device of the host, is no error, and is told from what has
// been disconnected.
func TestDisconnectWhatIsNotConnected(t *testing.T) {
	root := t.TempDir()
	h := openHost(t, root)
	for kind, address := range map[DomainType]string{DomainLocal: "/nowhere", DomainBlock: "/dev/nix"} {
		r, err := h.DisconnectServer(t.Context(), kind, []Connection{{Address: address}})
		require.NoError(t, err)
		require.Equal(t, []ConnectionResult{{Was: true}}, r)
	}
	for _, was := range []bool{false, true} {
		r, err := h.ConnectServer(t.Context(), DomainLocal, []Connection{{Address: root}})
		require.NoError(t, err)
		require.Equal(t, []ConnectionResult{{Was: was}}, r)
	}
}
