// Compare measures Tidemark beside its peers: qemu-nbd, qemu-storage-daemon and
// nbdkit on a raw file, over NBD and over FUSE.
//
// A cell is a kind of load, an arm a server. One run is several rounds; in each of
// them every arm of a cell has its turn, in a shuffled order, with a fresh copy of the
// same image, the same cache mode, and the same time. What is reported is the median of
// the ratios of the rounds: the speed of the machine, which others use too, is not in it.
// The interval beside it is from the smallest to the largest ratio with fewer than six
// rounds, and the 95 % interval from six on. The median alone says whether a goal is held,
// whatever the interval. Of a peer with several arms the one that ours is compared with is
// that with the largest median of its own speed over the rounds of the run: it is chosen
// after they were measured, in each run again.
//
// A cell that writes to a file begins with an image that is not in the page cache, as
// after the boot of a host (forget says why); one that reads, with an image that is.
//
// A cell that writes ends with a FLUSH and the end of the connections, which is part
// of the time that counts; where fio makes the load it says what time counts, and that is
// without them. It counts only if qemu-img check finds no error and a sample of
// 20,000 blocks or more, if there are, holds what was written there, and of 5,000 others,
// outside of LVM, what was there before: all of a block in 256 MiB of them, of the rest the
// first sector.
// After a cell that reads, a sample is asked of the same server and compared; the
// replies that were timed are not looked at. What QEMU's FUSE export has left of writes
// that were in flight together does not count, as it loses some, and its row says so.
//
// In the cells of overwrites at depth 32 a loop of pwrite on the raw file has its turns
// too, without a server: what the kernel alone takes. Beside the table are lines of what the
// machine does without a disk, which bound nothing: the client with nbdkit's null plugin (a
// server that answers sooner goes beyond it, and ours does).
//
// The cells on LVM need root, lvm and a loop device: ours is a volume of a pool, which
// grows as it is written, and QEMU has an image in the same part of the same device with
// all of it granted; both go past the page cache. What the manager and lvm take of the
// processors counts as ours.
//
// What is wanted is data (goals.go): the report and the document have a line for each
// goal: held, missed, or not measured. With -strict one that was to be measured, as its cell
// and all arms of its peer were chosen, and was not, is missed too. How our own cost grows is measured after the cells (curves.go).
//
// A run is kept in -out/run-ID/run.json after every turn, and goes on from there with
// -resume, if the commit and -time are the same and every change is committed. The document is made of all runs under -out; of each goal the worst counts.
//
//	go run ./bench/compare -rounds 3 -cells 'overwrite|allocate' -curves dirty -out .cache/bench -run-id 1
//	go run ./bench/compare -render -out .cache/bench -doc docs/performance.md
package main
