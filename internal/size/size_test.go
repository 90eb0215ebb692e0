package size_test

import (
	"math"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/size"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "512": 512, "512b": 512, "512B": 512, "1k": 1024, "1K": 1024, "64k": 65536,
		"10G": 10 << 30, "10g": 10 << 30, "1.5T": 3 << 39, "0.5k": 512, "2P": 2 << 50, "7E": 7 << 60,
		"10GiB": 10 << 30, "007M": 7 << 20, "1.0": 1,
		"1.1G": 1181116006, "0.3k": 307, "2.2T": 2418925581107,
		"9223372036854775807": math.MaxInt64, "7.9999999999999999991326E": math.MaxInt64 - 1,
	} {
		got, err := size.Parse(s)
		require.NoError(t, err, s)
		require.Equal(t, want, got, s)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, s := range []string{
		"", " ", "G", "-1", "+1", " 1", "1 ", "1 G", "1X", "1GB", "1Gi", "1biB", "1.", ".5G", "1..5G", "1.5.5",
		"0x10", "1e3", "1_000", "10/2", "1.5", "1.5b", "٣", "1kk", "infinity", "nan",
	} {
		_, err := size.Parse(s)
		require.ErrorIs(t, err, size.ErrSyntax, "%q", s)
		require.Contains(t, err.Error(), strconv.Quote(s))
	}
	for _, s := range []string{"8E", "9223372036854775808", "8388608T", "99999999999999999999999E"} {
		_, err := size.Parse(s)
		require.ErrorIs(t, err, size.ErrTooLarge, s)
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 512: "512 B", 10 << 30: "10 GiB", 3 << 29: "1.5 GiB", -1024: "-1.0 KiB", math.MinInt64: "-8.0 EiB"} {
		require.Equal(t, want, size.Format(n))
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10G", "1.5T", "512", "8E", "0.0000001E", "1GiB", "..", "b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := size.Parse(s)
		if err != nil {
			require.Zero(t, n)
			return
		}
		require.GreaterOrEqual(t, n, int64(0))
		again, err := size.Parse(strconv.FormatInt(n, 10))
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}
