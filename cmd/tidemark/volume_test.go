package main

import (
	"encoding/json"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/hostfile"
	"tidemark/spm"
)

// testPool is a pool that answers on the socket it returns.
func testPool(t *testing.T, capacity int64) (*pool, string) {
	t.Helper()
	p, err := openPool(&poolOptions{dir: t.TempDir(), capacity: bytesFlag(capacity)}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return p, p.socket
}

// volumeVerb runs tidemark volume and expects success.
func volumeVerb(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := inProcess(t, append([]string{"volume"}, args...)...)
	require.Zero(t, code, "%q: %s", args, stderr)
	require.Empty(t, stderr)
	return stdout
}

func TestVolumeVerbs(t *testing.T) {
	_, socket := testPool(t, 1<<30)
	t.Setenv("TIDEMARK_SPM", socket)
	require.Contains(t, volumeVerb(t, "list"), "no volumes yet; make one with: tidemark volume create --size SIZE NAME\npool ")

	require.Contains(t, volumeVerb(t, "create", "--size", "10G", "disk1"), "created disk1: 10 GiB, 128 MiB granted; serve it with: ")
	var raw spm.Volume
	require.NoError(t, json.Unmarshal([]byte(volumeVerb(t, "create", "--size", "256M", "--format=raw", "r", "--output=json")), &raw))
	require.Equal(t, "raw", raw.Format)
	require.EqualValues(t, 256<<20, raw.Granted)

	var odd spm.Volume
	require.NoError(t, json.Unmarshal([]byte(volumeVerb(t, "create", "--size", "1.1k", "odd", "--output=json")), &odd))
	require.EqualValues(t, 1536, odd.Size, "whole sectors, as tidemark create makes them")
	volumeVerb(t, "remove", "odd")

	list := volumeVerb(t, "list")
	require.Contains(t, list, "NAME   FORMAT  VIRTUAL  GRANTED  ALLOCATED  BOUND    EXTENSIONS\n")
	require.Contains(t, list, "disk1  qcow2   10 GiB   128 MiB  ")
	require.Contains(t, list, "1.0 GiB, 384 MiB granted, 640 MiB free\n")
	var all []spm.Volume
	require.NoError(t, json.Unmarshal([]byte(volumeVerb(t, "list", "--output=json")), &all))
	require.Len(t, all, 2)

	require.Equal(t, "disk1 has 300 MiB granted, of at most 10 GiB\n", volumeVerb(t, "extend", "disk1", "300M"))
	require.Equal(t, "disk1 has 300 MiB granted, of at most 10 GiB\n", volumeVerb(t, "extend", "disk1", "1M"), "never smaller")
	var info spm.Volume
	require.NoError(t, json.Unmarshal([]byte(volumeVerb(t, "info", all[0].ImageUUID, "--output", "json")), &info))
	require.EqualValues(t, 300<<20, info.Granted)
	require.EqualValues(t, 1, info.Extensions)
	require.Contains(t, volumeVerb(t, "info", "disk1"), "virtual     10 GiB (10737418240 bytes)\n")
	requireClean(t, info.Path)

	require.Equal(t, "removed disk1, 300 MiB are free again\n", volumeVerb(t, "remove", "disk1"))
	var removed spm.VolumeRemoveReply
	require.NoError(t, json.Unmarshal([]byte(volumeVerb(t, "remove", "--output=json", "r")), &removed))
	require.EqualValues(t, 256<<20, removed.Freed)
}

func TestVolumeMistakes(t *testing.T) {
	p, socket := testPool(t, 256<<20)
	_, err := p.CreateVolume(t.Context(), spm.VolumeCreateRequest{Name: "disk1", Size: 1 << 30})
	require.NoError(t, err)
	v, err := p.Volume(t.Context(), spm.VolumeRef{Volume: "disk1"})
	require.NoError(t, err)
	held, err := hostfile.Open(v.Path(), hostfile.Options{Fixed: true})
	require.NoError(t, err)
	defer held.Close()
	gone := filepath.Join(t.TempDir(), "spm.sock")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"frob"}, `there is no verb "frob": expected create, list, info, extend, remove, watch, snapshot, merge, `},
		{[]string{"create", "--size", "1G"}, "expected NAME"},
		{[]string{"create", "b"}, "give --size SIZE, such as --size 10G"},
		{[]string{"create", "--size", "lots", "b"}, `--size lots: "lots": not a size: expected a number`},
		{[]string{"create", "--size", "0", "b"}, "expected more than 0"},
		{[]string{"create", "--size", "2P", "b"}, "expected a multiple of 512"},
		{[]string{"create", "--size", "9223372036854775807", "b"}, "too large"},
		{[]string{"create", "--size", "1G", "disk1"}, "has that name already: choose another"},
		{[]string{"create", "--size", "1G", "a/b"}, "name"},
		{[]string{"create", "--size", "1G", "--format", "vmdk", "b"}, "expected qcow2 or raw"},
		{[]string{"create", "--size", "1G", "--format", "raw", "b"}, "remove a volume or raise the capacity"},
		{[]string{"info", "nix"}, "there are disk1"},
		{[]string{"extend", "disk1"}, "expected NAME SIZE"},
		{[]string{"extend", "disk1", "1X"}, "not a size"},
		{[]string{"extend", "disk1", "512M"}, "the pool is full"},
		{[]string{"extend", "disk1", "100G"}, "its bound is"},
		{[]string{"remove", "disk1"}, "stop who has it open, then repeat"},
		{[]string{"remove", "nix"}, "there are disk1"},
		{[]string{"list", "disk1"}, "takes options only"},
		{[]string{"list", "--output", "xml"}, "expected human or json"},
		{[]string{"list", "--spm", gone}, "there is no such socket: start the manager with: tidemark spm --dir DIR --socket " + gone},
	} {
		t.Setenv("TIDEMARK_SPM", socket)
		code, stdout, stderr := inProcess(t, append([]string{"volume"}, c.args...)...)
		require.Equal(t, exitFailure, code, c.args)
		require.Contains(t, stderr, c.want, c.args)
		require.Empty(t, stdout, c.args)
	}
	t.Setenv("TIDEMARK_SPM", "")
	_, _, stderr := inProcess(t, "volume", "list")
	require.Contains(t, stderr, "give --spm PATH, the socket of its manager, or set TIDEMARK_SPM")
	l, err := p.ListVolumes(t.Context(), spm.VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, l.Volumes, 1, "a refused request changes nothing")
}
