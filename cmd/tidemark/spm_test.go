package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/hostfile"
	"tidemark/internal/testenv"
	"tidemark/nbd"
	"tidemark/qcow2"
	"tidemark/spm"
)

// startSPM starts a manager as a process and waits until it answers.
func startSPM(t testing.TB, dir string, args ...string) (*testenv.Process, *spm.Client) {
	t.Helper()
	p := testenv.Start(t, tidemark(t, append([]string{"spm", "--dir", dir}, args...)...))
	awaitOutput(t, p, "ready: pool of")
	c, err := spm.Dial(filepath.Join(dir, "spm.sock"))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return p, c
}

func TestSPMMistakes(t *testing.T) {
	dir := t.TempDir()
	pool := filepath.Join(dir, "pool")
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	long := filepath.Join(dir, strings.Repeat("x", 120))
	for _, c := range []struct{ args, want string }{
		{"", "where is the pool? give --dir DIR"},
		{"--dir POOL", "give --capacity SIZE"},
		{"--dir POOL --capacity 127M", "expected at least 128 MiB"},
		{"--dir POOL --capacity much", "--capacity much"},
		{"--vg vg0", "on which devices? give --devices"},
		{"--vg a/b --devices /dev/sda", "expected the name of a volume group"},
		{"--vg vg0 --devices sda", "expected an absolute path"},
		{"--vg vg0 --devices FILE", "expected a block device; losetup"},
		{"--vg vg0 --devices POOL/sdx --create", "there is no such device; lsblk"},
		{"--vg vg0 --devices /dev/sda --dir POOL", "two pools"},
		{"--vg vg0 --devices /dev/sda --capacity 1G", "vgextend makes it larger"},
		{"--dir POOL --devices /dev/sda", "give --vg NAME, too"},
		{"--dir POOL --create", "give --vg NAME, too"},
		{"--create", "give --vg NAME, too"},
		{"--dir POOL --root /srv", "leave --dir and --vg out"},
		{"--root /srv --capacity 1G", "give --dir DIR, too"},
		{"--root /nowhere/at/all", "no such file"},
		{"--dir POOL --patience -5s", "--patience -5s: expected more than nothing"},
		{"--dir POOL --capacity 1G vg0", `found the argument "vg0"`},
		{"--dir POOL --capacity 1G --nix", "unknown flag: --nix"},
		{"--dir FILE --capacity 1G", "choose a directory, not a file"},
		{"--dir /sys/tidemark --capacity 1G", "choose a directory that you may write to"},
		{"--dir POOL --capacity 1G --socket FILE", "not a socket"},
		{"--dir POOL --capacity 1G --socket LONG", "107 bytes"},
		{"--dir POOL --capacity 512M", "may only be raised"},
		{"--dir POOL --log-level loud", "--log-level loud: expected debug"},
	} {
		line := strings.NewReplacer("POOL", pool, "FILE", file, "LONG", long).Replace(c.args)
		code, stdout, stderr := inProcess(t, append([]string{"spm"}, strings.Fields(line)...)...)
		require.Equal(t, exitFailure, code, c.args)
		require.Contains(t, stderr, c.want, c.args)
		require.Empty(t, stdout, c.args)
	}
}

// A device that holds something is not taken for a group, and what to do is told.
func TestSPMCreatesOnNothingOnly(t *testing.T) {
	testenv.Tool(t, "lvm")
	d := testenv.Loop(t, 64<<20)
	testenv.Run(t, testenv.Tool(t, "mkfs.ext4"), "-q", d.Path)
	code, _, stderr := inProcess(t, "spm", "--vg", "tidemark-nothing", "--devices", d.Path)
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, "have it made of them with --create")
	code, _, stderr = inProcess(t, "spm", "--vg", "tidemark-nothing", "--devices", d.Path, "--create")
	require.Equal(t, exitFailure, code)
	require.Contains(t, stderr, "wipefs -a DEVICE")
	testenv.Run(t, testenv.Tool(t, "e2fsck"), "-fn", d.Path)
}

// TestSPMStops: SIGTERM answers what is held, ends the process with success and
// removes the socket; the pool is there the next time, also without --capacity.
func TestSPMStops(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	p, c := startSPM(t, dir, "--capacity", "256M")
	require.Contains(t, p.Output(), "volume create --spm "+filepath.Join(dir, "spm.sock"))
	_, err := c.CreateVolume(t.Context(), spm.VolumeCreateRequest{Name: "a", Size: 1 << 30})
	require.NoError(t, err)

	held := make(chan error, 1)
	go func() {
		_, err := c.ExtendVolume(context.Background(), spm.VolumeExtendRequest{
			VolumeRef: spm.VolumeRef{Volume: "a"}, Need: 512 << 20, WaitMS: 60_000,
		})
		held <- err
	}()
	testenv.Eventually(t, serveLimit, "the request is held", func() bool {
		r, err := c.GetPoolInfo(t.Context(), spm.PoolInfoRequest{})
		return err == nil && len(r.Waiting) == 1
	})
	require.NoError(t, p.Signal(syscall.SIGTERM))
	require.Equal(t, spm.CodeStopping, spm.CodeOf(<-held), "an answer, not a broken connection")
	require.NoError(t, p.Wait(t, serveLimit))
	require.NoFileExists(t, filepath.Join(dir, "spm.sock"))

	_, c = startSPM(t, dir)
	l, err := c.ListVolumes(t.Context(), spm.VolumeListRequest{})
	require.NoError(t, err)
	require.Len(t, l.Volumes, 1)
}

// TestSPMKilled: the manager is killed under a writer, who goes on, waits when
// the volume is full, and ends when the next manager is there.
func TestSPMKilled(t *testing.T) {
	const total = 512 << 20
	dir := filepath.Join(t.TempDir(), "pool")
	socket := filepath.Join(t.TempDir(), "nbd.sock")
	manager, c := startSPM(t, dir, "--capacity", "2G")
	v, err := c.CreateVolume(t.Context(), spm.VolumeCreateRequest{Name: "a", Size: 10 << 30})
	require.NoError(t, err)
	server := testenv.Start(t, tidemark(t, "nbd", "--spm", filepath.Join(dir, "spm.sock"), "-t", "-k", socket, "a"))
	testenv.Eventually(t, serveLimit, "the export is there", func() bool {
		_, err := nbd.Info(t.Context(), "unix", socket, "", nil)
		return err == nil
	})
	client, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	defer client.Close()

	seed, _ := testenv.Seed(t)
	written := make(chan error, 1)
	go func() {
		written <- each(context.Background(), []*nbd.Client{client}, total, func(ctx context.Context, c *nbd.Client, p []byte, off int64) error {
			pattern(p, seed, off)
			return c.WriteAt(ctx, p, off, 0)
		})
	}()
	testenv.Eventually(t, serveLimit, "the volume is extended", func() bool { return lengthOf(t, v.Path) > v.Granted })
	manager.Kill()
	awaitOutput(t, server, "writes wait for space") // it has used up what it had
	before := lengthOf(t, v.Path)
	select {
	case err := <-written:
		t.Fatalf("the writer did not wait: %v", err)
	default:
	}

	_, c = startSPM(t, dir)
	require.NoError(t, <-written)
	require.NoError(t, client.Flush(t.Context()))
	info, err := c.GetVolumeInfo(t.Context(), spm.VolumeInfoRequest{VolumeRef: spm.VolumeRef{Volume: "a"}})
	require.NoError(t, err)
	pool, err := c.GetPoolInfo(t.Context(), spm.PoolInfoRequest{})
	require.NoError(t, err)
	require.Equal(t, lengthOf(t, v.Path), info.Granted)
	require.Equal(t, pool.Granted, info.Granted, "nothing was counted twice")
	require.Greater(t, info.Granted, before)
	require.LessOrEqual(t, info.Granted, int64(total+512<<20))

	d := &demo{o: demoOptions{size: total, seed: seed}, out: new(strings.Builder)}
	require.NoError(t, d.compare(t.Context(), []*nbd.Client{client}))
	require.NoError(t, server.Signal(syscall.SIGTERM))
	require.NoError(t, server.Wait(t, serveLimit))
	requireClean(t, v.Path)
}

// A write to a full pool waits as long as the pool says, unless the server of the
// volume says otherwise.
func TestPatienceOfThePool(t *testing.T) {
	const ofThePool, ofTheServer = 500 * time.Millisecond, 4 * time.Second
	dir := filepath.Join(t.TempDir(), "pool")
	_, c := startSPM(t, dir, "--capacity", "128M", "--patience", ofThePool.String())
	_, err := c.CreateVolume(t.Context(), spm.VolumeCreateRequest{Name: "a", Size: 1 << 30})
	require.NoError(t, err)
	socket := filepath.Join(dir, "spm.sock")
	for _, own := range []time.Duration{0, ofTheServer} {
		args := []string{"-t", "--spm", socket, "a"}
		if own != 0 {
			args = append(args, "--patience", own.String())
		}
		p, socket := startNBD(t, args...)
		client := dialNBD(t, socket, "")
		var took time.Duration
		for off := int64(0); err == nil; off += 1 << 20 {
			began := time.Now()
			err = client.WriteAt(t.Context(), make([]byte, 1<<20), off, 0)
			took = time.Since(began)
		}
		require.ErrorIs(t, err, block.ErrNoSpace)
		err = nil
		if own == 0 {
			require.Less(t, took, ofTheServer, "the pool's")
		} else {
			require.GreaterOrEqual(t, took, own-10*time.Millisecond, "its own")
		}
		stopped(t, p)
	}
}

func lengthOf(t testing.TB, path string) int64 {
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}

// requireClean checks the image in the file at path.
func requireClean(t testing.TB, path string) {
	t.Helper()
	f, err := hostfile.Open(path, hostfile.Options{ReadOnly: true})
	require.NoError(t, err)
	defer f.Close()
	r, err := qcow2.Check(context.Background(), f, qcow2.CheckOptions{})
	require.NoError(t, err)
	require.True(t, r.Clean(), "%+v", r)
}

// TestHostFull: a pool that promises more than its file system has says which of
// the two limits was met.
func TestHostFull(t *testing.T) {
	m, err := spm.OpenDir(t.TempDir(), spm.HostOptions{Options: spm.Options{
		Capacity: 1 << 40, Images: images{}, Log: slog.New(slog.DiscardHandler),
		HostFree: func(string) (int64, error) { return 100 << 20, nil },
	}})
	require.NoError(t, err)
	defer m.Close()
	_, err = m.CreateVolume(t.Context(), spm.VolumeCreateRequest{Name: "a", Size: 1 << 30})
	require.ErrorContains(t, adviseFull(t.Context(), m, err), "can carry only 100 MiB: free some space there")
}
