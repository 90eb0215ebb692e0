// Package spm is the storage pool manager: the one process that changes a pool.
// It creates, lists, extends and removes the volumes of storage domains, each in a
// directory or on a volume group, which make a pool together, and answers over a
// unix socket or, in the same process, through the same methods ([API], [Storage]).
//
// It reads no image and knows no format: what is inside a volume is made by an
// [Images], and whether somebody holds a volume is asked of a [Holder]. It does
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
//	<dir>/<domain>/images/<image>/<volume>      its length is its granted size
//	<dir>/<domain>/images/<image>/<volume>.meta
//	<dir>/<domain>/images/<image>/<volume>.lease
//
// One key of the domain's metadata is ours: TIDEMARK_CAPACITY; 0 is what the file
// system has. A directory holds one domain. The name of a volume is the alias of its image,
// DiskAlias in the JSON of DESCRIPTION, and unique in the pool.
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
// nobody is told of it before a sync has succeeded.
//
// A volume whose metadata cannot be read is damaged: it keeps its space, is shown
// by its UUID with the reason, may be removed, and keeps nobody from the others.
//
// A volume without .meta in a directory with its final name was not made by this
// package; it is reported, not counted and not touched.
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
//	remove: 1 lvremove                         -> commit point; the slot is what no tag names
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
//	deactivate:  1 nobody holds a volume of it, no task uses it
//	             2 the master lists it as Attached -> commit point
//	detach:      1 the master does not list it    -> commit point; it claims, and is of none
//	             2 the claim goes
//	master:      1 the tasks are copied to the new one -> nothing
//	             2 the new one has the pool's keys, and a higher version -> commit point
//	             3 the old one is Regular         -> done by the next SPM
//	destroyPool: 1 each domain but the master is detached -> a smaller pool
//	             2 the master is of no pool       -> commit point
//	StartSPM:    1 lease of the master            -> nothing
//	             2 the epoch is raised            -> commit point
//	             3 what the move of a master has left; active domains are opened
//	             4 tasks are recovered
//	StopSPM:     1 no task runs; domains are closed -> nothing
//	             2 POOL_SPM_ID is -1              -> nobody has the role
//
// A domain that cannot be opened when the SPM starts is logged, stays as it is
// listed, and keeps nobody from the others; without the master there is no SPM.
//
// What differs from VDSM, and why: a directory or a group is connected once and
// has one domain; special files that one host does not need are empty or missing
// (see the layouts). The tag RHAT_storage_domain is TIDEMARK_domain, so that neither
// takes the other's group for its own. A domain with a volume that is open is not
// deactivated, for whoever has it open could not extend it any more. The master's
// tasks are files or slots in a logical volume, not a file system in it. A pool has
// 20 domains at most, which is what one tag of LVM can list.
//
// # Invariants
//
//   - The sum of the granted sizes never exceeds the capacity, including those
//     of requests in progress: space is reserved before a file is touched.
//   - A grant in a directory is one that the host's file system can carry: the
//     free space must cover what is granted but not allocated yet, of all volumes.
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
// are served strictly in order: a small request does not pass a large one, or
// the large one would starve. Nobody gets headroom while somebody waits.
//
// When a volume begins to wait and when it has stopped is an [Event], which a
// client may wait for ([Manager.WatchPool]). The last 256 are kept, in memory: who
// asks for more than that asks [Manager.GetPoolInfo] what is so now.
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
// # Locks
//
//	Host.changing  one change of connections, domains, pool or role at a time;
//	               held across I/O and the waits for tasks to end
//	Host.mu        what the host knows of them; never held across I/O
//	volume.sem     one change of a volume at a time; held across file I/O
//	Manager.mu     everything in memory; never held across file I/O but statfs
//	               and stat, on which an admission depends
//	groupStore.mu  the slots
//	eventLog.mu    what has happened
//
// in this order. Nobody waits for space with any of them. A step of a task takes
// Host.mu and those below it, never Host.changing.
package spm
