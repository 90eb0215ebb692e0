package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"tidemark/qcow2/format"
)

// Compression types of the header (specification, field compression_type).
const (
	compressionDeflate = 0 // raw, without a zlib header
	compressionZstd    = 1
)

// decompress fills dst, one cluster, from the sectors of a compressed cluster.
// What is in the last sector behind the stream belongs to others and is ignored,
// even if it looks like more of the stream. A stream of any other length than
// dst is a [format.CorruptError] that says where in the stream it went wrong; dst
// is undefined then.
//
// The bytes are hostile: whatever they claim, memory is bounded by the cluster and
// a decoder's own tables.
func decompress(dst, src []byte, compressionType uint8) error {
	var n int
	var name string
	var err error
	switch compressionType {
	case compressionDeflate:
		name = "deflate"
		n, err = inflate(dst, src)
	case compressionZstd:
		name = "zstd"
		n, err = unzstd(dst, src)
	default:
		return &format.UnsupportedError{Feature: fmt.Sprintf("compression type %d", compressionType)}
	}
	if err == nil {
		return nil
	}
	return &format.CorruptError{
		What: "compressed cluster", Off: -1,
		Want: fmt.Sprintf("a %s stream of one cluster, %d bytes", name, len(dst)),
		Got:  fmt.Sprintf("%d bytes from %d, then: %v", n, len(src), err),
	}
}

var (
	errTooShort = errors.New("the stream ends")
	errTooLong  = errors.New("the stream goes on")
)

// inflaters holds idle decoders (about 40 KiB each).
var inflaters sync.Pool

type inflater struct {
	src bytes.Reader
	r   io.ReadCloser // also a flate.Resetter
}

// inflate decodes a raw deflate stream and returns how much of dst it filled.
// The window is deflate's own, 32 KiB.
func inflate(dst, src []byte) (int, error) {
	d, ok := inflaters.Get().(*inflater)
	if !ok {
		d = &inflater{}
		d.r = flate.NewReader(&d.src)
	}
	defer inflaters.Put(d)
	defer d.src.Reset(nil) // an idle decoder keeps nobody's buffer alive
	d.src.Reset(src)
	if r, ok := d.r.(flate.Resetter); ok { // what the package promises
		if err := r.Reset(&d.src, nil); err != nil {
			return 0, err
		}
	}
	n, err := io.ReadFull(d.r, dst)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return n, errTooShort
	case err != nil:
		return n, err
	}
	// The end mark may be missing, as long as there is no further byte.
	var more [1]byte
	if k, _ := io.ReadFull(d.r, more[:]); k > 0 {
		return n, errTooLong
	}
	return n, nil
}

// unzstds holds idle decoders. They start no goroutines, so one that the garbage
// collector takes needs no Close.
var unzstds sync.Pool

// maxZstdWindow is the reference decoder's limit for what a frame may ask for.
// The window costs no memory here: it is dst.
const maxZstdWindow = 128 << 20

// unzstd decodes zstd frames until dst is full, and returns how much of it is. A
// writer makes one frame for a cluster; QEMU reads any number of them.
func unzstd(dst, src []byte) (int, error) {
	d, ok := unzstds.Get().(*zstd.Decoder)
	if !ok {
		var err error
		if d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxWindow(maxZstdWindow)); err != nil {
			return 0, err
		}
	}
	defer unzstds.Put(d)
	n := 0
	for at := 0; n < len(dst); {
		if at == len(src) {
			return n, errTooShort
		}
		size, err := zstdFrame(src[at:])
		if err != nil {
			return n, fmt.Errorf("frame at %d: %w", at, err)
		}
		got, err := d.DecodeAll(src[at:at+size], dst[n:n:len(dst)])
		if err == nil && len(got) > len(dst)-n {
			err = zstd.ErrDecoderSizeExceeded
		}
		switch {
		case errors.Is(err, zstd.ErrDecoderSizeExceeded):
			return n, errTooLong
		case err != nil:
			return n, fmt.Errorf("frame at %d: %w", at, err)
		}
		copy(dst[n:], got) // it is there already, unless the decoder needed more room meanwhile
		n, at = n+len(got), at+size
	}
	return n, nil
}

// zstdFrame is the length of the frame that b begins with (RFC 8878, section
// 3.1): its header says how long that is, each block how long it is, and the last
// one that it is the last.
//
//	block header, 3 bytes, little-endian
//	0       last block
//	2-1     0 raw, 1 one byte to repeat, 2 compressed, 3 reserved
//	23-3    size
func zstdFrame(b []byte) (int, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return 0, err
	}
	if h.Skippable {
		return within(b, int64(h.HeaderSize)+int64(h.SkippableSize))
	}
	at := h.HeaderSize
	for last := false; !last; {
		if len(b)-at < 3 {
			return 0, io.ErrUnexpectedEOF
		}
		block := uint32(b[at]) | uint32(binary.LittleEndian.Uint16(b[at+1:]))<<8
		last = block&1 != 0
		size := int64(block >> 3)
		if block>>1&3 == 1 {
			size = 1
		}
		var err error
		if at, err = within(b, int64(at)+3+size); err != nil {
			return 0, err
		}
	}
	if h.HasCheckSum {
		return within(b, int64(at)+4)
	}
	return at, nil
}

// within is n, unless b is shorter.
func within(b []byte, n int64) (int, error) {
	if n > int64(len(b)) {
		return 0, io.ErrUnexpectedEOF
	}
	return int(n), nil
}
