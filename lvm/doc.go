// Package lvm is Tidemark's way to LVM: it changes volume groups, and makes a
// logical volume a [block.File].
//
//	Group  -> Tool -> lvm(8)             what there is, and every change of it
//	File   -> device-mapper or segments  the bytes of one logical volume
//	Locks                                who has a logical volume open
//
// It knows no image and no pool. It does not know why a volume grows either:
// admission, queues and bounds are its caller's.
//
// # Commands
//
// [Tool] is the only place that executes lvm. Each command is a process of its
// own (8 to 10 ms; a long-lived shell saves 5 ms of them, but the one of Debian
// 12 crashes when its standard input is a pipe and --devices is given), it dies
// with this one (Pdeathsig), and it reads an lvm.conf of ours that opens the
// devices named and no others. Reports are JSON and the only thing that is
// parsed; what a failed command means is found by reading the group again, and
// its text is kept for the reader only.
//
// Commands take LVM's own lock on the group, also those that only read. So the
// first read of a new process comes after the last command of the old one, and
// an administrator's vgextend is safe, if both use the same lock directory.
//
// # Order of a change
//
//	1 choose the extents (Place), from the group as last read
//	2 the command, with an absolute size and explicit extents: on a group that is
//	  not as last read it fails and changes nothing
//	3 read the group again: the exit status is not the result
//	4 fsync every physical volume that holds metadata: lvm does not flush
//	5 answer with the map of the volume
//
// Where nothing is answered, step 3 is left out if the command succeeds: the tags of a
// volume are then what they were to be, or a volume is gone and its extents are free.
// What somebody else has done in that moment is seen by the next look, which comes
// within a second; until then 2 guards against it.
//
// Extensions that wait for each other, 16 at most, take their steps together: 1 for
// all, each with extents of its own, 2 a command for each, until one fails; 3 and 4
// once; 5 to all whose volume is as large as it was to be. The others are made after
// that, one at a time.
//
// A crash before 4 leaves the old size or the new one, and nobody was told of
// the new one. A failed fsync latches: the group takes no more changes until it
// is opened again, for what it lost is not known. Opening flushes once, because
// the one before may have died between 2 and 4.
//
// Extending may be repeated for ever; reducing is compare-and-set.
//
// # Where a volume lies
//
// See [Place]. The text of a group's metadata takes 111 bytes a segment and
// about four times that a volume, and a default group has room for about 4,600
// segments. So a volume grows in place, where neighbouring extents become one
// segment; new volumes are spread; a volume that has to jump takes a large piece
// at once. What would make a segment is refused before the area is full
// ([Metadata]).
//
// # Changes that somebody else made
//
// An extent that a volume had, and lost by a command that was not ours, is given
// to nobody until [Group.Forget] says that whoever had the volume open has
// stopped writing: without device-mapper no kernel stands between the two.
//
// # A logical volume as a File
//
// All I/O bypasses the page cache (O_DIRECT), so that one volume's dirty pages
// delay no other one's sync, and a killed process leaves nothing behind that is
// written later. The File nevertheless takes any offset, length and memory
// (FileInfo.Align is 1): metadata of images is written in pieces of 8 bytes and
// more, guests write what they like, and one place that reads, modifies and
// writes a block under a lock is better than one in each engine. The unit is the
// logical block of the devices, 512 bytes mostly, and not 4 KiB, so that a
// sector remains what a power cut tears.
//
// Many transfers at a time go through the kernel's queue for direct I/O, one for the
// process (queue.go); one that is alone does not. A write of whole blocks from aligned
// memory can be begun without waiting for it ([File.WriteLater]). It holds its blocks
// until it has ended, and Close waits for that, so its descriptor is the File's until
// then.
//
// Space that is granted does not read zero (FreshZero is false): the engine
// zeroes what it reserves. Zeroing is cheap where the devices do it themselves.
//
// With device-mapper ([OpenDevice]) the kernel checks ranges and knows who has
// the volume open. Without it ([OpenSegments]) the bytes are read and written on
// the physical volumes, which is for tests, CI and hosts that have no
// device-mapper; lvremove, lvreduce and pvmove then succeed under a writer. What
// is checked instead:
//
//   - only linear segments on present physical volumes are accepted, and no
//     volume that is active in device-mapper on this host;
//   - a physical volume is known by its UUID, read through the descriptor that is
//     kept and used, and read again with every new map;
//   - a new map must append to the old one. Otherwise the File freezes: every
//     request fails with [ErrFrozen], and the alarm is raised once.
//
// # Locks
//
//	Group.mu        one command that changes the group, at a time; held across it
//	File.growMu     one change of the size; held while the pool is asked to take
//	                space back, so that no map is looked at before it is known
//	                what became of that
//	File.blocks     a block that is read, modified and written, against writers
//	File.syncMu     one sync at a time, so that the first error latches
//	queue.mu        the places of the process's queue, for a moment
//
// None is taken while another one is held, but syncMu and queue.mu under blocks.
package lvm
