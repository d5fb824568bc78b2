package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A segmentNumber names a segment file. Numbers only grow.
type segmentNumber uint32

// A mark is drawn at random for each segment and begins each of its records.
// Whoever sends us mail cannot know it, so no body can be written that looks
// like a record to the search for the next one behind damage; nor can what an
// earlier use of the same file left behind.
type mark [8]byte

// The segment header. It stands twice, in two disk sectors, so that one bad
// sector does not take the segment. All numbers are big endian.
//
//	bytes 0-7     "hfspool\n"
//	bytes 8-11    version (1)
//	bytes 12-15   segment number
//	bytes 16-23   mark
//	bytes 24-31   offset of the first record (4096)
//	bytes 32-59   zero
//	bytes 60-63   CRC32C of bytes 0-59
const (
	segmentMagic       = "hfspool\n"
	segmentVersion     = 1
	segmentHeaderBytes = 64
	segmentHeaderTwin  = 2048 // offset of the second copy
	segmentHeadBytes   = 4096 // both copies, zeros between: the first record follows
)

// The record header. The payload follows, then zeros up to a multiple of
// recordAlign.
//
//	bytes 0-7     mark of the segment
//	bytes 8-11    kind
//	bytes 12-15   CRC32C of the payload
//	bytes 16-23   length of the payload
//	bytes 24-31   offset of this record in the file
//	bytes 32-39   attested: all before this offset was synced when this was written
//	bytes 40-55   queue id        (bodies; zero in other kinds)
//	bytes 56-87   SHA-256         (bodies; zero in other kinds)
//	bytes 88-91   zero
//	bytes 92-95   CRC32C of bytes 0-91
const (
	recordHeaderBytes = 96
	recordAlign       = 8
)

// A kind says what the payload of a record is.
type kind uint32

const (
	// kindBody: a body, octet for octet.
	kindBody kind = 1
	// kindDeletions: deletions, deletionBytes each.
	kindDeletions kind = 2
	// kindAttest: no payload; the record is there for its attested field.
	kindAttest kind = 3
	// kindGap: covers what a crash left half written. The payload is garbage
	// and its checksum means nothing.
	kindGap kind = 4
)

// A deletion is the tombstone of one record. It names the record by its place,
// so that a body put again under the same id later is not meant.
//
//	bytes 0-15    queue id
//	bytes 16-19   segment number
//	bytes 20-23   zero
//	bytes 24-31   offset of the record
const deletionBytes = 32

// deletionsPerRecordMax bounds the payload of one record of deletions.
const deletionsPerRecordMax = 1024

// checksum is CRC32C, which the processor computes.
func checksum(p []byte) uint32 { return extendChecksum(0, p) }

// extendChecksum returns the checksum of what sum covers with p behind it.
func extendChecksum(sum uint32, p []byte) uint32 {
	return crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), p)
}

var (
	errSegmentHeader = errors.New("segment header is damaged")
	errSegmentFormat = errors.New("segment is of a later version")
)

type segmentHeader struct {
	number segmentNumber
	mark   mark
}

// encode returns the whole head of a segment file, segmentHeadBytes long.
func (h segmentHeader) encode() []byte {
	b := make([]byte, segmentHeadBytes)
	copy(b, segmentMagic)
	binary.BigEndian.PutUint32(b[8:], segmentVersion)
	binary.BigEndian.PutUint32(b[12:], uint32(h.number))
	copy(b[16:], h.mark[:])
	binary.BigEndian.PutUint64(b[24:], segmentHeadBytes)
	binary.BigEndian.PutUint32(b[60:], checksum(b[:60]))
	copy(b[segmentHeaderTwin:], b[:segmentHeaderBytes])
	return b
}

// decodeSegmentHeader reads the head of a segment file: the first copy that is
// whole counts.
func decodeSegmentHeader(b []byte, number segmentNumber) (segmentHeader, error) {
	for _, at := range []int{0, segmentHeaderTwin} {
		if len(b) < at+segmentHeaderBytes {
			break
		}
		c := b[at : at+segmentHeaderBytes]
		if string(c[:8]) != segmentMagic || binary.BigEndian.Uint32(c[60:]) != checksum(c[:60]) {
			continue
		}
		if v := binary.BigEndian.Uint32(c[8:]); v != segmentVersion {
			return segmentHeader{}, fmt.Errorf("version %d: %w", v, errSegmentFormat)
		}
		h := segmentHeader{number: segmentNumber(binary.BigEndian.Uint32(c[12:])), mark: mark(c[16:24])}
		if h.number != number || binary.BigEndian.Uint64(c[24:]) != segmentHeadBytes {
			continue
		}
		return h, nil
	}
	return segmentHeader{}, errSegmentHeader
}

// A record is a record's header.
type record struct {
	kind       kind
	payloadCRC uint32
	length     int64
	offset     int64
	attested   int64
	id         mail.QueueID
	digest     mail.Digest
}

// recordBytes is the room that a record with that payload takes.
func recordBytes(payload int64) int64 {
	return recordHeaderBytes + (payload+recordAlign-1)/recordAlign*recordAlign
}

func (r record) end() int64     { return r.offset + recordBytes(r.length) }
func (r record) payload() int64 { return r.offset + recordHeaderBytes }

// appendTo appends the header to b.
func (r record) appendTo(b []byte, m mark) []byte {
	start := len(b)
	b = append(b, m[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(r.kind))
	b = binary.BigEndian.AppendUint32(b, r.payloadCRC)
	b = binary.BigEndian.AppendUint64(b, uint64(r.length))
	b = binary.BigEndian.AppendUint64(b, uint64(r.offset))
	b = binary.BigEndian.AppendUint64(b, uint64(r.attested))
	b = append(b, r.id[:]...)
	b = append(b, r.digest[:]...)
	b = append(b, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint32(b, checksum(b[start:]))
}

// decodeRecord reads a header that was found at offset. It reports false for
// anything that this segment's writer did not put at this place.
func decodeRecord(b []byte, m mark, offset int64) (record, bool) {
	if len(b) < recordHeaderBytes || !bytes.Equal(b[:8], m[:]) ||
		binary.BigEndian.Uint32(b[92:]) != checksum(b[:92]) {
		return record{}, false
	}
	r := record{
		kind:       kind(binary.BigEndian.Uint32(b[8:])),
		payloadCRC: binary.BigEndian.Uint32(b[12:]),
		length:     int64(binary.BigEndian.Uint64(b[16:])),
		offset:     int64(binary.BigEndian.Uint64(b[24:])),
		attested:   int64(binary.BigEndian.Uint64(b[32:])),
		id:         mail.QueueID(b[40:56]),
		digest:     mail.Digest(b[56:88]),
	}
	if r.offset != offset || r.length < 0 || r.length > 1<<40 || r.attested > offset {
		return record{}, false
	}
	return r, true
}

// A place is where a record lies.
type place struct {
	segment segmentNumber
	// unit is the offset divided by recordAlign, which every offset is a
	// multiple of.
	unit uint32
}

func placeOf(n segmentNumber, offset int64) place {
	return place{segment: n, unit: uint32(offset / recordAlign)}
}

func (p place) offset() int64 { return int64(p.unit) * recordAlign }

// segmentBytesLimit is the longest file whose places can be named.
const segmentBytesLimit = int64(1) << 32 * recordAlign

type deletion struct {
	id mail.QueueID
	at place
}

func appendDeletion(b []byte, d deletion) []byte {
	b = append(b, d.id[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(d.at.segment))
	b = append(b, 0, 0, 0, 0)
	return binary.BigEndian.AppendUint64(b, uint64(d.at.offset()))
}

// decodeDeletions reads a payload whose checksum was right.
func decodeDeletions(b []byte) []deletion {
	ds := make([]deletion, 0, len(b)/deletionBytes)
	for ; len(b) >= deletionBytes; b = b[deletionBytes:] {
		ds = append(ds, deletion{
			id: mail.QueueID(b[:16]),
			at: placeOf(segmentNumber(binary.BigEndian.Uint32(b[16:])), int64(binary.BigEndian.Uint64(b[24:]))),
		})
	}
	return ds
}
