package segment

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math"
)

// A Kind says what a record is. The owner of a set gives them out, from 1 to
// KindMax; Open delivers kinds that the owner does not know, too.
type Kind uint16

// KindMax is the greatest kind that an owner may use.
const KindMax Kind = 0xfeff

const (
	// kindIndex: the payload is the index of the records before it.
	kindIndex Kind = 0xff01
	// kindGap covers what a crash left half written, or fills up a page in front of
	// a large payload. Its own payload and that one's checksum mean nothing.
	kindGap Kind = 0xff02
)

// The record header. The label follows, then the payload, then zeros up to a
// multiple of recordAlign.
//
//	bytes 0-7     mark of the segment
//	bytes 8-9     kind
//	bytes 10-11   length of the label
//	bytes 12-15   length of the payload
//	bytes 16-19   CRC32C of the payload
//	bytes 20-23   offset of this record in the file, divided by 8
//	bytes 24-27   attested, divided by 8: all before this offset was synced when
//	              this was written
//	bytes 28-31   CRC32C of bytes 0-27 and the label
const (
	recordHeaderBytes = 32
	recordAlign       = 8
)

const (
	// LabelBytesMax is the longest label.
	LabelBytesMax = 256
	// PayloadBytesMax is the longest payload.
	PayloadBytesMax = math.MaxUint32
)

// ErrTooLarge: a label or a payload is longer than a record takes.
var ErrTooLarge = errors.New("record is too large")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is CRC32C, which the processor computes.
func checksum(p []byte) uint32 { return extendChecksum(0, p) }

// extendChecksum returns the checksum of what sum covers with p behind it.
func extendChecksum(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

// A Payload is the octets of a record to be written, in pieces, and their
// checksum. Making one reads all of them, so it is best done beside the
// goroutine that writes.
type Payload struct {
	pieces [][]byte
	length int64
	sum    uint32
}

// NewPayload returns the payload that consists of these pieces. They must not
// change until the record has been synced.
func NewPayload(pieces ...[]byte) Payload {
	p := Payload{pieces: pieces}
	for _, b := range pieces {
		p.length += int64(len(b))
		p.sum = extendChecksum(p.sum, b)
	}
	return p
}

// NewPayloadSummed is NewPayload for pieces whose CRC32C is known, which are not
// read. With another one the record is as good as damaged.
func NewPayloadSummed(sum uint32, pieces ...[]byte) Payload {
	p := Payload{pieces: pieces, sum: sum}
	for _, b := range pieces {
		p.length += int64(len(b))
	}
	return p
}

// Len returns the number of octets.
func (p Payload) Len() int64 { return p.length }

// A Place is where a record lies.
type Place struct {
	Segment Number
	// unit is the offset divided by recordAlign, which every offset is a
	// multiple of.
	unit uint32
}

// PlaceAt returns the place of the record at that offset of a segment.
func PlaceAt(n Number, offset int64) Place {
	return Place{Segment: n, unit: uint32(offset / recordAlign)}
}

// Offset returns where the record begins in its file.
func (p Place) Offset() int64 { return int64(p.unit) * recordAlign }

// Payload returns where the payload of a record with a label of that length
// begins.
func (p Place) Payload(label int) int64 { return p.Offset() + recordHeaderBytes + int64(label) }

// fileBytesMax is the longest file whose places can be named.
const fileBytesMax = int64(1) << 32 * recordAlign

// RecordBytes is the room that a record takes.
func RecordBytes(label int, payload int64) int64 {
	return (recordHeaderBytes + int64(label) + payload + recordAlign - 1) / recordAlign * recordAlign
}

// A record is a record's header and label.
type record struct {
	kind     Kind
	label    []byte
	sum      uint32 // of the payload
	length   int64  // of the payload
	offset   int64
	attested int64
}

func (r record) end() int64     { return r.offset + RecordBytes(len(r.label), r.length) }
func (r record) payload() int64 { return r.offset + recordHeaderBytes + int64(len(r.label)) }

// appendTo appends header and label to b.
func (r record) appendTo(b []byte, m mark) []byte {
	start := len(b)
	b = append(b, m[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(r.kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.label)))
	b = binary.BigEndian.AppendUint32(b, uint32(r.length))
	b = binary.BigEndian.AppendUint32(b, r.sum)
	b = binary.BigEndian.AppendUint32(b, uint32(r.offset/recordAlign))
	b = binary.BigEndian.AppendUint32(b, uint32(r.attested/recordAlign))
	b = binary.BigEndian.AppendUint32(b, extendChecksum(checksum(b[start:]), r.label))
	return append(b, r.label...)
}

// decodeRecord reads a header and its label, which is a part of b, found at
// offset. It reports false for anything that this segment's writer did not put
// at this place.
func decodeRecord(b []byte, m mark, offset int64) (record, bool) {
	if len(b) < recordHeaderBytes || !bytes.Equal(b[:8], m[:]) {
		return record{}, false
	}
	label := int(binary.BigEndian.Uint16(b[10:]))
	if label > LabelBytesMax || len(b) < recordHeaderBytes+label {
		return record{}, false
	}
	r := record{
		kind:     Kind(binary.BigEndian.Uint16(b[8:])),
		label:    b[recordHeaderBytes : recordHeaderBytes+label],
		length:   int64(binary.BigEndian.Uint32(b[12:])),
		sum:      binary.BigEndian.Uint32(b[16:]),
		offset:   int64(binary.BigEndian.Uint32(b[20:])) * recordAlign,
		attested: int64(binary.BigEndian.Uint32(b[24:])) * recordAlign,
	}
	if extendChecksum(checksum(b[:28]), r.label) != binary.BigEndian.Uint32(b[28:]) {
		return record{}, false
	}
	return r, r.offset == offset && r.attested <= offset
}
