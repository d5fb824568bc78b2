package fsm

import (
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// Nearly all records of a snapshot are messages about whose recipients nothing was
// said. These are written and read here, field by field, as the generated code of
// queuepb would: without its garbage, in a third of the time. A node that starts
// waits for it. All other records are left to that code.

// The numbers of the fields, which queue.proto gives them.
const (
	fieldRecordMessage protowire.Number = 3 // of a SnapshotRecord

	fieldMessageEntry             protowire.Number = 1
	fieldMessageID                protowire.Number = 2
	fieldMessageSettled           protowire.Number = 4
	fieldMessagePossibleDuplicate protowire.Number = 5
	fieldMessageFingerprintKept   protowire.Number = 6
	fieldMessageEnded             protowire.Number = 7
	fieldMessagePart              protowire.Number = 8
	fieldMessageSealed            protowire.Number = 11
	fieldMessageOriginNumber      protowire.Number = 12

	fieldPartDomain     protowire.Number = 1
	fieldPartLease      protowire.Number = 2
	fieldPartBegun      protowire.Number = 3
	fieldPartRetryAt    protowire.Number = 4
	fieldPartDoubtUntil protowire.Number = 5
	fieldPartDoubted    protowire.Number = 6
	fieldPartAttempts   protowire.Number = 7
	fieldPartReleased   protowire.Number = 8
)

// appendMessageRecord appends the SnapshotRecord of a message, without its length.
// It reports whether it could: b is as it was where it could not. Scratch is memory
// to be used again.
func appendMessageRecord(b []byte, r *queuepb.MessageRecord, scratch *[]byte) ([]byte, bool) {
	if len(r.GetNotes()) > 0 || r.GetAccepted() != nil || r.GetOrigin() != nil {
		return b, false
	}
	m := (*scratch)[:0]
	m = appendUint(m, fieldMessageEntry, r.GetEntry())
	m = appendOctets(m, fieldMessageID, r.GetId())
	m = appendBool(m, fieldMessageSettled, r.GetSettled())
	m = appendBool(m, fieldMessagePossibleDuplicate, r.GetPossibleDuplicate())
	m = appendBool(m, fieldMessageFingerprintKept, r.GetFingerprintKept())
	m = appendUint(m, fieldMessageEnded, uint64(r.GetEnded()))
	for _, p := range r.GetParts() {
		m = protowire.AppendTag(m, fieldMessagePart, protowire.BytesType)
		at := len(m)
		m = append(m, 0) // the length, of one octet for nearly all
		m = appendUint(m, fieldPartDomain, uint64(p.GetDomain()))
		m = appendUint(m, fieldPartLease, p.GetLease())
		m = appendBool(m, fieldPartBegun, p.GetBegun())
		m = appendUint(m, fieldPartRetryAt, uint64(p.GetRetryAt()))
		m = appendUint(m, fieldPartDoubtUntil, uint64(p.GetDoubtUntil()))
		m = appendUint(m, fieldPartDoubted, p.GetDoubted())
		m = appendUint(m, fieldPartAttempts, uint64(p.GetAttempts()))
		m = appendUint(m, fieldPartReleased, uint64(p.GetReleased()))
		m[at] = byte(len(m) - at - 1) // 71 octets at the most
	}
	m = appendOctets(m, fieldMessageSealed, r.GetSealed())
	m = appendUint(m, fieldMessageOriginNumber, uint64(r.GetOriginNumber()))
	*scratch = m
	b = protowire.AppendTag(b, fieldRecordMessage, protowire.BytesType)
	return protowire.AppendBytes(b, m), true
}

func appendUint(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func appendBool(b []byte, n protowire.Number, v bool) []byte { return appendUint(b, n, flag(v)) }

func appendOctets(b []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// readMessageRecord reads a SnapshotRecord into r, whose parts may have room from
// the last time. What it sets is a part of b. It reports whether it could; where it
// could not, the generated code says what b is.
func readMessageRecord(b []byte, r *queuepb.MessageRecord) bool {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 || number != fieldRecordMessage || kind != protowire.BytesType {
		return false
	}
	m, k := protowire.ConsumeBytes(b[n:])
	if k < 0 || n+k < len(b) {
		return false
	}
	parts := r.GetParts()[:0]
	r.Entry, r.Id, r.Settled, r.PossibleDuplicate, r.FingerprintKept, r.Ended = 0, nil, false, false, false, 0
	r.Sealed, r.OriginNumber = nil, 0
	for len(m) > 0 {
		f, ok := readField(&m)
		if !ok {
			return false
		}
		switch f.number {
		case fieldMessageEntry:
			r.Entry, ok = f.value, f.kind == protowire.VarintType
		case fieldMessageID:
			r.Id, ok = f.octets, f.kind == protowire.BytesType
		case fieldMessageSettled:
			r.Settled, ok = f.value != 0, f.kind == protowire.VarintType
		case fieldMessagePossibleDuplicate:
			r.PossibleDuplicate, ok = f.value != 0, f.kind == protowire.VarintType
		case fieldMessageFingerprintKept:
			r.FingerprintKept, ok = f.value != 0, f.kind == protowire.VarintType
		case fieldMessageEnded:
			r.Ended, ok = int64(f.value), f.kind == protowire.VarintType
		case fieldMessagePart:
			parts = oneMore(parts)
			ok = f.kind == protowire.BytesType && readPartRecord(f.octets, parts[len(parts)-1])
		case fieldMessageSealed:
			r.Sealed, ok = f.octets, f.kind == protowire.BytesType
		case fieldMessageOriginNumber:
			r.OriginNumber, ok = uint32(f.value), f.kind == protowire.VarintType
		default:
			ok = false
		}
		if !ok {
			return false
		}
	}
	r.Parts = parts
	return true
}

func readPartRecord(b []byte, p *queuepb.PartRecord) bool {
	p.Domain, p.Lease, p.Begun, p.RetryAt, p.DoubtUntil, p.Doubted, p.Attempts, p.Released = 0, 0, false, 0, 0, 0, 0, 0
	for len(b) > 0 {
		f, ok := readField(&b)
		if !ok || f.kind != protowire.VarintType {
			return false
		}
		switch f.number {
		case fieldPartDomain:
			p.Domain = uint32(f.value)
		case fieldPartLease:
			p.Lease = f.value
		case fieldPartBegun:
			p.Begun = f.value != 0
		case fieldPartRetryAt:
			p.RetryAt = int64(f.value)
		case fieldPartDoubtUntil:
			p.DoubtUntil = int64(f.value)
		case fieldPartDoubted:
			p.Doubted = f.value
		case fieldPartAttempts:
			p.Attempts = uint32(f.value)
		case fieldPartReleased:
			p.Released = int64(f.value)
		default:
			return false
		}
	}
	return true
}

// oneMore returns records with one more, which is an old one if there is room.
func oneMore(records []*queuepb.PartRecord) []*queuepb.PartRecord {
	n := len(records)
	if n == cap(records) || records[:n+1][n] == nil {
		return append(records, new(queuepb.PartRecord))
	}
	return records[:n+1]
}

// A field is a number or octets.
type field struct {
	number protowire.Number
	kind   protowire.Type
	value  uint64
	octets []byte
}

// readField takes the first field off b. It knows the kinds that the records here
// have.
func readField(b *[]byte) (f field, ok bool) {
	var n, k int
	if f.number, f.kind, n = protowire.ConsumeTag(*b); n < 0 {
		return f, false
	}
	switch f.kind {
	case protowire.VarintType:
		f.value, k = protowire.ConsumeVarint((*b)[n:])
	case protowire.BytesType:
		f.octets, k = protowire.ConsumeBytes((*b)[n:])
	default:
		return f, false
	}
	if k < 0 {
		return f, false
	}
	*b = (*b)[n+k:]
	return f, true
}
