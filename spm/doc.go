// Package spm is the storage pool manager: the one process that changes a pool.
// It creates, lists, extends and removes the volumes of storage domains, each in a
// directory or on a volume group, which make a pool together, and answers over a
// unix socket or, in the same process, through the same methods ([API], [Storage]).
//
// It reads no image and knows no format: what is inside a volume is made by an
// [Images], which also says what it is based on, and whether somebody holds a volume is asked of a [Holder]. It does
// not know who writes to a volume either; a writer asks for a size, and the
// manager admits or holds the request.
//
// The [Host] knows what is connected, of which pool this host is, and whether it
// manages that: whether it has the SPM role. It has a [Manager] for each domain
// that is active then. The Manager decides: who may extend, what is reserved, who
// waits. A store acts: it knows where the domain lies, how its metadata is written and in which
// order. There are two, a directory and a volume group; of LVM itself this
// package knows [VolumeGroup] only.
//
// # Layout of a directory
//
// One LOCALFS data domain in VDSM's V5 layout:
//
//	<dir>/spm.lock                              flock: one manager per directory
//	<dir>/<domain>/dom_md/metadata              key=value, sealed by _SHA_CKSUM
//	<dir>/<domain>/dom_md/{ids,leases,inbox,outbox,xleases}
//	<dir>/<domain>/dom_md/spare                 1 MiB that is given up when records lack space
//	<dir>/<domain>/images/<image>/<volume>      its length is its granted size
//	<dir>/<domain>/images/<image>/<volume>.meta
//	<dir>/<domain>/images/<image>/<volume>.lease
//
// One key of the domain's metadata is ours: TIDEMARK_CAPACITY; 0 is what the file
// system has. A directory holds one domain. The name of a volume is the alias of its image,
// DiskAlias in the JSON of DESCRIPTION. No image is given one that another image of the
// pool's active domains has, whoever makes it: a volume, a copy, a template. Domains that
// come together may have the same names, and so has an image that was copied with its
// chain to another domain (moveImage): then the UUID tells them apart, or the domain.
//
// # Durability
//
// Metadata files are replaced: temporary file, fsync, rename, fsync of the
// directory. What a crash leaves:
//
//	create: 1 build images/.new-<image> complete  -> removed at the next start
//	        2 fsync files and directory           -> the same
//	        3 rename to images/<image>            -> commit point, absent or complete
//	        4 fsync images
//	remove: 1 rename to images/_remove_me_<image> -> commit point, there or gone
//	        2 fsync images
//	        3 unlink the files                    -> finished at the next start
//	extend: 1 truncate the file                   -> larger or not, both are valid
//	        2 fsync, then reply
//
// A manager that is killed between two steps leaves the same in the host's cache,
// not durably. So the next one syncs images when it starts, and a volume before it
// first answers for its size. After an extension that failed its size stays reserved, and
// nobody is told of it before a sync has succeeded. After metadata that could not be
// written, or not durably, the manager says what they were, the disk may say either,
// and the next change of them is written even if it changes nothing.
//
// A volume whose metadata cannot be read, or on a group cannot be found by its tag, is
// damaged: it keeps its space, is shown by its UUID with the reason, may be removed, and
// keeps nobody from the volumes of other images. Those of its own image it may be based on,
// so until it is mended or removed they are read only, and none of them goes without it. Who
// names the image, and not a volume, is told of the damage: nobody knows what it shows. A
// template on which it is based, or may be, goes by force only: what it is based on says its
// tag PU_, or in a directory the header of its image; if neither can be read, it may be any.
//
// Others may write beneath the directories that the host's administrator has named. All
// that is done to a domain there is done by a path that the kernel resolves from such a
// directory, without a symbolic link (hostfile.Tree). Those who open volumes do the same:
// [Volume] and [Place] say the directory. A volume of which a file is a link, or lies where
// one leads, is refused whatever is asked of it.
//
// In a directory a volume is damaged, too, that has no .meta, or that is nothing but that,
// in the directory of its image: a crash leaves no such thing but what is in the tables of
// this comment, and that is gone once a manager has started.
//
// # The volumes of an image
//
// An image is a chain of volumes. What one is based on says its own metadata
// (PUUID), and what can be derived from that is kept nowhere else: chain.go derives
// it. In its own image a volume is based on what was the leaf before it, in another
// one on a template (SHARED). The images say the same in their headers, in a
// directory so that QEMU opens the chain as it is: <volume>, or
// ../<image>/<volume> for a template; on a group <volume>.
//
// What a crash leaves, in a directory:
//
//	add:     1 <volume>.meta.new, fsync, fsync of the image's directory -> removed at the next start
//	         2 <volume> and its lease, filled, fsync     -> the same
//	         3 rename to <volume>.meta                   -> commit point
//	         4 fsync of the directory
//	rewrite: 1 <volume>.meta.new beside .meta, fsync     -> removed at the next start
//	         2 rename to <volume>.meta                   -> commit point: old or new
//	         3 fsync of the directory
//	remove one of several:
//	         1 rename of .meta to <volume>.meta.gone     -> commit point
//	         2 fsync of the directory
//	         3 unlink <volume> and its lease, fsync of the directory -> finished at the next start
//	         4 unlink <volume>.meta.gone
//	         (one without .meta gets an empty .meta.gone instead of the rename)
//
// The removal of an image, or of its last volume, is the rename of its directory.
// On a group:
//
//	add:     as create; nothing of the other volumes changes
//	rewrite: 1 the slot, durably                         -> commit point: old or new
//	         2 the tag PU_, a copy of PUUID              -> corrected at the next start
//	remove one: as remove
//	remove an image of several:
//	         1 one volume, its base, gets the tag TIDEMARK_removing -> commit point
//	         2 lvremove of the others                    -> finished at the next start
//	         3 lvremove of that one
//
// If one of these fails, what is gone is free, and what is left is damaged: nobody writes
// to what the next start removes.
//
// An operation changes several volumes one after the other. A volume that is on its
// way in or out is ILLEGAL, and counts for nobody: so is the copy that is not
// complete, the volume that is about to go, and the one that is being merged into.
// The volume of a createVolume is not: it is whole, and LEGAL, as soon as it is there, before
// the record of its task says that it stays. Nobody writes to it until then, for a manager
// says that what a task has is read only, and where there is no manager nobody is told of it:
// so what a rollback takes away is empty. For QEMU, which opens the file itself, it waits.
// The start corrects what may be between two writes: a LEAF with a legal volume
// above it in its image is INTERNAL, and a legal INTERNAL without one is the LEAF.
//
// # Operations
//
// What takes longer than one change is a task (package task); an operation has a
// check that says everything that speaks against it, when it is asked for and again
// when the task has its locks, and steps that may be repeated. The undo of what a
// task makes is safe because of the check: with the locks taken, it has found that
// nothing was there. Up to the commit point:
//
//	createVolume     make | the server goes over to it; what was the leaf is INTERNAL.
//	                 Before either, what a writer of the leaf that died had reserved is
//	                 given back: an INTERNAL volume has no leaks
//	deleteVolume     | ILLEGAL; remove, the topmost first; what is below is the LEAF
//	deleteImage      | ILLEGAL, the leaf last; remove
//	copyImage        make, ILLEGAL; copy | LEGAL
//	moveImage        make all, ILLEGAL; copy each | LEGAL, the leaf first; the original
//	                 ILLEGAL, the leaf last; remove it
//	mergeSnapshots   space for the ancestor; it is ILLEGAL, and all below the successor;
//	                 copy down | it is LEGAL, with the successor's type and size, and
//	                 what is above it ILLEGAL; the successor's children are based on it;
//	                 remove
//	  of a served leaf: ... the server copies down, and writes to both | the same; the
//	                 server lets go of the leaf; remove
//	extendVolumeSize space, all of it if it is raw or preallocated; the image is whole,
//	                 and has no less than what it is based on | the image; metadata
//	  of a served one: space | metadata, on which the bound depends; the server
//	reduceVolume     ILLEGAL; look at the data; cut; | LEGAL
//
// What may fail for good is in front of the commit point as far as it can be found out
// there: whether an image is whole, may have what was asked for, and has the space. Behind
// it a task that can never go on is given up, by itself if an image is not fit for that
// (ErrUnfit), or its file has gone and its domain has not; otherwise it is blocked, and
// stopTask gives it up, or deleteImage by force. It has failed then, and:
//
//	createVolume     the new leaf goes, unless the server writes to it
//	deleteVolume     what is left is ILLEGAL, and is deleted by force
//	copyImage        the copy goes
//	moveImage        at LEGAL the copy goes; at remove it stays, and what is left of the
//	                 original is ILLEGAL
//	mergeSnapshots   what is ILLEGAL stays, below what is whole: it is merged again
//	  of a served leaf: that is the leaf again, and the ancestor ILLEGAL, as in a rollback
//	extendVolumeSize the metadata say what the image has; the space is given back
//	reduceVolume     it is not: only metadata are left to write
//
// Whoever merges writes to the ancestor only what the volumes above it have
// themselves, so that until the commit point the chain from the successor on shows
// what it did. The ancestor, and what is between the two, shows a mixture meanwhile: all
// of that is ILLEGAL before the first byte is written, and a rollback makes it LEGAL
// again only if none was. A merge that fails leaves it ILLEGAL below a leaf that is whole
// and can be served: it is merged again, and until then nothing may go that is all that
// is whole of it. The ancestor gives back what it was granted, but for what has been
// written there; where it cannot, because a server has it open, reduceVolume does that
// afterwards, and leaves it ILLEGAL. A generation (GEN) is counted up with LEGAL by what
// changes the data of a volume: merging, moving, reducing. What a task found is what it
// does: if the chain or the generation is another one when it has its locks, it is
// refused as stale. A snapshot or a copy has the size that its parent, or what is copied,
// has then, so that no volume is smaller than the one that it is based on.
//
// Differences from VDSM: a merge keeps the ancestor's UUID, as SDM.merge does and
// the older mergeSnapshots did not, for the volume that is merged into then stays
// what others know. A served image is merged by its server, and by its leaf only.
// deleteVolume takes an ILLEGAL volume only by force, so that nobody mistakes what
// can be repeated for waste; and it never takes a volume from below another, nor all that
// is whole above what a merge has torn, unless that goes, too.
// A description that is too long is cut, as VDSM does, but of the engine's JSON only the
// DiskDescription, for the other is the name. The name of an image is that of the first alias from its leaf downwards.
// TIDEMARK_PRIORITY is our key; a volume of priority 0 does not have it. PostZero
// does nothing in a directory, whose file system shows freed blocks to nobody.
//
// # Layout of a volume group
//
// One block domain in VDSM's V5 layout, of type FCP, which is any block device:
//
//	tags of the group        TIDEMARK_domain, and MDT_KEY=VALUE for each key
//	metadata, master         logical volumes, tagged TIDEMARK_special, 16 MiB each
//	<volume>                 a logical volume, tagged IU_<image>, PU_<parent>, MD_<slot>
//	metadata, 1 MiB + 8 KiB * slot   512 bytes: what a directory has in .meta
//
// Logical volumes that have no such tags are left alone. There is nothing that
// says how large the pool is: it is what its volumes have and what is free, so
// that vgextend enlarges it. Others may change a group beside the manager, who
// looks once a second, and twice while a request waits.
//
// What a crash leaves:
//
//	domain: 1 metadata and master              -> used by the next start
//	        2 zeroes, fsync of metadata        -> the same
//	        3 the tags of the group            -> commit point
//	create: 1 lvcreate, tagged OVIRT_VOL_INITIALIZING -> removed at the next start
//	        2 image or zeroes, fsync           -> the same
//	        3 slot in metadata, durably        -> the same
//	        4 the tag goes                     -> commit point
//	remove: 1 lvremove                         -> commit point; a slot is free that no tag names
//	extend: 1 lvextend                         -> larger or not, both are valid
//	        2 fsync of the group's metadata, then reply
//
// Space of a group does not read zero: the engine zeroes what it reserves, and a
// raw volume is zeroed before anybody can open it. Who has a volume open holds a
// lock named by its LVM UUID on this host, which the manager takes before it
// removes one. A grant may be larger than what was asked for, where that saves
// the group a segment: nobody's who has others waiting, and at most a quarter of
// what is free.
//
// # Domains and pools
//
// A pool has no place of its own. It is what the metadata of its domains say, and
// one of them, the master, speaks for it:
//
//	every domain  POOL_UUID, empty while it is of no pool; ROLE
//	the master    ROLE=Master, MASTER_VERSION, POOL_DESCRIPTION,
//	              POOL_DOMAINS=<domain>:Active,<domain>:Attached,...,
//	              POOL_SPM_ID, POOL_SPM_LVER (the epoch)
//	its tasks     <domain>/master/tasks, or the logical volume master
//
// A domain is of a pool if it claims it (POOL_UUID) and is listed (POOL_DOMAINS). One
// that claims a pool whose master does not list it is of none: it may be attached
// to that pool again, or be detached, which takes the claim back. Of two that say
// that they are the master, the one with the higher MASTER_VERSION is. Nothing else
// is remembered that matters: the file in [HostOptions].State is a cache.
//
// What is connected may be read. What is changed is locked first, by a [Lease] for
// each domain, which the SPM keeps while a domain is active. Each change is of the
// metadata of one domain, in one step, durably. What a crash leaves:
//
//	create:      the domain as above, of no pool -> absent or complete
//	format:      1 (directory) rename to _remove_me_<domain>, (group) the tags go
//	               and TIDEMARK_formatting comes   -> commit point
//	             2 the files, the logical volumes -> finished before the next domain
//	               is made there
//	createPool:  1 each domain but the master claims the pool -> of none
//	             2 the tasks that the master has of an older pool go -> the same
//	             3 the master lists them all      -> commit point
//	attach:      1 the domain claims the pool     -> of none
//	             2 the master lists it, Attached  -> commit point
//	activate:    1 the domain is opened           -> nothing
//	             2 the master lists it as Active  -> commit point; the next SPM opens it
//	deactivate:  1 nobody holds a volume of it, no task uses it: one that is blocked is
//	               not waited for, and others for as long as a request waits for an image
//	             2 the master lists it as Attached -> commit point
//	detach:      1 the master does not list it    -> commit point; it claims, and is of none
//	             2 the claim goes
//	master:      1 the tasks are copied to the new one -> nothing
//	             2 the new one has the pool's keys, and a higher version -> commit point
//	             3 the old one is Regular         -> done when it is connected, activated or
//	               detached, and by the next SPM; it has the lower version
//	reconstruct: 1 each domain but the master claims the pool -> as it is without a master
//	             2 the new master has the pool's keys, a higher version and no tasks -> commit point
//	             3 the old one is Regular, as above
//	destroyPool: 1 each domain but the master is detached, and so is what claims the
//	               pool and is of none       -> a smaller pool
//	             2 the master is of no pool       -> commit point
//	StartSPM:    1 lease of the master            -> nothing
//	             2 the epoch is raised            -> commit point
//	             3 what the move of a master has left; active domains are opened, and who
//	               serves images of them asks this manager from then on
//	             4 tasks are recovered
//	StopSPM:     1 no task runs (one may be blocked); domains are closed -> nothing
//	             2 POOL_SPM_ID is -1              -> nobody has the role
//
// A domain that is in two places that are connected is used in neither, for nobody knows
// which is the copy; one that is active goes on where it is. Of two directories of which
// one lies beneath the other one may have a domain (nesting.go).
//
// A domain that cannot be opened when the SPM starts is logged, stays as it is
// listed, and keeps nobody from the others; without the master there is no SPM.
//
// A copy of an image in another domain has its UUIDs, and its name. What a chain is made
// of lies in one domain, so who has a volume open asks for it by domain and volume, and
// copies are nothing to it; who names a volume only is told if there are several. Of the
// copies of an image one is served at a time.
//
// What differs from VDSM, and why: a directory or a group is connected once and
// has one domain; special files that one host does not need are empty or missing
// (see the layouts). The tag RHAT_storage_domain is TIDEMARK_domain, so that neither
// takes the other's group for its own. A domain with a volume that is open is not
// deactivated, for whoever has it open could not extend it any more. The master's
// tasks are files or slots in a logical volume, not a file system in it. A pool has
// 20 domains at most, which is what one tag of LVM can list.
//
// The master is deactivated only if the request names the active domain that is the next
// one: VDSM chooses, and may end without any, and then nobody knows the pool's tasks.
// Attach, activate and deactivate may be repeated, for a client that got no answer
// repeats them. Detach also takes the claim from a domain of a pool whose master is
// not connected, because nobody else could free it. destroyPool needs no SPM: a pool
// that cannot be managed any more can be taken apart.
//
// A domain of the pool that has vanished (its place is unmounted, moved away, or has
// failed) is listed as the master lists it, Unknown where that says Active. It is
// deactivated and detached by the master's metadata alone, as VDSM's forced detach does,
// and keeps its claim: when it is back it claims, and is of none. The master that has
// vanished is deactivated as one that is there, where VDSM reconstructs (master_gone.go):
// the manager knows the pool and its tasks. Until then no task begins, and the pool's
// domains stay as they are; those that are served go on. A task that is blocked
// on it, and what waits for that, does not keep the SPM from stopping; it goes on when a
// domain is activated, by revertTask, or with the next SPM.
//
// # Invariants
//
//   - The sum of the granted sizes never exceeds the capacity, including those
//     of requests in progress: space is reserved before a file is touched.
//   - A grant in a directory is one that the host's file system can carry: the
//     free space must cover what is granted but not allocated yet, of all volumes.
//     All files are looked at for that once a second at most, while there is plenty.
//   - Sizes are absolute, and requests to extend may be repeated. A size gets
//     smaller only by its holder's request, which is compare-and-set on the size,
//     the number of changes that it has had and the manager's epoch. What an
//     administrator does to a logical volume by hand is taken over and logged.
//   - No volume is larger than its bound, which the manager computes itself.
//
// # A full pool
//
// A request that cannot be met queues, one place per volume, and is answered
// when there is space or when the wait that it allows is over; then its place is
// kept for a moment, so that a client that repeats a long poll keeps it. Places
// are served strictly in order: those of a higher priority first, and among equals
// who came first. A small request does not pass a large one, or the large one would
// starve; one of a higher priority passes all below it, for as long as it comes:
// that is what a priority is for. Nobody gets headroom while somebody waits.
//
// A part of the capacity is a reserve (Options.Reserve) that is granted to nobody
// but a merge, which gives back more than it takes. Removing takes nothing. From two
// watermarks on (Options.WarnAt, CriticalAt) the pool warns.
//
// When a volume begins to wait and when it has stopped is an [Event], which a
// client may wait for ([Manager.WatchPool]). The last 256 are kept, in memory: who
// asks for more than that asks [Manager.GetPoolInfo] what is so now. Events of every kind,
// the last 1,024, are told by [Host.WatchStorage]. What is refused in the end, or at once,
// is one as well (no-space).
//
// A file system may be full although its domain is not: others write to it. The spare of
// a domain gives way to the records that removing needs, of tasks and of volumes. What can
// be granted, in the stats too, is no more than what the file system can carry.
//
// # Recall
//
// A pool is tight while somebody waits or less than Options.Warn is free. Who has a
// volume open is told (WatchPool), and gives back what an idle one has beyond its
// data, so that it is there for those who wait: the holder stops using it, then the
// manager makes the volume shorter, durably, and only then is it free.
//
//	reduce: 1 truncate the file, or lvreduce   -> shorter or not, both are valid
//	        2 fsync, then reply
//
// The holder may die over that, and the request goes on. So a volume is read only from the
// request until it is over, and who begins to write to one looks again when he has it open,
// and lets it go if it has become shorter since he looked first.
//
// # Locks
//
//	Host.changing  one change of connections, domains, pool or role at a time;
//	               held across I/O and the waits for tasks to end
//	locks of tasks the table of package task: a domain, shared by who works in it, and
//	               then an image, by its task or by a request that serves, tears down
//	               or removes it ([Host.PrepareImage]), and then a name, by who makes an image that
//	               is called so; held across everything below.
//	               What the holder of a volume asks, more or less space, takes none: a
//	               task may wait for just that
//	Host.mu        what the host knows of them; never held across I/O
//	volume.sem     one change of a volume at a time; held across file I/O. Who removes
//	               an image takes those of its volumes in the order of their UUIDs
//	Manager.mu     everything in memory; never held across file I/O but statfs
//	               and stat, on which an admission depends
//	groupStore.mu  the slots
//	eventLog.mu    what has happened
//
// in this order. Nobody waits for space with any of them. A step of a task takes
// Host.mu and those below it, never Host.changing.
package spm
