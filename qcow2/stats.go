package qcow2

// Stats are the image's figures, bytes unless said otherwise.
type Stats struct {
	Virtual  int64 // size of the disk
	End      int64 // end of the image in its file
	Reserved int64 // clusters that are ready for use, within End
	Granted  int64 // size of the file
	Poisoned error // why the image stopped accepting writes, or nil
}

// Used is what holds data and metadata, up to the highest such byte.
func (s Stats) Used() int64 { return s.End - s.Reserved }

// Stats returns the figures of this moment.
func (im *Image) Stats() Stats {
	im.mu.Lock()
	defer im.mu.Unlock()
	s := Stats{Virtual: im.header.Size, Granted: im.file.Size()}
	s.End = im.alloc.end << im.geo.ClusterBits
	s.Reserved = im.alloc.readyClusters() << im.geo.ClusterBits
	if err := im.poisoned.Load(); err != nil {
		s.Poisoned = *err
	}
	return s
}
