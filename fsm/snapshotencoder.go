package fsm

import (
	"bufio"
	"encoding/binary"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// An encoder writes length-prefixed records until the first error.
type encoder struct {
	s       *State
	version uint32
	w       *bufio.Writer
	buffer  []byte
	records uint64
	err     error
	// origins has the numbers of those that were written. The State's own
	// numbers differ between nodes.
	origins map[origin]uint32
	// What is used again for each message.
	record  queuepb.MessageRecord
	scratch []byte
}

// message writes a message.
func (e *encoder) message(m *message) {
	r := &e.record
	if e.version >= snapshotCompressed {
		r.Sealed, r.OriginNumber = e.s.sealed.get(m.slot), e.origin(*e.s.originOf(m))
	} else {
		r.Accepted, r.Origin = e.s.accepted(m), e.s.originOf(m).toProto()
	}
	r.Entry = uint64(m.entry)
	r.Id = append(r.Id[:0], m.id[:]...)
	r.Settled = m.settled
	r.PossibleDuplicate = m.possibleDuplicate
	r.FingerprintKept = e.s.printed.has(printItem{entry: m.entry})
	r.Ended = int64(m.endedAt)
	r.Parts, r.Notes = partsToProto(r.Parts[:0], m.parts()), notesToProto(m.notes())
	b, ok := appendMessageRecord(e.buffer[:0], r, &e.scratch)
	if !ok {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Message{Message: r}})
		return
	}
	e.buffer = b
	e.writeRecord(b)
}

// origin returns the number of an origin, which it writes if no message had that
// one yet.
func (e *encoder) origin(o origin) uint32 {
	if number, ok := e.origins[o]; ok {
		return number
	}
	e.origins[o] = uint32(len(e.origins) + 1)
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Origin{Origin: o.toProto()}})
	return e.origins[o]
}

// knownPerRecord is how many recipients one record has at most.
const knownPerRecord = 4096

// known writes the recipients that are known good.
func (e *encoder) known() {
	r := &queuepb.KnownRecord{}
	flush := func() {
		if len(r.Recipients) > 0 {
			e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Known{Known: r}})
		}
		r.Recipients = r.Recipients[:0]
	}
	for item := range e.s.known.all() {
		if uint32(item.domain) != r.Domain || len(r.Recipients) == knownPerRecord*knownBytes {
			flush()
			r.Domain = uint32(item.domain)
		}
		r.Recipients = binary.BigEndian.AppendUint64(r.Recipients, uint64(item.key))
		r.Recipients = binary.BigEndian.AppendUint16(r.Recipients, item.day)
	}
	flush()
}

func (o origin) toProto() *queuepb.OriginRecord {
	return &queuepb.OriginRecord{Node: string(o.node), Host: o.host, Protocol: o.protocol, Tls: o.tls}
}

// accepted is what never changes about a message as versions 1 and 2 have it.
func (s *State) accepted(m *message) []byte {
	u := s.open(m)
	u.envelope.Trace.Node, u.envelope.Trace.Protocol, u.envelope.Trace.TLS = "", "", ""
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(&queuepb.Accepted{
		Envelope: envelopeToProto(u.envelope),
		Digest:   u.body.Digest[:],
		Size:     int64(u.body.Size),
		At:       int64(u.at),
	}) // fails on text that is not UTF-8 only, and envelopeToProto leaves none
	return b
}

func (e *encoder) write(r *queuepb.SnapshotRecord) {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(e.buffer[:0], r)
	if err != nil && e.err == nil {
		e.err = err
	}
	e.buffer = b
	e.writeRecord(b)
}

// writeRecord writes an encoded record with its length before it.
func (e *encoder) writeRecord(b []byte) {
	if e.err != nil {
		return
	}
	e.records++
	length := binary.AppendUvarint(e.w.AvailableBuffer(), uint64(len(b)))
	if _, e.err = e.w.Write(length); e.err == nil {
		_, e.err = e.w.Write(b)
	}
}

func (d *domain) toProto() *queuepb.DomainRecord {
	r := &queuepb.DomainRecord{
		Number: uint32(d.number),
		Domain: domainToProto(d.config),
		State:  queuepb.NextHopState(d.hop.State),
		Since:  int64(d.hop.Since),
		Detail: d.hop.Detail,
		Flush:  uint64(d.hop.Flush),
		Ending: uint64(d.ending),
		Guard:  d.guard.toProto(),
		Warned: uint64(d.warned),
	}
	if d.policy != nil {
		r.Policy = d.policy.toProto()
	}
	for _, n := range d.hop.Failed {
		r.Failed = append(r.Failed, string(n))
	}
	for _, n := range d.hop.Barred {
		r.Barred = append(r.Barred, string(n))
	}
	return r
}

// toProto returns nil for the zero guard.
func (g guard) toProto() *queuepb.Guard {
	if !g.armed && !g.stopped {
		return nil
	}
	r := &queuepb.Guard{Armed: g.armed, Stopped: g.stopped, StoppedAt: int64(g.stoppedAt)}
	for _, key := range g.refused {
		r.Refused = append(r.Refused, uint64(key))
	}
	return r
}

// partsToProto fills records, which may have room for them from the last time.
func partsToProto(records []*queuepb.PartRecord, parts []part) []*queuepb.PartRecord {
	for _, p := range parts {
		records = oneMore(records)
		w, r := p.wait(), records[len(records)-1]
		r.Domain = uint32(p.domain)
		r.Lease = uint64(p.lease)
		r.Begun = p.begun
		r.RetryAt = int64(w.retryAt)
		r.DoubtUntil = int64(w.doubtUntil)
		r.Doubted = uint64(w.doubted)
		r.Attempts = uint32(p.attempts)
		r.Released = int64(w.released)
	}
	return records
}

func notesToProto(notes []note) []*queuepb.NoteRecord {
	var records []*queuepb.NoteRecord
	for _, n := range notes {
		records = append(records, &queuepb.NoteRecord{
			State:         queuepb.RecipientState(n.state),
			Reply:         replyToProto(n.reply()),
			Reason:        n.reason,
			Token:         uint64(n.token),
			DeliveredLate: uint64(n.deliveredLate),
			Report:        queuepb.ReportKind(n.report),
		})
	}
	return records
}
