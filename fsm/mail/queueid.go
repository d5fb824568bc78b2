package mail

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/oklog/ulid/v2"
)

// A QueueID names one accepted message. It is minted by the accepting node
// before the message is proposed, and serves as the key under which every
// proposal of that message is idempotent. It is printed in the 250 reply, in
// Received fields, in log lines and by the CLI.
//
// It is a ULID: 48 bits of milliseconds, then 80 random bits. The time in it
// is for people; nothing is decided by it.
type QueueID [16]byte

// MintQueueID makes a queue id from a time in Unix milliseconds and ten random
// bytes. Both come from the caller, since this package has neither.
func MintQueueID(unixMilli uint64, random [10]byte) QueueID {
	var id ulid.ULID
	// SetTime fails only past the year 10889; the low 48 bits do for an id.
	_ = id.SetTime(unixMilli & (1<<48 - 1))
	_ = id.SetEntropy(random[:])
	return QueueID(id)
}

// ParseQueueID reads the 26 characters that String writes. Lower case is
// accepted, since people type queue ids.
func ParseQueueID(s string) (QueueID, error) {
	id, err := ulid.ParseStrict(s)
	if err != nil {
		return QueueID{}, fmt.Errorf("queue id %q: want 26 characters of Crockford's base32", s)
	}
	return QueueID(id), nil
}

// QueueIDFromBytes reads the 16 bytes of an id, as it is stored and sent.
func QueueIDFromBytes(b []byte) (QueueID, error) {
	var id QueueID
	if len(b) != len(id) {
		return QueueID{}, fmt.Errorf("queue id of %d bytes, want %d", len(b), len(id))
	}
	copy(id[:], b)
	return id, nil
}

// String returns the id as 26 characters of Crockford's base32, upper case.
func (id QueueID) String() string { return ulid.ULID(id).String() }

// IsZero reports whether id names no message.
func (id QueueID) IsZero() bool { return id == QueueID{} }

// Compare orders ids by their bytes, which is by their time first.
func (id QueueID) Compare(other QueueID) int {
	if a, b := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(other[:8]); a != b {
		return cmp.Compare(a, b)
	}
	return cmp.Compare(binary.BigEndian.Uint64(id[8:]), binary.BigEndian.Uint64(other[8:]))
}

// UnixMilli returns the time at which the id was minted, by the wall clock of
// the node that minted it. For display only.
func (id QueueID) UnixMilli() uint64 { return ulid.ULID(id).Time() }
