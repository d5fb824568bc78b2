package fsm

import (
	"bufio"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// snapshotRecordBytesMax is the longest record that Decode reads: an envelope
// of 64 KiB and the longest notes for 1,000 recipients fit in it several times.
const snapshotRecordBytesMax = 4 << 20

// A decoder reads records into a State.
type decoder struct {
	s       *State
	r       *bufio.Reader
	version uint32
	records uint64
	last    Index        // the message before
	origins []originItem // with the numbers that they have in s, if shared
	buffer  []byte
	// message is used again for each message.
	message queuepb.SnapshotRecord_Message
}

// read returns the next record, which is good until the next call.
func (d *decoder) read() (*queuepb.SnapshotRecord, error) {
	length, err := binary.ReadUvarint(d.r)
	if err != nil {
		return nil, noEOF(err)
	}
	if length > snapshotRecordBytesMax {
		return nil, fmt.Errorf("%d bytes", length)
	}
	d.buffer = slices.Grow(d.buffer[:0], int(length))[:length]
	if _, err := io.ReadFull(d.r, d.buffer); err != nil {
		return nil, noEOF(err)
	}
	p := new(queuepb.SnapshotRecord)
	if readMessageRecord(d.buffer, d.message.Message) {
		p.Record = &d.message
		return p, nil
	}
	return p, proto.Unmarshal(d.buffer, p)
}

// close makes sure that nothing follows the last record, not even half of what
// the compressor wrote.
func (d *decoder) close() error {
	if d.version < snapshotCompressed {
		return nil
	}
	if _, err := d.r.ReadByte(); err == nil {
		return errors.New("something follows the end")
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// noEOF says that the input ended too early: Decode knows where the end is.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// load takes one record.
func (d *decoder) load(p *queuepb.SnapshotRecord) error {
	if err := known(p); err != nil {
		return err
	}
	s := d.s
	switch r := p.GetRecord().(type) {
	case *queuepb.SnapshotRecord_Header:
		d.version = r.Header.GetVersion()
		if d.version >= snapshotCompressed {
			d.r = bufio.NewReaderSize(flate.NewReader(d.r), snapshotBufferBytes)
		}
		return s.loadHeader(r.Header)
	case *queuepb.SnapshotRecord_Domain:
		return s.loadDomain(r.Domain)
	case *queuepb.SnapshotRecord_Origin:
		o := originFromProto(r.Origin)
		d.origins = append(d.origins, originItem{origin: &o})
		return known(r.Origin)
	case *queuepb.SnapshotRecord_Message:
		return d.loadMessage(r.Message)
	case *queuepb.SnapshotRecord_Alias:
		id, err := mail.QueueIDFromBytes(r.Alias.GetId())
		if err != nil {
			return err
		}
		entry := Index(r.Alias.GetEntry())
		if !s.hasMessage(entry) || s.Known(id) {
			return fmt.Errorf("alias %s does not fit", id)
		}
		s.aliasIDs.set(idItem{id, entry})
		s.aliases.set(aliasItem{entry, id})
		return nil
	case *queuepb.SnapshotRecord_Lease:
		return s.loadLease(r.Lease)
	case *queuepb.SnapshotRecord_Start:
		return s.loadStart(r.Start)
	case *queuepb.SnapshotRecord_Known:
		return s.loadKnown(r.Known)
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
	s.swept = knownItem{domain: domainNumber(h.GetSweptDomain()), key: recipientKey(h.GetSweptKey())}
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
		Expired:             c.GetExpired(),
		Failed:              c.GetFailed(),
		Reports:             c.GetReports(),
		ReportsDropped:      c.GetReportsDropped(),
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
	}, ending: Index(r.GetEnding()), warned: Index(r.GetWarned())}
	if d.guard, err = guardFromProto(r.GetGuard()); err != nil {
		return err
	}
	if r.GetPolicy() != nil {
		policy, err := stsPolicyFromProto(r.GetPolicy())
		if err != nil {
			return err
		}
		if flaw := policy.flaw(); flaw != "" || c.TLS.Mode != TLSMTASTS {
			return fmt.Errorf("domain %q: a policy that does not fit: %s", c.Name, flaw)
		}
		d.policy = &policy
	}
	for _, n := range r.GetFailed() {
		d.hop.Failed = append(d.hop.Failed, NodeName(n))
	}
	for _, n := range r.GetBarred() {
		d.hop.Barred = append(d.hop.Barred, NodeName(n))
	}
	switch {
	case c.flaw() != "":
		return fmt.Errorf("domain %q: %s", c.Name, c.flaw())
	case d.number == 0 || d.number > s.domainLast || s.domains.has(d) || s.names.has(nameItem{name: c.Name}):
		return fmt.Errorf("domain %q of number %d does not fit", c.Name, d.number)
	case d.hop.flaw() != "":
		return fmt.Errorf("domain %q: %s", c.Name, d.hop.flaw())
	case d.guard.flaw(s.now) != "":
		return fmt.Errorf("domain %q: %s", c.Name, d.guard.flaw(s.now))
	case d.warned > s.applied:
		return fmt.Errorf("domain %q: warned of delays up to entry %d, after entry %d", c.Name, d.warned, s.applied)
	case d.ending > s.applied+1:
		return fmt.Errorf("domain %q: waits end from entry %d on, after entry %d", c.Name, d.ending, s.applied)
	}
	s.setDomain(d)
	if d.ending > 0 {
		s.endings.set(d.number)
	}
	s.names.set(nameItem{c.Name, d.number})
	s.counts.set(countsItem{domain: d.number})
	return known(r)
}

func guardFromProto(r *queuepb.Guard) (guard, error) {
	if r == nil {
		return guard{}, nil
	}
	g := guard{armed: r.GetArmed(), stopped: r.GetStopped(), stoppedAt: Millis(r.GetStoppedAt())}
	for _, key := range r.GetRefused() {
		g.refused = append(g.refused, recipientKey(key))
	}
	return g, known(r)
}

func (d *decoder) loadMessage(r *queuepb.MessageRecord) error {
	s := d.s
	id, err := mail.QueueIDFromBytes(r.GetId())
	if err != nil {
		return err
	}
	m := newMessage(Index(r.GetEntry()), id, len(r.GetParts()))
	m.settled = r.GetSettled()
	m.possibleDuplicate = r.GetPossibleDuplicate()
	if err := d.loadSealed(m, r); err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	u, err := s.sealed.get(m.slot).open()
	if err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	u.body.ID = id
	domains, partOf := partDomains(u.envelope)
	notes := r.GetNotes()
	if len(r.GetParts()) != len(domains) || len(partOf) == 0 || len(partOf) > recipientsMax ||
		len(notes) > 0 && len(notes) != len(partOf) ||
		u.body.Size < 0 || u.body.Size > bodyBytesMax || m.entry <= d.last || s.aliasIDs.has(idItem{id: id}) {
		return fmt.Errorf("message %s does not fit", id)
	}
	d.last = m.entry
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
		w := waits{Millis(p.GetRetryAt()), Millis(p.GetDoubtUntil()), Token(p.GetDoubted()), Millis(p.GetReleased())}
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
		m.rest.notes[i] = note{
			state:         RecipientState(n.GetState()),
			reason:        n.GetReason(),
			token:         Token(n.GetToken()),
			deliveredLate: Token(n.GetDeliveredLate()),
			report:        ReportKind(n.GetReport()),
		}
		m.rest.notes[i].setReply(reply)
	}
	for i, k := range partOf {
		state := RecipientQueued
		if notes := m.notes(); notes != nil {
			state = notes[i].state
		}
		switch state {
		case RecipientQueued:
			parts[k].queued++
		case RecipientHeld:
			parts[k].held++
		}
	}
	if !m.live() && !m.isLeased() {
		m.endedAt = Millis(r.GetEnded())
	}
	s.add(m)
	if s.ids.len() < s.messages.len() {
		return fmt.Errorf("message %s is there twice", id)
	}
	if r.GetFingerprintKept() {
		s.keepFingerprint(fingerprintOf(u.envelope, u.body), m.entry)
	}
	if err := s.fits(m, u, domains, partOf); err != nil {
		return fmt.Errorf("message %s: %w", id, err)
	}
	return known(r)
}

// loadSealed takes what never changes about a message.
func (d *decoder) loadSealed(m *message, r *queuepb.MessageRecord) error {
	if d.version >= snapshotCompressed {
		n := r.GetOriginNumber()
		if n == 0 || int(n) > len(d.origins) {
			return fmt.Errorf("origin %d of %d", n, len(d.origins))
		}
		m.slot = d.s.seal(m.entry, r.GetSealed())
		o := &d.origins[n-1]
		if m.origin = o.number; m.origin == 0 {
			d.s.setOrigin(m, *o.origin)
			o.number = m.origin
		}
		return nil
	}
	d.s.setOrigin(m, originFromProto(r.GetOrigin()))
	var a queuepb.Accepted
	if err := proto.Unmarshal(r.GetAccepted(), &a); err != nil {
		return err
	}
	e, err := envelopeFromProto(a.GetEnvelope())
	if err != nil {
		return err
	}
	digest, err := mail.DigestFromBytes(a.GetDigest())
	if err != nil {
		return err
	}
	m.slot = d.s.seal(m.entry, seal(e, mail.BodyRef{Digest: digest, Size: mail.ByteSize(a.GetSize())}, Millis(a.GetAt())))
	return known(&a, r.GetOrigin())
}

func originFromProto(r *queuepb.OriginRecord) origin {
	return origin{NodeName(r.GetNode()), r.GetHost(), r.GetProtocol(), r.GetTls()}
}

// knownBytes is the length of a recipient in a record: its key and a day.
const knownBytes = 8 + 2

func (s *State) loadKnown(r *queuepb.KnownRecord) error {
	b := r.GetRecipients()
	if len(b) == 0 || len(b)%knownBytes != 0 || len(b) > knownPerRecord*knownBytes || r.GetDomain() == 0 || domainNumber(r.GetDomain()) > s.domainLast {
		return fmt.Errorf("recipients of domain %d in %d octets", r.GetDomain(), len(b))
	}
	for ; len(b) > 0; b = b[knownBytes:] {
		item := knownItem{domainNumber(r.GetDomain()), binary.BigEndian.Uint16(b[8:]), recipientKey(binary.BigEndian.Uint64(b))}
		if last, ok := s.known.last(); ok && !last.less(item) || item.day > s.today() || s.known.len() >= knownMax {
			return fmt.Errorf("recipient %x of domain %d does not fit", uint64(item.key), item.domain)
		}
		s.known.set(item)
	}
	return known(r)
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
