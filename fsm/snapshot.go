package fsm

import (
	"bufio"
	"compress/flate"
	"crypto/sha256"
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
// Encode writes version 1 until a start is recorded, version 3 until waits are
// bounded, version 4 until a domain has a schedule or a ceiling, version 5 until
// something is reported to senders, and version 6 where no domain has callers, nor a
// next hop that refuses a node: all that a newer version can say came with a command
// that every voter can apply, and who can apply it reads that version.
const snapshotVersion = 7

// snapshotCompressed is the first version that is compressed behind its header.
const snapshotCompressed = 3

// snapshotBufferBytes is the buffer on either side of the compression.
const snapshotBufferBytes = 64 << 10

// snapshotRecordBytesMax is the longest record that Decode reads: an envelope
// of 64 KiB and the longest notes for 1,000 recipients fit in it several times.
const snapshotRecordBytesMax = 4 << 20

// Encode writes the whole State. The same State gives the same bytes, and it
// is written record by record, so that the memory it takes does not grow with
// the queue. The format is queuepb.SnapshotRecord's.
//
// It is compressed, at the least effort, since a node writes its whole queue
// again and again.
//
// Only messages, their origins, aliases, domains and leases are written; every
// index follows from them.
func (s *State) Encode(w io.Writer) error { return s.encode(w, true) }

// Digest is the SHA-256 of what Encode writes, before it is compressed. States that
// have applied the same entries have the same one, on nodes of one version.
func (s *State) Digest() [sha256.Size]byte {
	h := sha256.New()
	_ = s.encode(h, false) // a hash takes everything
	return [sha256.Size]byte(h.Sum(nil))
}

func (s *State) encode(w io.Writer, compress bool) error {
	version := uint32(1)
	switch {
	case s.called(), s.refusing():
		version = snapshotVersion
	case s.reporting():
		version = 6
	case s.scheduled():
		version = 5
	case s.settings.WaitsPerEntry > 0 || s.endings.len() > 0:
		version = 4
	case s.starts.len() > 0:
		version = snapshotCompressed
	}
	e := &encoder{s: s, version: version, w: bufio.NewWriterSize(w, snapshotBufferBytes), origins: make(map[origin]uint32)}
	finish := []func() error{e.w.Flush}
	t := s.totals
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Header{Header: &queuepb.SnapshotHeader{
		Version:    version,
		Applied:    uint64(s.applied),
		Now:        int64(s.now),
		Settings:   settingsToProto(s.settings),
		DomainLast: uint32(s.domainLast),

		SweptDomain: uint32(s.swept.domain),
		SweptKey:    uint64(s.swept.key),
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
			Expired:             t.Expired,
			Failed:              t.Failed,
			Reports:             t.Reports,
			ReportsDropped:      t.ReportsDropped,
		},
	}}})
	if compress && version >= snapshotCompressed {
		plain := e.w
		compressor, err := flate.NewWriter(plain, flate.BestSpeed)
		if err != nil {
			return fmt.Errorf("encode queue: %w", err)
		}
		e.w = bufio.NewWriterSize(compressor, snapshotBufferBytes)
		finish = []func() error{e.w.Flush, compressor.Close, plain.Flush}
	}
	for d := range s.domains.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Domain{Domain: d.toProto()}})
	}
	for m := range s.messagesFrom(0) {
		e.message(&m)
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
	e.known()
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_End{End: &queuepb.SnapshotEnd{Records: e.records}}})
	for _, flush := range finish {
		if e.err == nil {
			e.err = flush()
		}
	}
	if e.err != nil {
		return fmt.Errorf("encode queue: %w", e.err)
	}
	return nil
}

// scheduled reports whether a domain has what only version 5 can say.
func (s *State) scheduled() bool {
	for d := range s.domains.all() {
		if d.config.newer() {
			return true
		}
	}
	return s.totals.Expired > 0
}

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

func (o origin) toProto() *queuepb.OriginRecord {
	return &queuepb.OriginRecord{Node: string(o.node), Host: o.host, Protocol: o.protocol, Tls: o.tls}
}

func originFromProto(r *queuepb.OriginRecord) origin {
	return origin{NodeName(r.GetNode()), r.GetHost(), r.GetProtocol(), r.GetTls()}
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
	d := decoder{s: New(), r: r}
	d.message.Message = new(queuepb.MessageRecord)
	for {
		p, err := d.read()
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", d.records, err)
		}
		if _, is := p.GetRecord().(*queuepb.SnapshotRecord_Header); is != (d.records == 0) {
			return nil, fmt.Errorf("record %d: header out of place", d.records)
		}
		if end := p.GetEnd(); end != nil {
			if end.GetRecords() != d.records {
				return nil, fmt.Errorf("%d records, want %d", d.records, end.GetRecords())
			}
			if err := d.close(); err != nil {
				return nil, err
			}
			return d.s, d.s.checkLeases()
		}
		if err := d.load(p); err != nil {
			return nil, fmt.Errorf("record %d: %w", d.records, err)
		}
		d.records++
	}
}

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
