package task_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
	"tidemark/internal/record"
	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
	"tidemark/spm/task"
)

var errDisk = errors.New("the disk is gone")

func logTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// The power is cut at every moment of a history of saves and deletes, with a
// choice of the sectors in flight. What was acknowledged is there, what was in
// progress has happened or has not, and the store goes on.
func TestBlockStorePowerCut(t *testing.T) {
	_, rng := testenv.Seed(t)
	o := simdisk.Options{Foreign: true}
	d := simdisk.New(0, o)
	_, err := d.Grow(t.Context(), 160<<10, 160<<10) // 4 slots
	require.NoError(t, err)
	require.NoError(t, task.FormatBlockStore(d))
	start := d.State()

	rec := record.New(d, record.Options{})
	s, err := task.OpenBlockStore(rec, nil)
	require.NoError(t, err)
	load(t, s)
	type moment struct{ before, after map[uuid.UUID]task.Record } // of one change
	var history []moment
	now := map[uuid.UUID]task.Record{}
	var ids []uuid.UUID
	for n := range 40 {
		m := moment{before: cloneRecords(now)}
		gone := uuid.Nil
		switch k := rng.IntN(3); {
		case k == 0 && len(now) < 4 || len(now) == 0:
			r := bigRecord(n)
			ids = append(ids, r.ID)
			now[r.ID] = r
		case k == 1:
			gone = anyOf(now, ids)
			delete(now, gone)
		default:
			r := now[anyOf(now, ids)]
			r.Step++
			r.Result = json.RawMessage(`"` + strings.Repeat("r", rng.IntN(3000)) + `"`)
			now[r.ID] = r
		}
		m.after = cloneRecords(now)
		history = append(history, m)
		if gone != uuid.Nil {
			require.NoError(t, s.Delete(t.Context(), gone))
			continue
		}
		for id, r := range now {
			if b, there := m.before[id]; !there || b.Step != r.Step {
				require.NoError(t, s.Save(t.Context(), r))
			}
		}
	}

	// Walk the recording: one write for each change.
	model := simdisk.NewModel(start, o)
	n, cuts := 0, 0
	var inFlight *simdisk.Op
	for _, e := range rec.Log() {
		switch {
		case e.Kind == record.WriteSync && !e.Done:
			inFlight = model.Submit(simdisk.Write, e.Off, e.Len, e.Data)
			first, end := inFlight.Sectors()
			for cut := range int(end-first) + 6 {
				keep := simdisk.KeepRandom(rng, rng.Float64())
				if cut < int(end-first) { // all sectors but one
					keep = func(_ *simdisk.Op, s int64) bool { return s != first+int64(cut) }
				}
				requireEither(t, simdisk.NewDisk(model.Crash(model.Pending(), keep), o), history[n].before, history[n].after)
				cuts++
			}
		case e.Kind == record.WriteSync:
			model.Return(inFlight, true)
			requireEither(t, simdisk.NewDisk(model.Crash(nil, simdisk.DropAll), o), history[n].after, history[n].after)
			n++
		}
	}
	require.Equal(t, len(history), n)
	t.Logf("%d changes, %d cuts", n, cuts)
}

// requireEither checks what a crash has left, and that the store goes on from it,
// also when the power is cut again at the first write.
func requireEither(t *testing.T, d *simdisk.Disk, before, after map[uuid.UUID]task.Record) {
	t.Helper()
	s, err := task.OpenBlockStore(d, nil)
	require.NoError(t, err)
	got := map[uuid.UUID]task.Record{}
	for _, r := range load(t, s) {
		got[r.ID] = r
	}
	if !sameRecords(got, before) && !sameRecords(got, after) {
		require.Fail(t, "neither the records before nor those after", "%d found, %d before, %d after", len(got), len(before), len(after))
	}
	for id, r := range got {
		r.Step += 100
		require.NoError(t, s.Save(t.Context(), r))
		got[id] = r
		break
	}
	if len(got) < 4 {
		r := bigRecord(1)
		require.NoError(t, s.Save(t.Context(), r))
		got[r.ID] = r
	}
	s, err = task.OpenBlockStore(d.Crash(simdisk.DropAll), nil)
	require.NoError(t, err)
	again := map[uuid.UUID]task.Record{}
	for _, r := range load(t, s) {
		again[r.ID] = r
	}
	require.True(t, sameRecords(got, again), "what was acknowledged after the crash")
}

func bigRecord(n int) task.Record {
	r := newRecord(n)
	r.Args = json.RawMessage(`"` + strings.Repeat("a", 500+1500*(n%4)) + `"`)
	return r
}

func cloneRecords(m map[uuid.UUID]task.Record) map[uuid.UUID]task.Record {
	c := map[uuid.UUID]task.Record{}
	for k, v := range m {
		c[k] = v
	}
	return c
}

func anyOf(m map[uuid.UUID]task.Record, ids []uuid.UUID) uuid.UUID {
	for _, id := range ids {
		if _, there := m[id]; there {
			return id
		}
	}
	return uuid.Nil
}

func sameRecords(a, b map[uuid.UUID]task.Record) bool {
	pa, _ := json.Marshal(a)
	pb, _ := json.Marshal(b)
	return bytes.Equal(pa, pb)
}

// A process is killed while its write is in the host's cache. The next one sees
// it and goes on; when the power is cut then, nothing that it saw is lost.
func TestBlockStoreFoundIsDurable(t *testing.T) {
	d := simdisk.New(1<<20, simdisk.Options{})
	require.NoError(t, task.FormatBlockStore(d))
	s, err := task.OpenBlockStore(lazyFile{d}, nil)
	require.NoError(t, err)
	load(t, s)
	r := newRecord(1)
	require.NoError(t, s.Save(t.Context(), r))
	require.NoError(t, d.Sync())
	r.Step = 1
	require.NoError(t, s.Save(t.Context(), r)) // in the cache only
	next, err := task.OpenBlockStore(d, nil)
	require.NoError(t, err)
	requireSame(t, []task.Record{r}, load(t, next))
	after, err := task.OpenBlockStore(d.Crash(simdisk.DropAll), nil)
	require.NoError(t, err)
	requireSame(t, []task.Record{r}, load(t, after))
}

// A lazyFile does not wait until what it writes is durable.
type lazyFile struct{ *simdisk.Disk }

func (f lazyFile) WriteAtSync(p []byte, off int64) (int, error) { return f.WriteAt(p, off) }

// After a write that failed the record is the old one or the new one, however
// often that happens.
func TestBlockStoreFailedWrite(t *testing.T) {
	_, rng := testenv.Seed(t)
	d := simdisk.New(1<<20, simdisk.Options{})
	require.NoError(t, task.FormatBlockStore(d))
	s, err := task.OpenBlockStore(d, nil)
	require.NoError(t, err)
	load(t, s)
	r := newRecord(1)
	require.NoError(t, s.Save(t.Context(), r))
	for n := range 50 {
		next := r
		next.Step = n + 1
		next.Args = json.RawMessage(`"` + strings.Repeat("a", rng.IntN(7000)) + `"`)
		for range 1 + rng.IntN(3) {
			d.FailSync(errDisk)
			require.ErrorIs(t, s.Save(t.Context(), next), errDisk)
			for range 5 {
				c, err := task.OpenBlockStore(d.Crash(simdisk.KeepRandom(rng, 0.5)), nil)
				require.NoError(t, err)
				got := load(t, c)
				require.Len(t, got, 1)
				require.Contains(t, []int{r.Step, next.Step}, got[0].Step)
			}
		}
		require.NoError(t, s.Save(t.Context(), next))
		r = next
	}
}

func TestBlockStoreFull(t *testing.T) {
	d := simdisk.New(96<<10, simdisk.Options{})
	_, err := task.OpenBlockStore(d, nil)
	require.ErrorIs(t, err, task.ErrUnformatted)
	require.NoError(t, task.FormatBlockStore(d))
	s, err := task.OpenBlockStore(d, nil)
	require.NoError(t, err)
	require.ErrorContains(t, s.Save(t.Context(), newRecord(0)), "Load")
	load(t, s)
	a, b := newRecord(1), newRecord(2)
	require.NoError(t, s.Save(t.Context(), a))
	require.NoError(t, s.Save(t.Context(), b))
	require.ErrorIs(t, s.Save(t.Context(), newRecord(3)), block.ErrNoSpace)
	require.NoError(t, s.Delete(t.Context(), a.ID))
	require.NoError(t, s.Save(t.Context(), newRecord(3)))
	large := newRecord(4)
	large.Args = json.RawMessage(`"` + strings.Repeat("a", 16<<10) + `"`)
	require.ErrorContains(t, s.Save(t.Context(), large), "at most")
	require.Error(t, task.FormatBlockStore(simdisk.New(32<<10, simdisk.Options{})), "too small")

	big := simdisk.New(16<<20, simdisk.Options{})
	require.NoError(t, task.FormatBlockStore(big))
	s, err = task.OpenBlockStore(big, nil)
	require.NoError(t, err)
	load(t, s)
	for n := range 511 {
		require.NoError(t, s.Save(t.Context(), newRecord(n)))
	}
	require.ErrorIs(t, s.Save(t.Context(), newRecord(0)), block.ErrNoSpace)
}

// What was on the device before it was formatted is not there any more, though
// only the header is written; damage costs the record that it hits.
func TestBlockStoreForeign(t *testing.T) {
	d := simdisk.New(1<<20, simdisk.Options{})
	require.NoError(t, task.FormatBlockStore(d))
	s, err := task.OpenBlockStore(d, nil)
	require.NoError(t, err)
	load(t, s)
	a, b := newRecord(1), newRecord(2)
	for range 2 { // both copies
		require.NoError(t, s.Save(t.Context(), a))
		require.NoError(t, s.Save(t.Context(), b))
	}
	for _, off := range []int64{32<<10 + 100, 48<<10 + 100} {
		_, err = d.WriteAt([]byte{0}, off)
		require.NoError(t, err)
	}
	var log bytes.Buffer
	s, err = task.OpenBlockStore(d, logTo(&log))
	require.NoError(t, err)
	requireSame(t, []task.Record{b}, load(t, s))
	require.Contains(t, log.String(), "both copies are damaged")
	for n := range 29 { // 31 slots
		require.NoError(t, s.Save(t.Context(), newRecord(n)))
	}
	require.ErrorIs(t, s.Save(t.Context(), newRecord(3)), block.ErrNoSpace, "the damaged one is kept")

	require.NoError(t, task.FormatBlockStore(d))
	s, err = task.OpenBlockStore(d, nil)
	require.NoError(t, err)
	require.Empty(t, load(t, s))

	for off, want := range map[int64]string{3: "no store", 16: "version", 20: "damaged", 24: "damaged", 40: "damaged", 50: "damaged"} {
		c := d.Crash(simdisk.KeepAll)
		_, err := c.WriteAt([]byte{0xff}, off)
		require.NoError(t, err)
		_, err = task.OpenBlockStore(c, nil)
		require.ErrorContains(t, err, want, "byte %d", off)
	}
}
