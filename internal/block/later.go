package block

// A Later is told what became of a write that was begun with WriteLater.
type Later interface {
	// Ended is called once, when the bytes of the write are nobody's but the caller's
	// again, by whoever noticed; that may be before WriteLater has returned. It must not
	// wait, nor call what WriteLater belongs to.
	//
	// With ok the write is done, as if WriteAt had returned nil: a Flush or a Sync that
	// is called from now on covers it. Otherwise an unknown part of it is done, and it
	// is to be done again with WriteAt, which waits for what there is to wait for, and
	// says what is wrong.
	Ended(ok bool)
}
