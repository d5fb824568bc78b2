package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A Number names a segment file. Numbers only grow in the life of a process.
type Number uint32

// A mark is drawn at random for each use of a file and begins each of its
// records. Whoever sends us octets cannot know it, so no payload can be written
// that looks like a record to the search for the next one behind damage; nor can
// what an earlier use of the same file left behind.
type mark [8]byte

// The head of a segment file is two pages, so that one block that cannot be read
// does not take the segment. Each page has the header, and in another sector the
// seal. All numbers are big endian.
const (
	pageBytes   = 4096
	headPages   = 2
	headBytes   = headPages * pageBytes // the first record follows
	headerBytes = 64
	sealOffset  = 512 // in each page
	sealBytes   = 64
)

// FirstOffset is where the first record of every segment lies.
const FirstOffset int64 = headBytes

// The segment header:
//
//	bytes 0-7     "hfsegmt\n"
//	bytes 8-11    version (2; 1 was the spool's own format)
//	bytes 12-15   segment number
//	bytes 16-23   mark
//	bytes 24-31   whose records these are, e.g. "spool", zeros behind it
//	bytes 32-59   zero
//	bytes 60-63   CRC32C of bytes 0-59
const (
	headerMagic   = "hfsegmt\n"
	formatVersion = 2
)

// The seal is written when nothing more will be appended, after all records and
// their index are durable:
//
//	bytes 0-7     "hfindex\n"
//	bytes 8-15    mark
//	bytes 16-19   segment number
//	bytes 20-23   zero
//	bytes 24-31   offset of the index record: all before it is records
//	bytes 32-39   offset behind the index record
//	bytes 40-59   zero
//	bytes 60-63   CRC32C of bytes 0-59
const sealMagic = "hfindex\n"

var (
	// ErrFormat: a segment file is of a later version, or of another store.
	ErrFormat = errors.New("segment file is not one of ours")
)

type header struct {
	number Number
	mark   mark
	store  [8]byte
}

// encode returns the whole head of a segment file, headBytes long, without a
// seal.
func (h header) encode() []byte {
	b := make([]byte, headBytes)
	copy(b, headerMagic)
	binary.BigEndian.PutUint32(b[8:], formatVersion)
	binary.BigEndian.PutUint32(b[12:], uint32(h.number))
	copy(b[16:], h.mark[:])
	copy(b[24:], h.store[:])
	binary.BigEndian.PutUint32(b[60:], checksum(b[:60]))
	copy(b[pageBytes:], b[:headerBytes])
	return b
}

// decodeHeader reads one copy of the header. It reports false for what is not
// whole or belongs to another number; what is whole and not for us is ErrFormat.
func decodeHeader(b []byte, number Number, store [8]byte) (header, bool, error) {
	if len(b) < headerBytes || string(b[:8]) != headerMagic || binary.BigEndian.Uint32(b[60:]) != checksum(b[:60]) {
		return header{}, false, nil
	}
	if v := binary.BigEndian.Uint32(b[8:]); v != formatVersion {
		return header{}, false, fmt.Errorf("version %d: %w", v, ErrFormat)
	}
	h := header{number: Number(binary.BigEndian.Uint32(b[12:])), mark: mark(b[16:24]), store: [8]byte(b[24:32])}
	if h.store != store {
		return header{}, false, fmt.Errorf("of %q, not %q: %w", h.store, store, ErrFormat)
	}
	return h, h.number == number, nil
}

// A seal says where the index of a segment is.
type seal struct{ index, end int64 }

func (s seal) encode(h header) []byte {
	b := make([]byte, sealBytes)
	copy(b, sealMagic)
	copy(b[8:], h.mark[:])
	binary.BigEndian.PutUint32(b[16:], uint32(h.number))
	binary.BigEndian.PutUint64(b[24:], uint64(s.index))
	binary.BigEndian.PutUint64(b[32:], uint64(s.end))
	binary.BigEndian.PutUint32(b[60:], checksum(b[:60]))
	return b
}

// decodeSeal reads one copy of the seal, and reports false if there is none.
func decodeSeal(b []byte, h header) (seal, bool) {
	if len(b) < sealBytes || string(b[:8]) != sealMagic || binary.BigEndian.Uint32(b[60:]) != checksum(b[:60]) ||
		mark(b[8:16]) != h.mark || Number(binary.BigEndian.Uint32(b[16:])) != h.number {
		return seal{}, false
	}
	s := seal{index: int64(binary.BigEndian.Uint64(b[24:])), end: int64(binary.BigEndian.Uint64(b[32:]))}
	return s, s.index >= headBytes && s.index < s.end
}
