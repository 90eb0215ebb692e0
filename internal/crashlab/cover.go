package crashlab

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"tidemark/internal/record"
)

// A coverage counts, for every step that an engine has marked, the moments at
// which the power was cut before it and behind it.
type coverage map[string]*straddled

// straddled counts for one step: how often it was done, and how many moments
// with crash states lay between the event of the File before it and the step, and
// between the step and the event behind it.
type straddled struct{ done, before, behind int64 }

// add adds a recording, of which points are the events that states were judged
// behind. A step is straddled where the nearest moment before it and the nearest
// one behind it both are in the recording.
func (c coverage) add(log record.Log, points []bool) {
	var last int64 = -1 // the last event with a moment
	waiting := map[string]int64{}
	for i, e := range log {
		if step, ok := strings.CutPrefix(e.Label, stepMark); ok && e.Kind == record.Mark {
			s := c[step]
			if s == nil {
				s = &straddled{}
				c[step] = s
			}
			s.done++
			if last >= 0 {
				s.before++
			}
			waiting[step]++
		}
		if points[i] {
			last = int64(i)
			for step, n := range waiting {
				c[step].behind += n
			}
			clear(waiting)
		}
	}
}

// A Step is how often a step was done and straddled.
type Step struct {
	Name                 string
	Done, Before, Behind int64
}

// Steps returns how often every step was done, with the moments before it and
// behind it at which the power was cut.
func (l *Lab) Steps() []Step {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []Step
	for _, name := range slices.Sorted(maps.Keys(l.cover)) {
		s := l.cover[name]
		list = append(list, Step{name, s.done, s.before, s.behind})
	}
	return list
}

// Missing returns those of the steps listed that were never straddled by crash
// points.
func (l *Lab) Missing(listed []string) (missing []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range listed {
		if s := l.cover[name]; s == nil || s.before == 0 || s.behind == 0 {
			missing = append(missing, name)
		}
	}
	return missing
}

func (s Step) String() string {
	return fmt.Sprintf("%-4s done %7d times, cut before it %7d, behind it %7d", s.Name, s.Done, s.Before, s.Behind)
}
