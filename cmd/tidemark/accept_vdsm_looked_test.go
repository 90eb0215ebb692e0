//go:build linux

package main_test

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// once is what look says of a chain of volumes. Sweeps of deaths come to the same files
// hundreds of times: QEMU looks at each of their states once, and nobody at names, times
// or anything else than the bytes. What lies on a group is looked at each time.
func (w *world) once(n int, what string, chain []vdsmVolume, look func() string) string {
	w.t.Helper()
	if _, group := w.places[n].(*groupPool); group {
		return look()
	}
	key := what
	for _, v := range chain {
		key += fmt.Sprintf(" %s/%s:%s:%x", v.Image, v.ID, v.Format, w.digest(v.Path))
	}
	said, known := w.looked[key]
	if !known {
		said = look()
		w.looked[key] = said
	}
	return said
}

// digest is one of a file's length and data, with where that lies.
func (w *world) digest(path string) []byte {
	w.t.Helper()
	f, err := os.Open(path)
	require.NoError(w.t, err)
	defer f.Close() //nolint:errcheck // it was read only
	st, err := f.Stat()
	require.NoError(w.t, err)
	sum := sha256.New()
	require.NoError(w.t, binary.Write(sum, binary.LittleEndian, st.Size()))
	for end := int64(0); ; {
		at, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return sum.Sum(nil)
		}
		require.NoError(w.t, err)
		end, err = unix.Seek(int(f.Fd()), at, unix.SEEK_HOLE)
		require.NoError(w.t, err)
		require.NoError(w.t, binary.Write(sum, binary.LittleEndian, at))
		_, err = io.Copy(sum, io.NewSectionReader(f, at, end-at))
		require.NoError(w.t, err)
	}
}
