//go:build linux

package main_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/block/blocktest"
	"tidemark/internal/hostfile"
	"tidemark/internal/unixsock"
	"tidemark/nbd"
	"tidemark/qcow2"
)

// The conformance suite from end to end: a client, a server, an image, a file.
func TestNBDDeviceConformance(t *testing.T) {
	for _, row := range []struct {
		name   string
		image  qcow2.CreateOptions
		client nbd.ClientOptions
	}{
		{"512", qcow2.CreateOptions{ClusterSize: 512}, nbd.ClientOptions{}},
		{"64K", qcow2.CreateOptions{}, nbd.ClientOptions{NoStructured: true, UseExportName: true}},
		{"2M", qcow2.CreateOptions{ClusterSize: 2 << 20}, nbd.ClientOptions{}},
	} {
		t.Run(row.name, func(t *testing.T) {
			blocktest.TestDevice(t, func(t *testing.T, size int64) block.Device {
				row.image.Size = size
				return dialImage(t, row.image, row.client, func(f block.File) block.File { return f })
			})
		})
	}
}

// dialImage makes an image in a wrapped file, serves it in this process and
// connects to it.
func dialImage(t *testing.T, o qcow2.CreateOptions, c nbd.ClientOptions, wrap func(block.File) block.File) *nbd.Client {
	t.Helper()
	dir := shortDir(t)
	f, err := hostfile.Create(dir+"/disk.qcow2", 0, hostfile.CreateOptions{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(t.Context(), f, o))
	image, err := qcow2.Open(t.Context(), wrap(f), qcow2.Options{})
	require.NoError(t, err)
	server := nbd.NewServer(nbd.Options{})
	require.NoError(t, server.AddExport(nbd.Export{Device: image}))
	l, err := unixsock.Listen(dir+"/s", unixsock.Options{})
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	client, err := nbd.Dial(t.Context(), "unix", dir+"/s", c)
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = client.Close()                                        // most tests have closed it
		require.NoError(t, server.Shutdown(context.Background())) // t.Context has ended
		require.NoError(t, <-served)
		require.NoError(t, image.Close())
		r, err := qcow2.Check(context.Background(), f, qcow2.CheckOptions{})
		require.NoError(t, err)
		require.True(t, r.Clean(), "%+v", r)
		require.NoError(t, f.Close())
	})
	return client
}

// slowFile is storage whose sync takes its time.
type slowFile struct{ block.File }

func (f slowFile) Sync() error {
	time.Sleep(150 * time.Millisecond) // the storage's, nobody waits for the test
	return f.File.Sync()
}

// Slow storage is not a full one: however many writes are on their way, none is
// told that there is no space.
func TestNBDSlowStorageIsNotFull(t *testing.T) {
	const writes, size = 32, 64 << 10
	c := dialImage(t, qcow2.CreateOptions{Size: writes * size}, nbd.ClientOptions{}, func(f block.File) block.File { return slowFile{f} })
	results := make(chan error, writes)
	for i := range int64(writes) {
		go func() { results <- c.WriteAt(t.Context(), patterned(1, i*size, size), i*size, 0) }()
	}
	for range writes {
		require.NoError(t, <-results)
	}
	requirePattern(t, c, 1, 0, writes*size)
}
