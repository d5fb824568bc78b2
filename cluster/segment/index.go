package segment

import "encoding/binary"

// The index of a segment is the payload of its last record: for each record
// before it, in order, an entry.
//
//	bytes 0-3   offset of the record, divided by 8
//	bytes 4-7   length of the payload
//	bytes 8-9   kind
//	bytes 10-11 length of the label
//	bytes 12-   label
const indexEntryBytes = 12

// indexBytesMax bounds the index of a segment, which the writer has in memory: a
// segment of very small records is full when its index is.
const indexBytesMax = 8 << 20

// IndexBytes is what the index has for a record with a label of that length.
func IndexBytes(label int) int64 { return indexEntryBytes + int64(label) }

func appendIndexEntry(b []byte, r record) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(r.offset/recordAlign))
	b = binary.BigEndian.AppendUint32(b, uint32(r.length))
	b = binary.BigEndian.AppendUint16(b, uint16(r.kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.label)))
	return append(b, r.label...)
}

// decodeIndex reads an index whose checksum was right. The labels are parts of
// b. It reports false for what no writer wrote.
func decodeIndex(b []byte, end int64) (records []record, ok bool) {
	for behind := int64(headBytes); len(b) > 0; {
		if len(b) < indexEntryBytes {
			return nil, false
		}
		r := record{
			offset: int64(binary.BigEndian.Uint32(b)) * recordAlign,
			length: int64(binary.BigEndian.Uint32(b[4:])),
			kind:   Kind(binary.BigEndian.Uint16(b[8:])),
		}
		label := int(binary.BigEndian.Uint16(b[10:]))
		if label > LabelBytesMax || len(b) < indexEntryBytes+label {
			return nil, false
		}
		r.label = b[indexEntryBytes : indexEntryBytes+label]
		if r.offset < behind || r.end() > end {
			return nil, false
		}
		behind = r.end()
		records = append(records, r)
		b = b[indexEntryBytes+label:]
	}
	return records, true
}
