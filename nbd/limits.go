package nbd

import "time"

// Every number that bounds what the other side is able to make us do.
const (
	// optionBytesMax bounds the data of one option. The largest legal one is a
	// list of metadata queries; 64 KiB hold a name and more than a dozen queries
	// of the longest kind. A longer option ends the connection: draining up to
	// 4 GiB for somebody who has named no export yet is not worth an answer.
	optionBytesMax = 64 << 10

	// stringBytesMax is the specification's limit for every string.
	stringBytesMax = 4096

	// optionsMax bounds the options of one handshake, so that nobody keeps a
	// connection busy with them. Real clients send fewer than ten. LIST adds
	// optionsMax for each export, because the client may then ask about all.
	optionsMax = 32

	// handshakeDefault is the time for the whole handshake, as QEMU's
	// --handshake-limit.
	handshakeDefault = 10 * time.Second

	// handshakeGrace is how long a handshake may go on, to be told
	// ERR_SHUTDOWN, after Shutdown was called.
	handshakeGrace = 250 * time.Millisecond

	// connectionsDefault is QEMU's limit for its NBD server.
	connectionsDefault = 100

	// payloadBytesMax is the payload that every server should accept without
	// negotiation, and the most that QEMU and Linux send.
	payloadBytesMax = 32 << 20

	// inFlightBytesMax bounds the buffers of one connection: two of the largest
	// requests, or nbdcopy's 64 requests of 256 KiB four times over.
	inFlightBytesMax = 64 << 20

	// serverBytesDefault bounds the buffers of all connections together: sixteen
	// connections at their own limit, or a hundred guests with 10 MiB each on
	// their way. Above it a connection waits before it reads on.
	serverBytesDefault = 1 << 30

	// ownBytes of each connection are not counted in that, so that small requests
	// (QEMU's 16 slots of 64 KiB) go on when others have taken everything. A
	// payload that is larger has to arrive as quickly as a reply has to be read:
	// nobody keeps what all share by sending half a request.
	ownBytes = 1 << 20

	// inFlightMax bounds the requests (and goroutines) of one connection. QEMU
	// has 16 in flight, nbdcopy 64, the Linux client up to its queue depth of 128.
	inFlightMax = 128

	// heldDefault is half of QEMU's 16 slots on a connection: with all of them
	// waiting for space no read or flush could get through.
	heldDefault = 8

	// overGrace is how long a request above the limit waits for space. At once
	// would turn every slow extension (VDSM's take 1.4 s on an idle system) into
	// ENOSPC for whoever has more than heldDefault writes on their way: fio, nbdcopy,
	// a busy guest. For this long a guest that writes with all 16 slots reads
	// nothing.
	overGrace = 2 * time.Second

	// patienceDefault: SCSI and NVMe guests give up at 30 s, so they are told
	// ENOSPC well before.
	patienceDefault = 20 * time.Second

	// extentsMax bounds the descriptors of one BLOCK_STATUS reply (64 KiB of
	// payload). The client asks again from where the reply ends.
	extentsMax = 8192

	// extentBatch is how many extents the Device is asked for at a time, and
	// extentBatchesMax how often for one reply: neighbours that look the same
	// through the protocol are joined, so few descriptors may stand for many
	// extents.
	extentBatch      = 512
	extentBatchOne   = 16 // with REQ_ONE
	extentBatchesMax = 64

	// cachePiece is the read size of CACHE, which throws the data away.
	cachePiece = 256 << 10

	// errorTextMax bounds the text of an error chunk: QEMU drops the connection
	// when a chunk without data is longer than 1000 bytes.
	errorTextMax = 980

	// writeTimeoutDefault and writeRateMin bound the time a reply may take, and a
	// payload above ownBytes: a client that is slower than 1 MiB/s after 30 s is
	// gone or hostile.
	writeTimeoutDefault = 30 * time.Second
	writeRateMin        = 1 << 20 // bytes per second

	// crowdedGrace and crowdedRate bound the same while another connection waits for
	// the bytes that all share: who takes longer gives way.
	crowdedGrace = time.Second
	crowdedRate  = 4 << 20 // bytes per second

	// lingerMax is how long a connection is read from after its last reply, so
	// that closing it does not destroy that reply on its way (TCP resets a
	// connection that is closed with unread data).
	lingerMax = 250 * time.Millisecond

	// inboxBytes is what a connection in transmission keeps to receive into while
	// it waits: a header and a payload of 4 KiB, three times, and all of what the
	// handshake may have received already.
	inboxBytes = 16 << 10
	// batchBytes is what is received, and answered, at a time when there is more:
	// 32 writes of 4 KiB, twice.
	batchBytes = 256 << 10
	// begunTogether is after how many writes that were begun the reader lets those go
	// first who bring them to the storage, which would otherwise be idle while the rest
	// of a batch is taken in. In one session 4 and 6 were alike, and 8 gained less.
	begunTogether = 6
	// inlineBytesMax is the largest payload that is executed on the reader. What is
	// larger is better copied to and from the socket while something else is written.
	inlineBytesMax = 64 << 10
	// inlineEffectMax is the longest range without a payload that is; without
	// extended headers there is none longer.
	inlineEffectMax = 1<<32 - 1
	// discardBytesMax is the longest payload that is dropped to answer a request; a
	// longer one, which takes extended headers, ends the connection.
	discardBytesMax = 1<<32 - 1

	// messageParts and messageBytes bound what is gathered into one write: the
	// replies to 32 reads, and no more when they are long, because what has been
	// written is given back at the end.
	messageParts = 64
	messageBytes = 256 << 10

	// blockingMax is how many connections keep a thread while they wait for the
	// client's requests. Those that have waited for stallAfter to send do not count:
	// they have two threads, until WriteTimeout throws them out.
	blockingMax = 64
	stallAfter  = 20 * time.Millisecond
	// sendBufferBytes is asked for each unix socket: what the client need not have
	// read before the next replies can leave. The kernel gives twice that, or less.
	// Measured, 8 reads of 64 KiB at a time gain a third over Linux's usual 208 KiB;
	// with more, long replies leave the processor's cache before they are read.
	sendBufferBytes = 512 << 10

	// handshakeReaderBytes is the same before an export was chosen.
	handshakeReaderBytes = 4 << 10

	// minBlockMax is the specification's limit for the minimum block size, and
	// minBlockAssumed what a client that has not asked may be expected to keep.
	minBlockMax     = 64 << 10
	minBlockAssumed = 512

	// preferredDefault is the specification's default.
	preferredDefault = 4096
)

// The client's limits: what it believes of a server.
const (
	// clientReaderBytes is the buffer for replies.
	clientReaderBytes = 64 << 10
	// clientListMax bounds the exports of a LIST.
	clientListMax = 10000
	// clientReplyBytesMax bounds one option reply: two strings and lengths.
	clientReplyBytesMax = 2*stringBytesMax + 64
	// clientRepliesMax bounds the replies to one option other than LIST.
	clientRepliesMax = 64
	// clientChunksMax bounds the chunks of one read: 512-byte pieces of the
	// largest payload.
	clientChunksMax = payloadBytesMax / 512
	// clientDescriptorsMax is the specification's limit for one reply.
	clientDescriptorsMax = 1 << 20
	// clientExtentsMax bounds the extents that one AppendExtents collects.
	clientExtentsMax = 1 << 20
	// clientGoodbye is how long Close tries to tell the server.
	clientGoodbye = time.Second
	// clientInFlightDefault is the number of requests on their way at a time.
	clientInFlightDefault = 64
)
