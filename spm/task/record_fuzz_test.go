package task

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
)

// The largest record that the engine makes fits into every store.
func TestLargestRecord(t *testing.T) {
	for _, c := range []string{"a", "<", "\"", "\x00", "ü", "\u2028", "\xff", "𝄞", "&\n"} {
		f := &Failure{-1 << 62, shorten(strings.Repeat(c, 1<<20), messageMax)}
		p, err := json.Marshal(f.Message)
		require.NoError(t, err)
		require.LessOrEqual(t, len(p), messageMax, "%q", c)
		require.Greater(t, len(p), messageMax/7, "%q", c)
		r := Record{
			Version: recordVersion, ID: uuid.New(), Kind: strings.Repeat("k", 100), State: Recovering, Step: 1 << 30, Undo: true,
			Args:   json.RawMessage(`"` + strings.Repeat("a", argsMax-2) + `"`),
			Result: json.RawMessage(`"` + strings.Repeat("a", resultMax-2) + `"`),
			Error:  f, Blocked: f, Created: time.Now(), Ended: time.Now(),
		}
		p, err = encode(r)
		require.NoError(t, err)
		_, err = decode(p)
		require.NoError(t, err)
	}
	require.Equal(t, "short \"<", shorten("short \"<", messageMax))
}

func TestDecodeRefuses(t *testing.T) {
	id := uuid.New().String()
	for p, want := range map[string]string{
		``:              "not a record",
		`null`:          "version 0",
		`{}`:            "version 0",
		`[]`:            "not a record",
		`{"version":1}`: "without task_uuid",
		`{"version":-1,"task_uuid":"` + id + `"}`:                                                "version -1",
		`{"version":1,"task_uuid":"` + id + `","state":"queued"}`:                                "no kind",
		`{"version":1,"task_uuid":"` + id + `","state":"cleared","kind":"k"}`:                    "unknown state",
		`{"version":1,"task_uuid":"` + id + `","state":"queued","kind":"k","step":-1}`:           "step -1",
		`{"version":1,"task_uuid":"` + id + `","state":"queued","kind":7}`:                       id,
		`{"version":1,"task_uuid":"` + id + `","state":"queued","kind":"k"}{}`:                   "not a record",
		`{"version":1,"task_uuid":"` + id + `","state":"queued","kind":"k"` + "\x00\x00\x00":     "not a record",
		`{"version":1,"task_uuid":"` + id + `","kind":"` + strings.Repeat("k", recordMax) + `"}`: "at most",
	} {
		_, err := decode([]byte(p))
		require.ErrorContains(t, err, want, "%.100s", p)
	}
	r, err := decode([]byte(`{"version":9,"task_uuid":"` + id + `","state":"dancing","kind":{},"step":"x"}`))
	require.NoError(t, err, "of a newer version")
	require.Equal(t, 9, r.Version)
	require.Equal(t, id, r.ID.String())
}

// Whatever lies on the disk: no panic, and what is taken for a record is one that
// we would write.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"version":1,"task_uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","kind":"k","args":{"a":1},"state":"running","step":2,"created":"2026-01-01T00:00:00Z"}`))
	f.Add([]byte(`{"version":2,"task_uuid":"6ba7b810-9dad-11d1-80b4-00c04fd430c8"}`))
	f.Add([]byte(`{"version":1,"error":{"code":1,"message":"m"},"blocked":null,"result":[]}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decode(p)
		if err != nil || r.Version > recordVersion {
			return
		}
		if s := (shape{steps: 1}).at(r.at()); s == cleared {
			t.Fatalf("no situation for %+v", r)
		}
		q, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(q) > recordMax { // escapes, which we would have written already
			return
		}
		again, err := decode(q)
		if err != nil {
			t.Fatalf("%q became %q: %v", p, q, err)
		}
		if again.ID != r.ID || again.at() != r.at() {
			t.Fatalf("%+v became %+v", r, again)
		}
	})
}

// Whatever lies in a slot: no panic, and the copy that counts is a valid one of the
// highest generation.
func FuzzSlot(f *testing.F) {
	h := header{slots: 4, id: uuid.MustParse("6ba7b810-9dad-11d1-80b4-00c04fd430c8")}
	f.Add(copyOf{7, []byte("{}")}.encode(h, 1), copyOf{8, nil}.encode(h, 1), uint16(20), byte(0))
	f.Add(copyOf{1, []byte("{}")}.encode(h, 1), []byte{}, uint16(copySize+12), byte(0xff))
	f.Add(copyOf{1 << 63, []byte("{}")}.encode(h, 2), []byte{}, uint16(0), byte(0))
	f.Fuzz(func(t *testing.T, a, b []byte, at uint16, x byte) {
		p := make([]byte, slotSize)
		copy(p[:copySize], a)
		copy(p[copySize:], b)
		p[int(at)%slotSize] ^= x
		best, good, bad, err := choose(p, h, 1)
		if (bad > 0) != (err != nil) || good < 0 && len(best.record) > 0 {
			t.Fatalf("good %d, bad %d, %v", good, bad, err)
		}
		for k := range 2 {
			c, ours, err := decodeCopy(p[k*copySize:(k+1)*copySize], h, 1)
			if ours && err == nil && (good < 0 || c.generation > best.generation) {
				t.Fatalf("copy %d of generation %d does not count, but %d of %d", k, c.generation, good, best.generation)
			}
		}
		if _, err := decodeHeader(p, slotSize); err == nil {
			t.Fatal("a device without slots")
		}
	})
}
