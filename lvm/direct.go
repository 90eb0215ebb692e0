package lvm

import "sync"

// bounceSize is the most that is copied to aligned memory at a time.
const bounceSize = 1 << 20

// bounces are buffers of bounceSize bytes that suit every device.
var bounces = sync.Pool{New: func() any {
	b := alignedBuffer(bounceSize, maxBlock)
	return &b
}}

// bounce returns an aligned buffer of bounceSize bytes and what gives it back.
func bounce() ([]byte, func()) {
	b := bounces.Get().(*[]byte) //nolint:errcheck // New makes nothing else
	return *b, func() { bounces.Put(b) }
}

// readUnaligned reads any bytes of a device, by whole blocks.
func readUnaligned(d *device, p []byte, off int64) error {
	if isAligned(p, off, d.block) {
		return d.read(p, off)
	}
	buf, done := bounce()
	defer done()
	unit := int64(d.block)
	for len(p) > 0 {
		from := off / unit * unit
		to := min(roundUp(off+int64(len(p)), unit), from+bounceSize)
		if err := d.read(buf[:to-from], from); err != nil {
			return err
		}
		n := copy(p, buf[off-from:to-from])
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// write writes any bytes of the volume, by whole blocks. A block that is covered
// in part is read, modified and written, while nobody else writes to it.
func (f *File) write(l *layout, p []byte, off int64, put func(d *device, p []byte, off int64) error) error {
	if len(p) == 0 {
		return nil
	}
	unit := int64(f.unit)
	from, to := off/unit*unit, roundUp(off+int64(len(p)), unit)
	whole := from == off && to == off+int64(len(p))
	r := f.blocks.lock(from, to, !whole)
	defer f.blocks.unlock(r)
	return l.pieces(off, int64(len(p)), func(d *device, at, a, b int64) error {
		if isAligned(p[a:b], at, f.unit) {
			return put(d, p[a:b], at)
		}
		return writeUnaligned(d, p[a:b], at, unit, put)
	})
}

// writeUnaligned copies p into aligned memory, completes its first and its last
// block from the device, and writes whole blocks.
func writeUnaligned(d *device, p []byte, off, unit int64, put func(d *device, p []byte, off int64) error) error {
	buf, done := bounce()
	defer done()
	for len(p) > 0 {
		from := off / unit * unit
		to := min(roundUp(off+int64(len(p)), unit), from+bounceSize)
		n := min(int64(len(p)), to-off)
		if from < off {
			if err := d.read(buf[:unit], from); err != nil {
				return err
			}
		}
		if last := to - unit; off+n < to && (last > from || from == off) {
			if err := d.read(buf[last-from:to-from], last); err != nil {
				return err
			}
		}
		copy(buf[off-from:], p[:n])
		if err := put(d, buf[:to-from], from); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
