// Package lockorder is a mutex that knows its place among the locks of its
// owner.
//
// An owner lists its locks once, outermost first, and numbers them. With the
// build tag lockcheck, Lock panics unless the number is higher than that of every
// ranked lock that the goroutine holds; so a deadlock that needs an unlucky moment
// becomes a panic at every moment. In a normal build a Mutex is a sync.Mutex and
// nothing else.
//
// Waits marks where a goroutine waits for what may take for ever, such as space: with
// the tag it panics if a ranked lock is held.
//
// Two locks of one number must not be held together. TryLock cannot deadlock and
// is not checked, but what it took counts for the locks behind it.
package lockorder

// A Rank is the place of a lock, from 1 for the outermost. The zero Rank is
// never checked.
type Rank uint8
