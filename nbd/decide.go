package nbd

import (
	"math"

	"tidemark/internal/block"
)

// terms are what was agreed for a connection before transmission; they do not
// change, also when the Device grows: the client would not know.
type terms struct {
	size       int64 // bytes
	minBlock   int64 // bytes, a power of two
	flags      txFlags
	structured bool
	extended   bool       // headers; with them structured
	contexts   contextSet // that were selected
}

// action is what a valid request asks of the Device.
type action struct {
	off, n int64
	flags  block.Flags
	one    bool // BLOCK_STATUS: one descriptor for each context

	contexts contextSet // BLOCK_STATUS: those that are asked for
}

// commandRule says what a command may carry.
type commandRule struct {
	known   bool
	needs   txFlags  // advertised, or the command is unknown
	allows  cmdFlags // besides FUA, which is allowed everywhere when advertised
	writes  bool     // refused on a read-only export
	payload bool     // the length is bounded by payloadBytesMax
}

// commandRules has the commands by their numbers. DISC is not decided upon.
var commandRules = [cmdBlockStatus + 1]commandRule{
	cmdRead:        {known: true, allows: cmdFlagDF, payload: true},
	cmdWrite:       {known: true, writes: true, payload: true},
	cmdFlush:       {known: true, needs: txSendFlush},
	cmdTrim:        {known: true, needs: txSendTrim, writes: true},
	cmdCache:       {known: true, needs: txSendCache},
	cmdWriteZeroes: {known: true, needs: txSendWriteZeroes, allows: cmdFlagNoHole | cmdFlagFastZero, writes: true},
	cmdBlockStatus: {known: true, allows: cmdFlagReqOne},
}

// decideFiltered decides also on a BLOCK_STATUS whose payload chooses the contexts
// and has the length; no other command needs its payload.
func decideFiltered(h requestHeader, payload []byte, t terms) (action, *Error) {
	if h.cmd != cmdBlockStatus || !h.extended || !h.flags.has(cmdFlagPayload) || !t.flags.has(txStatusPayload) {
		return decide(h, t)
	}
	effect, ids, err := parseFilter(payload, t.contexts.count())
	if err != nil {
		return action{}, errorf(EINVAL, "%v", err)
	}
	chosen, ok := t.contexts.only(ids)
	if !ok {
		return action{}, errorf(EINVAL, "context ids %d, expected some of those that were selected, each once", ids)
	}
	h.length, h.flags = effect, h.flags&^cmdFlagPayload
	a, failure := decide(h, t)
	a.contexts = chosen
	return a, failure
}

// decide validates a request: what is to be done, or the error to answer. The
// order of the checks is the order in which errors win.
func decide(h requestHeader, t terms) (action, *Error) {
	var rule commandRule
	if int(h.cmd) < len(commandRules) {
		rule = commandRules[h.cmd]
	}
	switch {
	case !rule.known:
		return action{}, errorf(EINVAL, "unknown command %d", h.cmd)
	case rule.writes && t.flags.has(txReadOnly):
		return action{}, errorf(EPERM, "the export is read-only")
	case !t.flags.has(rule.needs):
		return action{}, errorf(EINVAL, "command %d is not offered by this export", h.cmd)
	}
	if bad := h.flags &^ allowedFlags(rule, t); bad != 0 {
		return action{}, errorf(EINVAL, "flags %#x do not belong to command %d here", bad, h.cmd)
	}
	if e := decideRange(h, t, rule); e != nil {
		return action{}, e
	}
	return action{off: int64(h.offset), n: int64(h.length), flags: deviceFlags(h), one: h.flags.has(cmdFlagReqOne), contexts: t.contexts}, nil
}

// allowedFlags are the flags that a command may have under t.
func allowedFlags(rule commandRule, t terms) cmdFlags {
	f := rule.allows
	if t.flags.has(txSendFUA) {
		f |= cmdFlagFUA
	}
	if t.extended && rule.payload && rule.writes {
		f |= cmdFlagPayload // QEMU, too, takes a write without it
	}
	if !t.flags.has(txSendDF) {
		f &^= cmdFlagDF
	}
	if !t.flags.has(txSendFastZero) {
		f &^= cmdFlagFastZero
	}
	return f
}

func decideRange(h requestHeader, t terms, rule commandRule) *Error {
	if h.cmd == cmdFlush {
		if h.offset != 0 || h.length != 0 {
			return errorf(EINVAL, "FLUSH with offset %d and length %d, expected 0 and 0", h.offset, h.length)
		}
		return nil
	}
	if rule.payload && h.length > payloadBytesMax {
		return errorf(oversize(h, t), "length %d is above the maximum of %d", h.length, payloadBytesMax)
	}
	if h.offset > math.MaxInt64 || block.CheckRange(int64(h.offset), int64(h.length), t.size) != nil {
		return errorf(pastEnd(h.cmd), "%d bytes at %d: the export has %d bytes", h.length, h.offset, t.size)
	}
	if mask := uint64(t.minBlock - 1); (h.offset|h.length)&mask != 0 {
		return errorf(EINVAL, "%d bytes at %d: not aligned to the minimum block size of %d", h.length, h.offset, t.minBlock)
	}
	if h.cmd == cmdBlockStatus && t.contexts == 0 {
		return errorf(EINVAL, "BLOCK_STATUS without a metadata context")
	}
	if h.cmd == cmdBlockStatus && h.length == 0 {
		return errorf(EINVAL, "BLOCK_STATUS of nothing")
	}
	return nil
}

// oversize is the error of a payload that is too long. EOVERFLOW belongs to
// structured reads.
func oversize(h requestHeader, t terms) Errno {
	if h.cmd == cmdRead && t.structured {
		return EOVERFLOW
	}
	return EINVAL
}

// deviceFlags translates the flags of a valid request.
func deviceFlags(h requestHeader) block.Flags {
	var f block.Flags
	if h.flags.has(cmdFlagFUA) {
		f |= block.FUA
	}
	if h.cmd == cmdWriteZeroes && !h.flags.has(cmdFlagNoHole) {
		f |= block.MayUnmap
	}
	if h.flags.has(cmdFlagFastZero) {
		f |= block.Fast
	}
	return f
}

// mayWait tells whether a command can be made to wait for space. Discards and
// zeroes allocate metadata.
func mayWait(c command) bool { return c == cmdWrite || c == cmdWriteZeroes || c == cmdTrim }

// cost is the memory in bytes that a request needs while it is in progress.
func cost(h requestHeader, a action) int {
	switch h.cmd {
	case cmdRead, cmdWrite:
		return bufferSize(int(a.n))
	case cmdCache:
		return cachePiece
	case cmdBlockStatus:
		return extentsMax * 2 * descriptorExtBytes * a.contexts.count() // list and encoding, at most
	}
	return 0
}

// offer computes what is told to a client about a Device.
func offer(i block.DeviceInfo, readOnly, multiConn, structured bool) (txFlags, blockSizes, int64) {
	f := txHasFlags | txSendCache
	set := func(on bool, bit txFlags) {
		if on {
			f |= bit
		}
	}
	readOnly = readOnly || i.ReadOnly
	set(readOnly, txReadOnly)
	set(i.CanFlush, txSendFlush)
	set(i.CanFUA, txSendFUA)
	set(i.CanDiscard && !readOnly, txSendTrim)
	set(i.CanZero && !readOnly, txSendWriteZeroes)
	set(i.CanZero && i.CanFastZero && !readOnly, txSendFastZero)
	set(i.MultiConn && multiConn, txCanMultiConn)
	set(structured, txSendDF)
	s := offerSizes(i)
	return f, s, i.Size &^ (int64(s.min) - 1) // what is behind the last block cannot be addressed
}

// offerSizes turns the Device's sizes into legal ones. MinBlock was checked
// when the export was added.
func offerSizes(i block.DeviceInfo) blockSizes {
	s := blockSizes{min: uint32(max(i.MinBlock, 1)), preferred: preferredDefault, payload: payloadBytesMax}
	if p := i.PreferredBlock; p > 0 && p <= payloadBytesMax {
		s.preferred = 512
		for int(s.preferred) < p {
			s.preferred <<= 1
		}
	}
	s.preferred = max(s.preferred, s.min)
	if m := i.MaxTransfer; m > 0 && m < payloadBytesMax {
		s.payload = max(uint32(m)&^(s.min-1), s.preferred)
	}
	return s
}
