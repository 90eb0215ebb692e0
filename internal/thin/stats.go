package thin

import "time"

// Stats are a File's numbers at one moment. Sizes are in bytes.
type Stats struct {
	Granted  int64 // by the pool, and adopted
	End      int64 // how far the writer has come
	Headroom int64 // Granted - End
	Bound    int64 // 0: none

	// Moved is when the end moved last, or the volume was opened.
	Moved time.Time

	Extensions int64
	// LastLatency is of the last extension; the median and the longest are of
	// the last 64.
	LastLatency, MedianLatency, MaxLatency time.Duration
	// FailedRequests is the number of failures since the last answer.
	FailedRequests int

	// Hungry says that a Grow has waited in vain, and that nothing was granted
	// since: the writer may have been told, and may not ask again by itself.
	Hungry bool
	// Waiting says that writes wait for space, since when and for how much
	// more than there is.
	Waiting      bool
	WaitingSince time.Time
	WaitingBytes int64
	Waiters      int
}

// Stats returns the numbers of this moment.
func (f *File) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Stats{
		Granted: f.size, End: f.end, Headroom: f.size - f.end, Bound: f.o.Bound, Hungry: f.hungry, Moved: f.moved,
		Extensions: f.extensions, LastLatency: f.latency.last(), FailedRequests: f.failures,
		Waiting: len(f.waiters) > 0, Waiters: len(f.waiters),
	}
	s.MedianLatency, s.MaxLatency = f.latency.medianMax()
	for w := range f.waiters {
		if s.WaitingSince.IsZero() || w.since.Before(s.WaitingSince) {
			s.WaitingSince = w.since
		}
		s.WaitingBytes = max(s.WaitingBytes, w.need-f.size)
	}
	return s
}
