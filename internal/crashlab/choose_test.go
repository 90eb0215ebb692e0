package crashlab

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"tidemark/internal/simdisk"
	"tidemark/internal/testenv"
)

// kept collects which operations are there as a whole, for the choices that tear
// none, and counts the torn ones.
func kept(pending []*simdisk.Op, with int, l Limits) (sets map[string]int, torn int) {
	sets = map[string]int{}
	for c := range choices(pending, with, l, testenv.Rand(1)) {
		s := ""
		for i, p := range c.picks {
			switch p.Part {
			case Whole:
				s += fmt.Sprint(i, " ")
			case None:
			default:
				torn++
				s = "-"
			}
			if s == "-" {
				break
			}
		}
		if s != "-" {
			sets[s]++
		}
	}
	return sets, torn
}

func pendingOps(n int, sectors int64) []*simdisk.Op {
	m := simdisk.NewModel(simdisk.New(1<<20, simdisk.Options{}).State(), simdisk.Options{})
	for i := range int64(n) {
		m.Return(m.Submit(simdisk.Write, i*16*sector, sectors*sector, make([]byte, sectors*sector)), false)
	}
	return m.Pending()
}

func TestEverySubsetOfAFew(t *testing.T) {
	for n := range 8 {
		sets, torn := kept(pendingOps(n, 1), -1, Limits{All: 8})
		require.Len(t, sets, 1<<n)
		require.Zero(t, torn)
	}
	sets, torn := kept(pendingOps(5, 4), 4, Limits{All: 8})
	require.Len(t, sets, 1<<4, "those with the last one")
	require.Equal(t, 4<<4, torn, "and each with it torn in four ways")
}

func TestSomeSubsetsOfMany(t *testing.T) {
	const n = 70 // more than a word
	sets, _ := kept(pendingOps(n, 1), -1, Limits{All: 8, Random: 100, Pairs: true})
	all := ""
	for i := range n {
		require.Contains(t, sets, all, "a prefix")
		require.Contains(t, sets, fmt.Sprint(i, " "), "one")
		require.Contains(t, sets, pair(i, (i+1)%n), "a pair")
		all += fmt.Sprint(i, " ")
	}
	require.Contains(t, sets, all)
	require.Contains(t, sets, all[2:], "all but one")
	require.Greater(t, len(sets), 1+n+2*n+n*(n-1)/2, "and random ones")
	for set := range first(kept(pendingOps(n, 1), 3, Limits{All: 8, Random: 100})) {
		require.Contains(t, " "+set, " 3 ")
	}
}

func pair(i, j int) string { return fmt.Sprint(min(i, j), " ", max(i, j), " ") }

func first[A, B any](a A, _ B) A { return a }

// TestBothOrders: of two writes in flight together, either may be the last; of a
// discard, zeroes may be left or another tenant's bytes.
func TestBothOrders(t *testing.T) {
	o := simdisk.Options{Foreign: true, DiscardForeign: true}
	m := simdisk.NewModel(simdisk.New(8*sector, o).State(), o)
	a, b := make([]byte, 2*sector), make([]byte, sector)
	stamp(a, 0, 1)
	stamp(b, 1, 2)
	m.Submit(simdisk.Write, 0, 2*sector, a)
	m.Submit(simdisk.Write, sector, sector, b)
	m.Submit(simdisk.Discard, 4*sector, sector, nil)
	got := map[string]bool{}
	for with := range 3 {
		for c := range choices(m.Pending()[:with+1], with, Limits{All: 8}, testenv.Rand(1)) {
			c.picks = append(c.picks, make([]Pick, 2-with)...)
			d := simdisk.NewDisk(c.state(m), o)
			p := make([]byte, 5*sector)
			_, err := d.ReadAt(p, 0)
			require.NoError(t, err)
			s := ""
			for i := range 5 {
				q := p[i*sector : (i+1)*sector]
				if simdisk.HasForeign(q) {
					s += "F"
					continue
				}
				v, err := versionOf(q, int64(i), nil)
				require.NoError(t, err)
				s += fmt.Sprint(uint32(v))
			}
			got[s] = true
		}
	}
	want := map[string]bool{}
	for _, ab := range []string{"00", "02", "11", "12"} { // 11: a alone, or behind b
		want[ab+"000"], want[ab+"00F"] = true, true
	}
	for _, torn := range []string{"01", "10"} { // when a was the last one
		want[torn+"000"] = true
	}
	require.Equal(t, want, got)
}
