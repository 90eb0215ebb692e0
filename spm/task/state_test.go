package task

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every cell of the table says something, and the words of refusals are there.
func TestDecisionsAreComplete(t *testing.T) {
	for s := range situationsN {
		for e := range eventsN {
			o := decisions[s][e]
			require.NotEqual(t, none, o, "situation %d, event %d", s, e)
			if o >= bound {
				require.NotEmpty(t, refusals[o], "outcome %d", o)
			}
		}
	}
}

// The table, read as a person would: for a plan of three steps, two of which can be
// undone. A position is STATE STEP, with "-" where the step is undone; "" is a refusal,
// "!" what cannot happen.
func TestDecisions(t *testing.T) {
	at := func(s State, step int, undo ...bool) position { return position{s, step, len(undo) > 0} }
	no, bug := position{state: "refused"}, position{state: "bug"}
	const back = true
	for _, c := range []struct {
		at                                              position
		begin, done, fault, stop, revert, forget, found position
		hopeless, abandon                               position
	}{
		{at(Queued, 0), at(Running, 0), bug, bug, at(Failed, 0), no, no, at(Queued, 0), bug, bug},
		{at(Running, 0), bug, at(Running, 1), at(Aborting, 0, back), at(Aborting, 0, back), no, no, at(Recovering, 0, back), at(Aborting, 0, back), bug},
		{at(Running, 1), bug, at(Running, 2), at(Aborting, 1, back), at(Aborting, 1, back), no, no, at(Recovering, 1, back), at(Aborting, 1, back), bug},
		{at(Running, 2), bug, at(Finished, 2), at(Recovering, 2), no, no, no, at(Recovering, 2), at(Aborting, 2, back), bug},
		{at(Aborting, 1, back), bug, at(Aborting, 0, back), at(Recovering, 1, back), at(Aborting, 1, back), at(Aborting, 1, back), no, at(Recovering, 1, back), at(Recovering, 1, back), bug},
		{at(Aborting, 0, back), bug, at(Failed, 0), at(Recovering, 0, back), at(Aborting, 0, back), at(Aborting, 0, back), no, at(Recovering, 0, back), at(Recovering, 0, back), bug},
		{at(Recovering, 2), bug, at(Finished, 2), at(Recovering, 2), no, at(Recovering, 2), no, at(Recovering, 2), at(Aborting, 2, back), at(Aborting, 2, back)},
		{at(Recovering, 1, back), bug, at(Recovering, 0, back), at(Recovering, 1, back), at(Recovering, 1, back), at(Recovering, 1, back), no, at(Recovering, 1, back), at(Recovering, 1, back), at(Recovering, 1, back)},
		{at(Recovering, 0, back), bug, at(Failed, 0), at(Recovering, 0, back), at(Recovering, 0, back), at(Recovering, 0, back), no, at(Recovering, 0, back), at(Recovering, 0, back), at(Recovering, 0, back)},
		{at(Aborting, 2, back), bug, at(Failed, 0), at(Recovering, 2, back), at(Aborting, 2, back), at(Aborting, 2, back), no, at(Recovering, 2, back), at(Recovering, 2, back), bug},
		{at(Recovering, 2, back), bug, at(Failed, 0), at(Recovering, 2, back), at(Recovering, 2, back), at(Recovering, 2, back), no, at(Recovering, 2, back), at(Recovering, 2, back), at(Recovering, 2, back)},
		{at(Finished, 2), bug, bug, bug, no, no, at(Cleared, 2), at(Finished, 2), bug, bug},
		{at(Failed, 0), bug, bug, bug, no, at(Failed, 0), at(Cleared, 0), at(Failed, 0), bug, bug},
		{at(Cleared, 0), bug, bug, bug, no, no, no, bug, bug, bug},
	} {
		want := [eventsN]position{
			begin: c.begin, done: c.done, fault: c.fault, hopeless: c.hopeless, stop: c.stop, abandon: c.abandon,
			revert: c.revert, forget: c.forget, found: c.found,
		}
		for e := range eventsN {
			got, o, err := shape{steps: 3, commit: 2}.next(c.at, e)
			switch {
			case err == nil:
			case o == never:
				got = bug
				require.NotErrorIs(t, err, ErrState)
			default:
				require.ErrorIs(t, err, ErrState)
				require.Equal(t, c.at, got)
				got = no
			}
			require.Equal(t, want[e], got, "%+v, event %d", c.at, e)
		}
	}
	whole := shape{steps: 2, commit: 2, revertible: true}
	p, _, err := whole.next(at(Finished, 1), revert)
	require.NoError(t, err)
	require.Equal(t, at(Aborting, 1, back), p)
}

// From every position that can be reached, whatever happens: what cannot be undone
// is never undone, but given up if there is no hope, or somebody wants that; what has not been done whole never finishes, and when nothing
// fails any more the task ends.
func TestDecisionsLeadSomewhere(t *testing.T) {
	for steps := range 5 {
		for commit := range steps + 1 {
			for _, revertible := range []bool{false, commit == steps} {
				explore(t, shape{steps, commit, revertible})
			}
		}
	}
}

func explore(t *testing.T, s shape) {
	seen := map[position]bool{}
	todo := []position{{state: Queued}}
	for len(todo) > 0 {
		p := todo[0]
		todo = todo[1:]
		if seen[p] {
			continue
		}
		seen[p] = true
		requireEnds(t, s, p)
		for e := range eventsN {
			if !possible(p, e) {
				continue
			}
			n, o, err := s.next(p, e)
			require.NotEqual(t, never, o, "%+v: %+v, event %d: %v", s, p, e, err)
			if n.undo && !p.undo {
				require.True(t, n.step < s.commit || e == hopeless || e == abandon, "%+v: %+v, event %d leads to %+v", s, p, e, n)
				require.True(t, n.step == p.step, "what had begun is undone")
			}
			if n.state == Finished && p.state != Finished {
				require.True(t, s.steps == 0 || p.step == s.steps-1 && e == done && !p.undo, "%+v: %+v, event %d", s, p, e)
			}
			if n.state == Failed && p.state != Failed {
				require.True(t, p.state == Queued || p.undo && (p.step == 0 || p.step >= s.commit) || s.steps == 0 && s.revertible, "%+v: %+v, event %d", s, p, e)
			}
			if n.state != Cleared {
				todo = append(todo, n)
			}
		}
	}
}

// possible reports whether the engine lets an event happen.
func possible(p position, e event) bool {
	switch e {
	case begin:
		return p.state == Queued
	case done, fault, hopeless:
		return slices.Contains([]State{Running, Aborting, Recovering}, p.state)
	case abandon:
		return p.state == Recovering
	}
	return true
}

func requireEnds(t *testing.T, s shape, p position) {
	for range 2*s.steps + 2 {
		if p.state.Ended() {
			return
		}
		e := done
		if p.state == Queued {
			e = begin
		}
		var err error
		p, _, err = s.next(p, e)
		require.NoError(t, err)
	}
	require.Fail(t, "it does not end", "%+v: %+v", s, p)
}
