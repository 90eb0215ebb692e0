// Package swap changes what is below a disk while it is served. A [Device] shows
// another block.Device and lets it be exchanged; a [Mirror] shows a disk and makes the
// one that it is based on the same, so that the one may be exchanged for the other.
// It knows nothing of formats, volumes or pools: who calls it opens and closes what
// is exchanged.
//
// # Exchanging
//
// Every request enters the Device, is passed on, and leaves. [Device.Switch] shuts the
// entrance, waits until all that are in have left, flushes the device that is shown,
// and lets its caller put another one in its place; then the entrance opens. So no
// request is ever in two devices, none is lost and none is done twice: those that come
// meanwhile wait at the entrance (NoWait: ErrWouldBlock), and what was acknowledged is
// durable in the old device before the new one is made of it.
//
// # Merging
//
// A Mirror has a top and the base below it: where the top has nothing, it reads from
// the base. It begins with no request in progress. From then on
//
//	M1  a background job copies what the top has of its own, piece by piece
//	M2  every write and zeroing goes to the base first, then to the top; a discard
//	    zeroes what both may drop as a whole, so that both read the same there
//	M3  a flush flushes the base first, then the top
//	M4  when all has been copied, and the base is flushed, it is ready: the base
//	    alone shows what the top does
//
// What is read comes from the top at every moment. A range lock orders everything
// that changes the same bytes: two writes that overlap reach both disks in one order,
// and a piece is copied while nobody changes it. Then, by induction over the changes,
// for every byte: either the top has it of its own, so that it hides what the base
// has, whatever that is, or it reads from the base, where nothing but M2 changes it,
// and M2 gives it to the top as well. And a byte that was copied, or changed since
// the Mirror began, is the same in both when nothing is in progress.
//
// A crash at any moment leaves the top over the base showing what was acknowledged: the
// top has it, as if there was no Mirror. A crash after M4 leaves the base alone showing
// it, too, for M2 and M3 acknowledge nothing that is not in both. So it may be decided
// at any time after M4, by whoever opens the disk next, that the top is gone.
//
// An error of the base before M4 ends the merge ([Failed]) and nobody else notices;
// after it the request fails, as the base may be all that there is later. The bytes of
// a request that failed are old or new, as on a disk, in either of the two.
//
// # Locks, in this order
//
//	Device.switching  one Switch at a time
//	Device's entrance a request is in; Switch waits until none is
//	ranges            of a Mirror: held while a change is passed on to both disks
//	ranges.mu, Mirror.mu  memory only
//
// Nobody waits at an entrance while holding a range; a piece is copied while holding its
// range, which waits for the disks, and for space in the base. Ranges are had in turn, and
// waited for as long as a request's context allows. A request that waits for space in a
// device is in: a Switch waits for it, as long as its own context allows.
package swap
