package spool

import (
	"encoding/binary"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// kindBody: the payload is a body, octet for octet. Its label:
	//
	//	bytes 0-15   queue id
	//	bytes 16-47  SHA-256
	kindBody segment.Kind = 1
	// kindDeletions: the payload is deletions, deletionBytes each; no label.
	kindDeletions segment.Kind = 2
)

const bodyLabelBytes = 16 + 32

func bodyLabel(ref mail.BodyRef) []byte {
	return append(append(make([]byte, 0, bodyLabelBytes), ref.ID[:]...), ref.Digest[:]...)
}

// parseBodyLabel reads the label of a body of that size.
func parseBodyLabel(b []byte, size int64) (mail.BodyRef, bool) {
	if len(b) != bodyLabelBytes || size > int64(BodyBytesMax) {
		return mail.BodyRef{}, false
	}
	return mail.BodyRef{ID: mail.QueueID(b[:16]), Digest: mail.Digest(b[16:48]), Size: mail.ByteSize(size)}, true
}

// roomOf is what a body of that size takes of a segment, its share of the index
// included.
func roomOf(size uint32) int64 {
	return segment.RecordBytes(bodyLabelBytes, int64(size)) + segment.IndexBytes(bodyLabelBytes)
}

// A deletion is the tombstone of one record. It names the record by its place,
// so that a body put again under the same id later is not meant.
//
//	bytes 0-15    queue id
//	bytes 16-19   segment number of the record
//	bytes 20-23   size of the body
//	bytes 24-31   offset of the record
type deletion struct {
	id   mail.QueueID
	size uint32
	at   segment.Place
}

const deletionBytes = 32

// deletionsPerRecordMax bounds the payload of one record of deletions.
const deletionsPerRecordMax = 1024

func appendDeletion(b []byte, d deletion) []byte {
	b = append(b, d.id[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(d.at.Segment))
	b = binary.BigEndian.AppendUint32(b, d.size)
	return binary.BigEndian.AppendUint64(b, uint64(d.at.Offset()))
}

// decodeDeletions reads a payload whose checksum was right.
func decodeDeletions(b []byte) []deletion {
	ds := make([]deletion, 0, len(b)/deletionBytes)
	for ; len(b) >= deletionBytes; b = b[deletionBytes:] {
		ds = append(ds, deletion{
			id:   mail.QueueID(b[:16]),
			size: binary.BigEndian.Uint32(b[20:]),
			at:   segment.PlaceAt(segment.Number(binary.BigEndian.Uint32(b[16:])), int64(binary.BigEndian.Uint64(b[24:]))),
		})
	}
	return ds
}
