package crashlab

import (
	"context"
	"slices"
)

// Reduce looks for a shorter way to a failure of the same rule: fewer requests,
// by running shorter scripts, at most tries of them, and then less that is there
// of what was pending.
func Reduce(ctx context.Context, setup Setup, c Config, dir string, f *Failure, tries int) *Failure {
	c.Only = f.Oracle
	try := func(script []Request) *Failure {
		if got := New(c, dir).Try(ctx, setup, script); got != nil && got.Oracle == f.Oracle {
			return got
		}
		return nil
	}
	for size := (len(f.Script) + 1) / 2; size > 0; {
		shorter := false
		for at := 0; at < len(f.Script) && tries > 0; {
			script := slices.Delete(slices.Clone(f.Script), at, min(at+size, len(f.Script)))
			tries--
			if got := try(script); got != nil {
				f, shorter = got, true
			} else {
				at += size
			}
		}
		if size > 1 || !shorter {
			size /= 2
		}
	}
	return f.fewerKept(ctx, dir)
}

// fewerKept drops what is there of the pending operations, one by one, as long as
// the same rule is broken, and makes torn ones whole.
func (f *Failure) fewerKept(ctx context.Context, dir string) *Failure {
	if f.Died || f.rec == nil {
		return f
	}
	w := f.rec.walk()
	for _, e := range f.rec.log[:f.job.event+1] {
		w.step(e)
	}
	best := f
	for i := range f.job.picks.picks {
		for _, p := range []Pick{{}, {Part: Whole}} {
			picks := choice{slices.Clone(best.job.picks.picks), best.job.picks.swap}
			if picks.picks[i] == p || picks.picks[i].Part == None {
				continue
			}
			picks.picks[i] = p
			jb := best.job
			jb.picks, jb.state = picks, picks.state(w.model)
			j := newJudge(f.rec.setup, dir)
			j.begin(f.seed, uint64(jb.n))
			if fault := j.judge(ctx, jb.state, jb.allow, jb.depth); fault != nil && fault.Oracle == f.Oracle {
				best = f.rec.failure(jb, fault, f.seed)
			}
		}
	}
	return best
}
