//go:build linux

package main_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/nbd"
)

// A served image is refused a larger disk in a full domain before anything has changed,
// also when the space that it lacks is what its server has reserved and not used yet.
func TestServedImageIsNotExtendedInAFullDomain(t *testing.T) {
	const capacity, room, size = 2 * chunk, 24 * mib, 1 << 30
	h := newVDSMHost(t)
	h.capacity = fmt.Sprint(capacity)
	domain := h.newDomains(h.newDir("domain"))[0]
	image, leaf := uuid.NewString(), uuid.NewString()
	volume := func() vdsmVolume {
		all := h.volumes(domain)
		i := slices.IndexFunc(all, func(v vdsmVolume) bool { return v.ID == leaf })
		require.GreaterOrEqual(t, i, 0)
		return all[i]
	}
	h.run("createVolume", h.newVolume(domain, image, leaf, size, nil))
	h.run("reduceVolume", h.at(domain, image, leaf))
	ballast := capacity - bytesOf(t, volume().Granted) - room
	h.run("createVolume", h.newVolume(domain, uuid.NewString(), uuid.NewString(), ballast,
		arguments{"volFormat": "RAW", "preallocate": "PREALLOCATED"}))
	_, socket := h.prepare(domain, image)
	conn, err := nbd.Dial(t.Context(), "unix", socket, nbd.ClientOptions{})
	require.NoError(t, err)
	defer conn.Close() //nolint:errcheck // the server has ended, or the test has
	s := exportOf(t, socket)
	for at := int64(0); s.End+mib <= s.Granted; at += 64 << 10 {
		require.Less(t, at, int64(room))
		require.NoError(t, conn.WriteAt(t.Context(), patterned(1, at, 64<<10), at, 0))
		s = exportOf(t, socket)
	}
	require.Less(t, s.Used+2*mib, s.Granted, "the server has used what it has reserved")

	a := h.at(domain, image, leaf)
	a["newSize"] = fmt.Sprint(2 * size)
	id := h.begin("extendVolumeSize", a)
	r := h.await(id)
	require.ErrorContains(t, fmt.Errorf("%s", r.Message), "can be granted")
	require.Equal(t, fmt.Sprint(size), volume().Capacity)
	require.EqualValues(t, size, exportOf(t, socket).Size)
	h.do("clearTask", arguments{"taskID": id})
	h.teardown(domain, image)
}

// A servedExport is what a server says of its disk, in bytes.
type servedExport struct {
	Size    int64 `json:"size"`
	End     int64 `json:"end"`
	Used    int64 `json:"used"`
	Granted int64 `json:"granted"`
}

// exportOf asks on the control socket beside the NBD socket of a server.
func exportOf(t testing.TB, socket string) servedExport {
	t.Helper()
	control := filepath.Join(filepath.Dir(socket), "control.sock")
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", control)
	}}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://control/", nil)
	require.NoError(t, err)
	answer, err := c.Do(r)
	require.NoError(t, err)
	defer answer.Body.Close() //nolint:errcheck // it was read
	var s struct {
		Exports []servedExport `json:"exports"`
	}
	require.NoError(t, json.NewDecoder(answer.Body).Decode(&s))
	require.Len(t, s.Exports, 1)
	return s.Exports[0]
}
