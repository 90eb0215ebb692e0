package guest

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	require.NoError(t, a.file("usr/bin/x", 5, strings.NewReader("hello")))
	require.NoError(t, a.file("usr/bin/y", 0, strings.NewReader("")))
	require.ErrorContains(t, a.file("z", 2, strings.NewReader("z")), "expected 2 bytes, found 1")
	require.NoError(t, a.close())
	require.Zero(t, b.Len()%512)
	s := b.String()
	// A directory: header of 110 bytes, "usr" and a zero, and two bytes of padding.
	require.Equal(t, "070701"+"00000001"+"000041ed", s[:22])
	require.Equal(t, "usr\x00\x00\x00070701", s[110:122])
	require.Contains(t, s, "usr/bin/x\x00hello\x00\x00\x00070701")
	require.Contains(t, s, "TRAILER!!!\x00")
	require.Equal(t, 1, strings.Count(s, "usr\x00"), "a directory once")
}
