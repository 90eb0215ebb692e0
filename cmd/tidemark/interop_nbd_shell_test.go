//go:build linux

package main_test

import (
	"strconv"
	"testing"

	"tidemark/internal/testenv"
)

// nbdPrelude is what the scripts below have in common. Their arguments are the
// socket, the size of the disk and the size of its clusters.
const nbdPrelude = `
import nbd, socket, struct, sys, os
sock, size, cluster = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def connect(structured=True, export=""):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    h.set_export_name(export)
    if structured: h.add_meta_context("base:allocation")
    h.connect_unix(sock)
    assert h.get_structured_replies_negotiated() == structured
    return h

def fails(errno, f, *args):
    try: f(*args)
    except nbd.Error as e: assert e.errno == errno, (e.errno, errno, e.string)
    else: raise AssertionError("expected %s of %s" % (errno, args))

def status(h, n, off, flags=0):
    seen = []
    def extent(context, at, entries, err):
        assert (context, at, err.value) == ("base:allocation", off, 0)
        seen.extend(zip(entries[::2], entries[1::2]))
    h.block_status(n, off, extent, flags)
    return seen
`

// nbdCommands is every command with every flag, on a disk that is empty, with
// structured replies and without.
const nbdCommands = nbdPrelude + `
for structured in (True, False):
    h = connect(structured)
    assert h.get_size() == size and not h.is_read_only()
    assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
    assert h.can_df() == structured and h.can_meta_context("base:allocation") == structured
    big = max(cluster, 4096)
    area = 2 * big   # whole clusters, whatever their size
    a = os.urandom(area)

    h.pwrite(a, 0)
    h.pwrite(a[:1000], 4 * big + 1, nbd.CMD_FLAG_FUA)
    assert h.pread(area, 0) == a and h.pread(1000, 4 * big + 1) == a[:1000]
    h.flush()
    h.pwrite(a[-1:], size - 1, nbd.CMD_FLAG_FUA)
    assert h.pread(1, size - 1) == a[-1:]

    # Reads: one chunk with DF, also above 64 KiB.
    for flags in (0, nbd.CMD_FLAG_DF) if structured else (0,):
        for n in (1, 512, 65536, 65537, 200000):
            seen = []
            def chunk(data, off, kind, err):
                assert err.value == 0
                seen.append((off, len(data), kind))
            got = h.pread_structured(n, 3, chunk, flags)
            assert got == h.pread(n, 3)
            if flags: assert seen == [(3, n, nbd.READ_DATA)], seen
            assert sum(x[1] for x in seen) == n

    # Zeroes: what is asked for is there, whatever the flags.
    for flags in (0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA):
        h.pwrite(a, 0)
        h.zero(area - 1000, 500, flags)
        assert h.pread(area, 0) == a[:500] + bytes(area - 1000) + a[-500:], flags
        if structured and flags & nbd.CMD_FLAG_NO_HOLE: # what had space keeps it
            assert all(not s & nbd.STATE_HOLE for n, s in status(h, area, 0))
    h.pwrite(a, 0)
    h.zero(area, 0, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(area, 0) == bytes(area)
    if structured: assert status(h, area, 0) == [(area, 3)], status(h, area, 0)
    for flags in (nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE):
        h.pwrite(a, 0)
        try:
            h.zero(300, 100, flags)
            assert h.pread(area, 0) == a[:100] + bytes(300) + a[400:]
        except nbd.Error as e: # fast, or nothing done
            assert e.errno == "ENOTSUP" and h.pread(area, 0) == a, e.string

    # Trim: whole clusters are given back, and the others keep what they have.
    for flags in (0, nbd.CMD_FLAG_FUA):
        h.pwrite(a, 0)
        h.trim(area, 0, flags)
        assert h.pread(area, 0) == bytes(area)
        if structured: assert status(h, area, 0) == [(area, 3)]
    h.pwrite(a, 0)
    h.trim(100, 100)
    assert h.pread(area, 0) == a

    h.cache(size, 0)
    h.cache(1, size - 1)
    assert h.pread(area, 0) == a

    if structured:
        h.zero(size, 0)
        assert status(h, size, 0) == [(size, 3)]
        h.pwrite(a[:big], big)
        rest = status(h, size, 0)
        assert rest == [(big, 3), (big, 0), (size - 2 * big, 3)], rest
        assert status(h, size, 0, nbd.CMD_FLAG_REQ_ONE) == [(big, 3)]
        assert status(h, size - big, big, nbd.CMD_FLAG_REQ_ONE) == [(big, 0)]
        assert status(h, 10, big - 5) == [(5, 3), (5, 0)]
        assert status(h, 1, size - 1) == [(1, 3)]
    else:
        h.zero(size, 0)
    h.shutdown()
`

// nbdWrong is what clients must not do: the exact error, and the connection goes
// on.
const nbdWrong = nbdPrelude + `
read_only = len(sys.argv) > 4
for structured in (True, False):
    h = connect(structured)
    h.set_strict_mode(0)
    before = h.pread(size, 0)
    if read_only:
        assert h.is_read_only()
        for n in (0, 512):
            fails("EPERM", h.pwrite, bytes(n), 0)
            fails("EPERM", h.trim, n, 0)
            fails("EPERM", h.zero, n, 0)
        fails("EPERM", h.pwrite, b"x", size)
        h.pread(512, 0)
        h.shutdown()
        continue

    # Out of range.
    for n, off in ((512, size), (512, size - 511), (1, size), (1, 1 << 62), (512, (1 << 63) - 512)):
        fails("EINVAL", h.pread, n, off)
        fails("ENOSPC", h.pwrite, b"x" * n, off)
        fails("ENOSPC", h.zero, n, off)
        fails("EINVAL", h.trim, n, off)
        fails("EINVAL", h.cache, n, off)
    fails("EINVAL", h.trim, 0xffffffff, 0)
    fails("ENOSPC", h.zero, 0xffffffff, 0)
    fails("EINVAL", h.cache, 0xffffffff, 0)

    # Oversized.
    fails("EOVERFLOW" if structured else "EINVAL", h.pread, (32 << 20) + 1, 0)
    fails("EINVAL", h.pwrite, b"x" * ((32 << 20) + 1), 0)

    # Of nothing.
    for off in (0, 7, size):
        assert h.pread(0, off) == b""
        h.pwrite(b"", off); h.trim(0, off); h.zero(0, off); h.cache(0, off)
    fails("EINVAL", h.pread, 0, size + 1)

    # Flags that do not exist, or do not belong there.
    for flag in (1 << 6, 1 << 15):
        fails("EINVAL", h.pread, 512, 0, flag)
        fails("EINVAL", h.pwrite, b"x" * 512, 0, flag)
        fails("EINVAL", h.flush, flag)
        fails("EINVAL", h.trim, 512, 0, flag)
        fails("EINVAL", h.zero, 512, 0, flag)
        fails("EINVAL", h.cache, 512, 0, flag)
    fails("EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_NO_HOLE)
    fails("EINVAL", h.pwrite, b"x" * 512, 0, nbd.CMD_FLAG_REQ_ONE)
    fails("EINVAL", h.trim, 512, 0, nbd.CMD_FLAG_FAST_ZERO)
    fails("EINVAL", h.zero, 512, 0, nbd.CMD_FLAG_DF)
    h.pread(512, 0, nbd.CMD_FLAG_FUA) # allowed everywhere
    h.flush(nbd.CMD_FLAG_FUA)

    def nothing(*args): pass
    if structured:
        fails("EINVAL", h.block_status, 0, 0, nothing)
        fails("EINVAL", h.block_status, 512, size, nothing)
        fails("EINVAL", h.block_status, 512, 0, nothing, nbd.CMD_FLAG_DF)
    else:
        fails("EINVAL", h.pread, 512, 0, nbd.CMD_FLAG_DF)
    h.flush()
    assert h.pread(size, 0) == before
    h.shutdown()

# Commands that do not exist, and a payload behind one that is refused.
s = socket.socket(socket.AF_UNIX)
s.connect(sock)
def get(n):
    b = b""
    while len(b) < n:
        p = s.recv(n - len(b))
        assert p, "closed"
        b += p
    return b
get(18)
s.sendall(struct.pack(">L", 3) + b"IHAVEOPT" + struct.pack(">LL", 1, 0))
assert struct.unpack(">QH", get(10))[0] == size
def ask(command, flags=0, off=0, n=0, payload=b""):
    s.sendall(struct.pack(">LHHQQL", 0x25609513, flags, command, 0x1234, off, n) + payload)
    magic, err, cookie = struct.unpack(">LLQ", get(16))
    assert (magic, cookie) == (0x67446698, 0x1234)
    return err
for command in (8, 9, 100, 65535):
    assert ask(command) == 22
    assert ask(command, n=1 << 30, off=1 << 63) == 22
assert ask(7, n=512) == 22                       # BLOCK_STATUS without a context
assert ask(1, flags=1 << 9, n=5, payload=b"12345") == (1 if read_only else 22)
assert ask(3, off=1) == 22
assert ask(3) == 0
`

// nbdOptions is the handshake by hand.
const nbdOptions = nbdPrelude + `
def haggle(export="", contexts=["base:allocation"]):
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.set_full_info(True)
    h.set_export_name(export)
    for context in contexts: h.add_meta_context(context)
    h.connect_unix(sock)
    assert h.get_protocol() == "newstyle-fixed" and h.aio_is_negotiating()
    return h

h = haggle()
names = []
for i in range(3): # the same, however often
    del names[:]
    h.opt_list(lambda name, description: names.append((name, description)))
    assert names == [("one", "the first"), ("two", "")], names
contexts = []
def listed(queries):
    del contexts[:]
    h.clear_meta_contexts()
    for q in queries: h.add_meta_context(q)
    n = h.opt_list_meta_context(lambda name: contexts.append(name))
    assert n == len(contexts)
    return contexts
assert listed([]) == ["base:allocation"]
assert listed(["base:"]) == ["base:allocation"]
assert listed(["base:allocation"]) == ["base:allocation"]
assert listed(["qemu:", "x-a:b", "base:other"]) == []
assert listed(["qemu:dirty-bitmap:x", "base:"]) == ["base:allocation"]

# INFO of one and of the other, of one that is not there, then GO.
h.clear_meta_contexts()
h.add_meta_context("base:allocation")
for name, n in (("two", 1 << 20), ("one", size), ("", size), ("two", 1 << 20)):
    h.set_export_name(name)
    h.opt_info()
    assert h.get_size() == n and h.can_fua() and h.can_df() and h.can_meta_context("base:allocation")
    assert h.get_canonical_export_name() == (name or "one")
h.set_export_name("three")
fails("ENOENT", h.opt_info)
fails("ENOENT", h.opt_go)
assert h.aio_is_negotiating()
h.set_export_name("one")
h.opt_info()
h.set_export_name("two")
h.opt_go()
assert h.get_size() == 1 << 20 and h.get_export_description
assert status(h, 1 << 20, 0) == [(1 << 20, 3)]
h.shutdown()

# No context was asked for: BLOCK_STATUS is refused, and all else works.
h = haggle("one", [])
h.opt_info()
h.opt_go()
h.set_strict_mode(0)
fails("EINVAL", h.block_status, 512, 0, lambda *a: 0)
h.pread(512, 0)
h.shutdown()

for i in range(3):
    h = haggle()
    if i: h.opt_info()
    h.opt_abort()
    assert h.aio_is_closed() or h.aio_is_dead()

# The oldest way in.
h = nbd.NBD()
h.set_request_structured_replies(False)
h.set_handshake_flags(0)
h.set_export_name("two")
h.connect_unix(sock)
assert h.get_size() == 1 << 20 and h.get_protocol() == "newstyle"
h.pwrite(b"old", 5); assert h.pread(5, 4) == b"\0old\0"
h.zero(8, 0)
h.shutdown()
h = nbd.NBD()
h.set_handshake_flags(0)
h.set_export_name("three")
try: h.connect_unix(sock)
except nbd.Error: pass # there is no answer but to hang up
else: raise AssertionError("there is no export three")
`

func (x *nbdExport) script(script string, more ...string) {
	x.t.Helper()
	args := append([]string{"-c", script, x.sock, strconv.Itoa(nbdSize), strconv.FormatInt(x.geometry.cluster, 10)}, more...)
	testenv.Run(x.t, testenv.Python(x.t), args...)
}

func TestNBDShellCommands(t *testing.T) {
	eachGeometry(t, func(t *testing.T, x *nbdExport) {
		x.script(nbdCommands)
		x.script(nbdWrong)
		x.finish(make([]byte, nbdSize))
	})
}

func TestNBDShellReadOnly(t *testing.T) {
	x := serveGeometry(t, nbdGeometries()[2], "-r")
	x.script(nbdWrong, "read-only")
	x.finish(nil)
}

func TestNBDShellOptions(t *testing.T) {
	second := shortDir(t) + "/two.qcow2"
	ok(t, "create", "-q", second, "1M")
	x := serveGeometry(t, nbdGeometries()[2], "-x", "one", "-D", "the first", "--export", "two="+second)
	x.script(nbdOptions)
	x.finish(nil)
	requireClean(t, second)
}
