package consensus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
)

// A stableRecord is all that a member keeps beside its log: term, vote, floor,
// incarnation, count of starts. It is written whole each time, under one
// checksum, so that no value of it can be lost, or be older than another,
// without being noticed. It is a value: it is copied to be changed.
type stableRecord struct {
	revision uint64 // how often it has been written
	values   map[string][]byte
}

// The record, its numbers big endian:
//
//	0   8  "hfstable"
//	8   4  version, 1
//	12  4  number of values
//	16  8  revision
//	24     the values in order of their keys, each
//	         0  1  length of the key
//	         1  2  length of the value
//	         3     key, value
//	    4  CRC32C of everything before
//
// There is nothing torn: bbolt writes it to free pages, syncs, and only then
// writes the meta page that makes it the record.
const (
	recordMagic    = "hfstable"
	recordVersion  = 1
	recordHead     = 24
	recordBytesMax = 16 << 10
)

// castagnoli is the polynomial of CRC32C.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// with returns the record with one value changed.
func (r stableRecord) with(key string, value []byte) stableRecord {
	values := maps.Clone(r.values)
	if values == nil {
		values = make(map[string][]byte)
	}
	values[key] = bytes.Clone(value)
	return stableRecord{revision: r.revision + 1, values: values}
}

func (r stableRecord) encode() ([]byte, error) {
	b := append(make([]byte, 0, 256), recordMagic...)
	b = binary.BigEndian.AppendUint32(b, recordVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.values)))
	b = binary.BigEndian.AppendUint64(b, r.revision)
	for _, key := range slices.Sorted(maps.Keys(r.values)) {
		value := r.values[key]
		if key == "" || len(key) > 1<<8-1 || len(value) > 1<<16-1 {
			return nil, fmt.Errorf("a key of %d octets and a value of %d", len(key), len(value))
		}
		b = append(b, byte(len(key)))
		b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
		b = append(b, key...)
		b = append(b, value...)
	}
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	if len(b) > recordBytesMax {
		return nil, fmt.Errorf("a record of %d octets, at most %d", len(b), recordBytesMax)
	}
	return b, nil
}

var errChecksum = errors.New("wrong checksum")

func decodeStableRecord(b []byte) (stableRecord, error) {
	if len(b) < recordHead+4 || len(b) > recordBytesMax {
		return stableRecord{}, fmt.Errorf("a record of %d octets", len(b))
	}
	b, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(b, castagnoli) != sum {
		return stableRecord{}, errChecksum
	}
	if string(b[:8]) != recordMagic || binary.BigEndian.Uint32(b[8:]) != recordVersion {
		return stableRecord{}, fmt.Errorf("a record of the form %q %d", b[:8], binary.BigEndian.Uint32(b[8:]))
	}
	count := binary.BigEndian.Uint32(b[12:])
	r := stableRecord{revision: binary.BigEndian.Uint64(b[16:]), values: make(map[string][]byte)}
	b = b[recordHead:]
	for range count {
		if len(b) < 3 {
			return stableRecord{}, errors.New("a record that is cut short")
		}
		keyBytes, valueBytes := int(b[0]), int(binary.BigEndian.Uint16(b[1:]))
		b = b[3:]
		if len(b) < keyBytes+valueBytes {
			return stableRecord{}, errors.New("a record that is cut short")
		}
		r.values[string(b[:keyBytes])] = bytes.Clone(b[keyBytes : keyBytes+valueBytes])
		b = b[keyBytes+valueBytes:]
	}
	if len(b) > 0 || len(r.values) != int(count) {
		return stableRecord{}, fmt.Errorf("a record with %d values and %d octets behind them", len(r.values), len(b))
	}
	return r, nil
}
