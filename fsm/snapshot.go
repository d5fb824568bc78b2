package fsm

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// snapshotVersion is the greatest version that Encode writes and Decode reads.
// Encode writes version 1 where there is nothing that only version 2 knows:
// starts.
const snapshotVersion = 2

// snapshotRecordBytesMax is the longest record that Decode reads: an envelope
// of 64 KiB and the longest notes for 1,000 recipients fit in it several times.
const snapshotRecordBytesMax = 4 << 20

// Encode writes the whole State. The same State gives the same bytes, and it
// is written record by record, so that the memory it takes does not grow with
// the queue. The format is queuepb.SnapshotRecord's.
//
// Only messages, aliases, domains and leases are written; every index follows
// from them.
func (s *State) Encode(w io.Writer) error {
	e := &encoder{w: bufio.NewWriterSize(w, 64<<10)}
	t := s.totals
	version := uint32(1)
	if s.starts.len() > 0 {
		version = snapshotVersion
	}
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Header{Header: &queuepb.SnapshotHeader{
		Version:    version,
		Applied:    uint64(s.applied),
		Now:        int64(s.now),
		Settings:   settingsToProto(s.settings),
		DomainLast: uint32(s.domainLast),
		Counters: &queuepb.Counters{
			Accepted:            t.Accepted,
			Repeats:             t.Repeats,
			Delivered:           t.Delivered,
			Removed:             t.Removed,
			FingerprintsDropped: t.FingerprintsDropped,
			DoubtsReported:      t.DoubtsReported,
			DoubtsExpired:       t.DoubtsExpired,
			DeliveredLate:       t.DeliveredLate,
			ReportsIgnored:      t.ReportsIgnored,
		},
	}}})
	for d := range s.domains.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Domain{Domain: d.toProto()}})
	}
	for m := range s.messages.all() {
		r := m.toProto()
		r.FingerprintKept = s.printed.has(entryItem{m.entry})
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Message{Message: r}})
	}
	for a := range s.aliases.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Alias{
			Alias: &queuepb.AliasRecord{Entry: uint64(a.entry), Id: a.id[:]},
		}})
	}
	for l := range s.leases.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Lease{Lease: &queuepb.LeaseRecord{
			Token: uint64(l.token), Holder: string(l.holder), Domain: uint32(l.domain), Renewal: uint64(l.renewal),
		}}})
	}
	for n := range s.starts.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Start{Start: &queuepb.StartRecord{
			Server: string(n.server), Number: n.number, Entry: uint64(n.entry),
		}}})
	}
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_End{End: &queuepb.SnapshotEnd{Records: e.records}}})
	if e.err == nil {
		e.err = e.w.Flush()
	}
	if e.err != nil {
		return fmt.Errorf("encode queue: %w", e.err)
	}
	return nil
}

// An encoder writes length-prefixed records until the first error.
type encoder struct {
	w       *bufio.Writer
	buffer  []byte
	records uint64
	err     error
}

func (e *encoder) write(r *queuepb.SnapshotRecord) {
	if e.err != nil {
		return
	}
	options := proto.MarshalOptions{Deterministic: true}
	b := binary.AppendUvarint(e.buffer[:0], uint64(options.Size(r)))
	if b, e.err = options.MarshalAppend(b, r); e.err != nil {
		return
	}
	e.buffer = b
	e.records++
	_, e.err = e.w.Write(b)
}

func (d *domain) toProto() *queuepb.DomainRecord {
	r := &queuepb.DomainRecord{
		Number: uint32(d.number),
		Domain: domainToProto(d.config),
		State:  queuepb.NextHopState(d.hop.State),
		Since:  int64(d.hop.Since),
		Detail: d.hop.Detail,
		Flush:  uint64(d.hop.Flush),
	}
	for _, n := range d.hop.Failed {
		r.Failed = append(r.Failed, string(n))
	}
	return r
}

func (m *message) toProto() *queuepb.MessageRecord {
	r := &queuepb.MessageRecord{
		Entry:             uint64(m.entry),
		Id:                m.id[:],
		Accepted:          []byte(m.sealed),
		Settled:           m.settled,
		PossibleDuplicate: m.possibleDuplicate,
		Ended:             int64(m.endedAt),
	}
	r.Origin = &queuepb.OriginRecord{
		Node: string(m.origin.node), Host: m.origin.host, Protocol: m.origin.protocol, Tls: m.origin.tls,
	}
	for _, p := range m.parts() {
		w := p.wait()
		r.Parts = append(r.Parts, &queuepb.PartRecord{
			Domain:     uint32(p.domain),
			Lease:      uint64(p.lease),
			Begun:      p.begun,
			RetryAt:    int64(w.retryAt),
			DoubtUntil: int64(w.doubtUntil),
			Doubted:    uint64(w.doubted),
			Attempts:   uint32(p.attempts),
		})
	}
	if m.notes != nil {
		for _, n := range *m.notes {
			r.Notes = append(r.Notes, &queuepb.NoteRecord{
				State:         queuepb.RecipientState(n.state),
				Reply:         replyToProto(n.reply()),
				Reason:        n.reason,
				Token:         uint64(n.token),
				DeliveredLate: uint64(n.deliveredLate),
			})
		}
	}
	return r
}

// Decode reads what Encode wrote. A snapshot that is cut short, damaged so that
// it contradicts itself, or of another version is an error.
func Decode(r io.Reader) (*State, error) {
	s, err := decode(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("decode queue: %w", err)
	}
	return s, nil
}

func decode(r *bufio.Reader) (*State, error) {
	s := New()
	var buffer []byte
	for records := uint64(0); ; records++ {
		length, err := binary.ReadUvarint(r)
		if err != nil {
			return nil, fmt.Errorf("length of record %d: %w", records, noEOF(err))
		}
		if length > snapshotRecordBytesMax {
			return nil, fmt.Errorf("record %d of %d bytes", records, length)
		}
		buffer = slices.Grow(buffer[:0], int(length))[:length]
		if _, err := io.ReadFull(r, buffer); err != nil {
			return nil, fmt.Errorf("record %d: %w", records, noEOF(err))
		}
		var p queuepb.SnapshotRecord
		if err := proto.Unmarshal(buffer, &p); err != nil {
			return nil, fmt.Errorf("record %d: %w", records, err)
		}
		if _, is := p.GetRecord().(*queuepb.SnapshotRecord_Header); is != (records == 0) {
			return nil, fmt.Errorf("record %d: header out of place", records)
		}
		if end := p.GetEnd(); end != nil {
			if end.GetRecords() != records {
				return nil, fmt.Errorf("%d records, want %d", records, end.GetRecords())
			}
			return s, s.Check()
		}
		if err := s.load(&p); err != nil {
			return nil, fmt.Errorf("record %d: %w", records, err)
		}
	}
}

// noEOF says that the input ended too early: Decode knows where the end is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// load takes one record into a State that is being decoded.
func (s *State) load(p *queuepb.SnapshotRecord) error {
	if err := known(p); err != nil {
		return err
	}
	switch r := p.GetRecord().(type) {
	case *queuepb.SnapshotRecord_Header:
		return s.loadHeader(r.Header)
	case *queuepb.SnapshotRecord_Domain:
		return s.loadDomain(r.Domain)
	case *queuepb.SnapshotRecord_Message:
		return s.loadMessage(r.Message)
	case *queuepb.SnapshotRecord_Alias:
		id, err := mail.QueueIDFromBytes(r.Alias.GetId())
		if err != nil {
			return err
		}
		entry := Index(r.Alias.GetEntry())
		if !s.messages.has(&message{entry: entry}) || s.ids.has(idItem{id: id}) {
			return fmt.Errorf("alias %s does not fit", id)
		}
		s.ids.set(idItem{id, entry})
		s.aliases.set(aliasItem{entry, id})
		return nil
	case *queuepb.SnapshotRecord_Lease:
		return s.loadLease(r.Lease)
	case *queuepb.SnapshotRecord_Start:
		return s.loadStart(r.Start)
	}
	return errors.New("empty record")
}

func (s *State) loadHeader(h *queuepb.SnapshotHeader) error {
	if v := h.GetVersion(); v == 0 || v > snapshotVersion {
		return fmt.Errorf("version %d, want at most %d", v, snapshotVersion)
	}
	v, err := settingsFromProto(h.GetSettings())
	if err != nil {
		return err
	}
	if v = v.WithDefaults(); v.flaw() != "" {
		return fmt.Errorf("settings: %s", v.flaw())
	}
	if h.GetNow() < 0 || h.GetNow() > nowMax {
		return fmt.Errorf("log time %d", h.GetNow())
	}
	c := h.GetCounters()
	s.applied = Index(h.GetApplied())
	s.now = Millis(h.GetNow())
	s.settings = v
	s.domainLast = domainNumber(h.GetDomainLast())
	s.totals = Totals{
		Accepted:            c.GetAccepted(),
		Repeats:             c.GetRepeats(),
		Delivered:           c.GetDelivered(),
		Removed:             c.GetRemoved(),
		FingerprintsDropped: c.GetFingerprintsDropped(),
		DoubtsReported:      c.GetDoubtsReported(),
		DoubtsExpired:       c.GetDoubtsExpired(),
		DeliveredLate:       c.GetDeliveredLate(),
		ReportsIgnored:      c.GetReportsIgnored(),
	}
	return known(h, c)
}

func (s *State) loadDomain(r *queuepb.DomainRecord) error {
	c, err := domainFromProto(r.GetDomain())
	if err != nil {
		return err
	}
	d := &domain{number: domainNumber(r.GetNumber()), config: c, hop: NextHop{
		State:  NextHopState(r.GetState()),
		Since:  Millis(r.GetSince()),
		Detail: r.GetDetail(),
		Flush:  Index(r.GetFlush()),
	}}
	for _, n := range r.GetFailed() {
		d.hop.Failed = append(d.hop.Failed, NodeName(n))
	}
	switch {
	case c.flaw() != "":
		return fmt.Errorf("domain %q: %s", c.Name, c.flaw())
	case d.number == 0 || d.number > s.domainLast || s.domains.has(d) || s.names.has(nameItem{name: c.Name}):
		return fmt.Errorf("domain %q of number %d does not fit", c.Name, d.number)
	case d.hop.State < NextHopUp || d.hop.State > NextHopDown || !slices.IsSorted(d.hop.Failed):
		return fmt.Errorf("domain %q: impossible next hop", c.Name)
	}
	s.domains.set(d)
	s.names.set(nameItem{c.Name, d.number})
	s.counts.set(countsItem{domain: d.number})
	return known(r)
}

func (s *State) loadMessage(r *queuepb.MessageRecord) error {
	id, err := mail.QueueIDFromBytes(r.GetId())
	if err != nil {
		return err
	}
	m := newMessage(Index(r.GetEntry()), id, len(r.GetParts()))
	m.sealed = string(r.GetAccepted())
	m.settled = r.GetSettled()
	m.possibleDuplicate = r.GetPossibleDuplicate()
	o := r.GetOrigin()
	m.origin = s.origin(origin{NodeName(o.GetNode()), o.GetHost(), o.GetProtocol(), o.GetTls()})
	u, err := m.unseal()
	if err != nil {
		return err
	}
	domains, partOf := partDomains(u.envelope)
	notes := r.GetNotes()
	if len(r.GetParts()) != len(domains) || len(partOf) == 0 || len(partOf) > recipientsMax ||
		len(notes) > 0 && len(notes) != len(partOf) ||
		u.body.Size < 0 || u.body.Size > bodyBytesMax || m.entry == 0 || m.entry > s.applied ||
		s.messages.has(m) || s.ids.has(idItem{id: id}) {
		return fmt.Errorf("message %s does not fit", id)
	}
	parts := m.parts()
	for k, p := range r.GetParts() {
		if err := known(p); err != nil {
			return err
		}
		parts[k] = part{
			lease:    Token(p.GetLease()),
			domain:   domainNumber(p.GetDomain()),
			attempts: uint16(min(p.GetAttempts(), 1<<16-1)),
			begun:    p.GetBegun(),
		}
		w := waits{Millis(p.GetRetryAt()), Millis(p.GetDoubtUntil()), Token(p.GetDoubted())}
		if w != (waits{}) {
			parts[k].waits = &w
		}
	}
	if len(notes) > 0 {
		m.writeNotes(len(notes))
	}
	for i, n := range notes {
		reply, err := replyFromProto(n.GetReply())
		if err := errors.Join(err, known(n)); err != nil {
			return err
		}
		if n.GetState() < queuepb.RecipientState_RECIPIENT_STATE_QUEUED || n.GetState() > queuepb.RecipientState_RECIPIENT_STATE_REMOVED {
			return fmt.Errorf("message %s: recipient in state %d", id, n.GetState())
		}
		(*m.notes)[i] = note{
			state:         RecipientState(n.GetState()),
			reason:        n.GetReason(),
			token:         Token(n.GetToken()),
			deliveredLate: Token(n.GetDeliveredLate()),
		}
		(*m.notes)[i].setReply(reply)
	}
	for i, k := range partOf {
		state := RecipientQueued
		if m.notes != nil {
			state = (*m.notes)[i].state
		}
		switch state {
		case RecipientQueued:
			parts[k].queued++
		case RecipientHeld:
			parts[k].held++
		}
	}
	s.ids.set(idItem{id, m.entry})
	s.put(m)
	s.effects = nil // they were said when they happened
	if m.over {
		s.ended.remove(endedItem{m.endedAt, m.entry})
		m.endedAt = Millis(r.GetEnded())
		s.ended.set(endedItem{m.endedAt, m.entry})
	}
	if r.GetFingerprintKept() {
		s.keepFingerprint(fingerprintOf(u.envelope, u.body), m.entry)
	}
	return known(r, o)
}

func (s *State) loadStart(r *queuepb.StartRecord) error {
	n := startItem{ServerID(r.GetServer()), r.GetNumber(), Index(r.GetEntry())}
	if s.starts.has(n) || n.entry == 0 || n.entry > s.applied || s.recordStart(n.entry, RecordStart{n.server, n.number}).Verdict != Done {
		return fmt.Errorf("start of %q does not fit", n.server)
	}
	return known(r)
}

// loadLease comes after the messages, whose records of the lease it counts.
func (s *State) loadLease(r *queuepb.LeaseRecord) error {
	l := leaseItem{
		token:   Token(r.GetToken()),
		holder:  NodeName(r.GetHolder()),
		domain:  domainNumber(r.GetDomain()),
		renewal: Index(r.GetRenewal()),
	}
	for item := range s.leased.from(leasedItem{token: l.token}) {
		if item.token != l.token {
			break
		}
		l.messages++
	}
	if l.token == 0 || l.messages == 0 || s.leases.has(l) {
		return fmt.Errorf("lease %d does not fit", l.token)
	}
	s.leases.set(l)
	return known(r)
}
