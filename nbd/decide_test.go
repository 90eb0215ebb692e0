package nbd

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/block"
)

// Whatever a request says, decide lets through only what the Device can be
// given.
func TestDecideLetsNothingBadThrough(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(testSeed(t), 0))
	edges := []uint64{0, 1, 511, 512, 4096, 1 << 20, 1<<20 - 1, 1<<20 + 1, 1<<63 - 1, 1 << 63, 1<<64 - 1, payloadBytesMax, payloadBytesMax + 1, 1<<32 - 1}
	accepted := 0
	for range 20000 {
		tm := terms{
			size: 1 << 20, minBlock: 1 << (9 * rng.IntN(2)), flags: txFlags(rng.Uint32()) | txHasFlags,
			structured: rng.IntN(2) == 0, extended: rng.IntN(2) == 0, contexts: contextSet(rng.IntN(4)),
		}
		few := rng.IntN(64)
		few &= rng.IntN(64)
		h := requestHeader{
			cmd: command(rng.IntN(10)), flags: cmdFlags(few),
			offset: edges[rng.IntN(len(edges))], length: edges[rng.IntN(len(edges))], extended: tm.extended,
		}
		a, e := decide(h, tm)
		if e != nil {
			require.NotZero(t, e.Errno)
			require.NotEqual(t, ENOTSUP, e.Errno)
			continue
		}
		accepted++
		require.NoError(t, block.CheckRange(a.off, a.n, tm.size), "%+v %+v", h, tm)
		require.Zero(t, (a.off|a.n)%tm.minBlock)
		require.Less(t, int(h.cmd), len(commandRules))
		require.True(t, commandRules[h.cmd].known)
		require.LessOrEqual(t, cost(h, a), inFlightBytesMax)
		require.False(t, commandRules[h.cmd].writes && tm.flags.has(txReadOnly), "%+v", h)
		require.False(t, h.flags.has(cmdFlagFUA) && !tm.flags.has(txSendFUA))
		require.Equal(t, h.flags.has(cmdFlagFUA), a.flags.Has(block.FUA))
		require.False(t, h.cmd == cmdBlockStatus && (tm.contexts == 0 || a.n == 0))
	}
	require.Greater(t, accepted, 100)
}

func TestOffer(t *testing.T) {
	all := block.DeviceInfo{Size: 10000, MinBlock: 4096, CanFlush: true, CanFUA: true, CanDiscard: true, CanZero: true, CanFastZero: true, MultiConn: true}
	const reads = txHasFlags | txSendFlush | txSendFUA | txSendCache
	const writes = txSendTrim | txSendWriteZeroes | txSendFastZero
	for _, row := range []struct {
		name                            string
		change                          func(*block.DeviceInfo)
		readOnly, multiConn, structured bool
		flags                           txFlags
	}{
		{"all", nil, false, true, true, reads | writes | txSendDF | txCanMultiConn},
		{"no structured replies", nil, false, true, false, reads | writes | txCanMultiConn},
		{"read-only export", nil, true, true, true, reads | txReadOnly | txSendDF | txCanMultiConn},
		{"read-only device", func(i *block.DeviceInfo) { i.ReadOnly = true }, false, false, true, reads | txReadOnly | txSendDF},
		{"fast zero needs zero", func(i *block.DeviceInfo) { i.CanZero = false }, false, false, false, reads | txSendTrim},
		{"nothing", func(i *block.DeviceInfo) { *i = block.DeviceInfo{Size: 1} }, false, true, false, txHasFlags | txSendCache},
	} {
		i := all
		if row.change != nil {
			row.change(&i)
		}
		f, _, size := offer(i, row.readOnly, row.multiConn, row.structured)
		if row.name == "all" {
			require.EqualValues(t, 8192, size, "only whole blocks")
		}
		require.Equal(t, row.flags, f, "%s: %#x", row.name, f)
	}
	for _, row := range []struct {
		min, preferred, transfer int
		want                     blockSizes
	}{
		{0, 0, 0, blockSizes{1, 4096, payloadBytesMax}}, {1, 65536, 1 << 20, blockSizes{1, 65536, 1 << 20}},
		{512, 3000, 100, blockSizes{512, 4096, 4096}}, {4096, 1, 10000, blockSizes{4096, 4096, 8192}},
		{1, 1 << 30, 1 << 30, blockSizes{1, 4096, payloadBytesMax}},
	} {
		require.Equal(t, row.want, offerSizes(block.DeviceInfo{MinBlock: row.min, PreferredBlock: row.preferred, MaxTransfer: row.transfer}))
	}
}

// Descriptors against a plain array of states: right, joined, aligned.
func TestDescriber(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(testSeed(t), 0))
	states := []block.ExtentState{0, block.Zero, block.Data, block.Data | block.Zero}
	for range 3000 {
		minBlock := int64(1) << (rng.IntN(2) * 3)
		off, n := int64(rng.IntN(10))*minBlock, int64(1+rng.IntN(20))*minBlock
		d := describer{meaning: inAllocation.meaningOf(), pos: off, end: off + n, min: minBlock, limit: 1 + rng.IntN(8)}
		var model []stateFlags
		for at, more := off, true; more; {
			e := block.Extent{Off: at, Len: 1 + rng.Int64N(20), State: states[rng.IntN(4)]}
			for range e.Len {
				model = append(model, stateOf(e.State))
			}
			at = e.End()
			more = d.add(e)
		}
		require.NotEmpty(t, d.ds)
		require.LessOrEqual(t, len(d.ds), d.limit)
		at := int64(0)
		for i, x := range d.ds {
			require.Zero(t, int64(x.length)%minBlock)
			require.False(t, i > 0 && d.ds[i-1].state == x.state, "joined")
			for block := range int64(x.length) / minBlock {
				all := stateHole | stateZero
				for _, s := range model[at+block*minBlock : at+(block+1)*minBlock] {
					all &= s
				}
				require.Equal(t, all, x.state)
			}
			at += int64(x.length)
		}
		require.Equal(t, d.pos, off+at)
		require.LessOrEqual(t, at, n)
		if len(d.ds) < d.limit {
			require.Equal(t, n, at)
		}
	}
}

func TestCoverage(t *testing.T) {
	c := coverage{end: 10}
	require.NoError(t, c.add(4, 2))
	require.NoError(t, c.add(0, 4))
	require.NoError(t, c.add(8, 2))
	require.False(t, c.complete())
	for _, bad := range [][2]uint64{{0, 1}, {3, 2}, {5, 2}, {6, 3}, {0, 0}, {9, 2}, {10, 1}, {1 << 63, 1 << 63}, {6, 1<<64 - 1}} {
		require.ErrorIs(t, c.add(bad[0], bad[1]), errSyntax, "%v", bad)
	}
	require.NoError(t, c.add(6, 2))
	require.True(t, c.complete())
}
