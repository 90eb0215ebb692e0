package spm

import (
	"time"

	"github.com/google/uuid"
)

// What a directory's file system can carry needs a look at every volume's file, and is
// asked for with each request. carriedFor is how long the last look at all of them may
// be counted on, and carriedPart the part of what it found that must be left.
const (
	carriedFor  = time.Second
	carriedPart = 2
)

// A carried is a look at all volumes, and at the file system, of one moment. The zero
// value is none.
type carried struct {
	at    time.Time
	free  int64               // of the file system, in bytes
	owed  int64               // promised to volumes, and not used by them
	sizes map[uuid.UUID]int64 // granted
}

// now is what the file system carries now that it has free bytes, without another look
// at the files. What volumes write into what they were promised changes nothing of it:
// free gets smaller by as much as what is owed. What has been promised since, and what
// others have taken, is subtracted; that volumes have written some of it is not counted.
// (What a volume gives back while others take as much in the same second is not seen.)
// Where volumes have given space back, or little is left, all is to be looked at again.
func (c *carried) now(at time.Time, free int64, all map[uuid.UUID]*volume) (left int64, ok bool) {
	if age := at.Sub(c.at); c.sizes == nil || age < 0 || age >= carriedFor || free > c.free {
		return 0, false
	}
	left = free - c.owed
	for id, v := range all {
		if more := v.size - c.sizes[id]; more > 0 {
			left -= more
		}
	}
	return left, left > 0 && left >= (c.free-c.owed)/carriedPart
}

// look looks at all volumes; used is what the file system has allocated for one.
func look(at time.Time, free int64, all map[uuid.UUID]*volume, used func(*volume) int64) carried {
	c := carried{at: at, free: free, sizes: make(map[uuid.UUID]int64, len(all))}
	for id, v := range all {
		c.sizes[id] = v.size
		c.owed += max(v.size-used(v), 0)
	}
	return c
}
