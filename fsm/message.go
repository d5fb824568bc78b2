package fsm

import (
	"cmp"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// A Message is what the queue knows of one accepted message. It is a copy:
// whoever has it may keep and change it.
type Message struct {
	ID       mail.QueueID
	Entry    Index // of the Accept
	Envelope mail.Envelope
	Body     mail.BodyRef
	Node     NodeName // that accepted it
	Accepted Millis
	// Settled says that the client has provably read the 250. A message that
	// stays unsettled may have been sent to us, or elsewhere, a second time.
	Settled bool
	// PossibleDuplicate says that some final dot was sent, or may have been
	// sent, whose reply did not come to be committed under its lease.
	PossibleDuplicate bool
	// Recipients has one entry for each of Envelope.Recipients.
	Recipients []RecipientStatus
	Parts      []Part
	// Aliases are the ids of repeats that were answered with this id.
	Aliases []mail.QueueID
	// Finished says that no recipient needs the body any more.
	Finished bool
	// Ended says that it is finished and that no lease record stands; Since
	// EndedAt its record ages.
	Ended   bool
	EndedAt Millis
}

// State sums the recipients up for people: queued if one is, else held if one
// is, else failed, removed or delivered, in this order.
func (m Message) State() RecipientState {
	for _, state := range []RecipientState{RecipientQueued, RecipientHeld, RecipientFailed, RecipientRemoved} {
		for _, r := range m.Recipients {
			if r.State == state {
				return state
			}
		}
	}
	return RecipientDelivered
}

// Queued returns the positions of the recipients of the domain that are still
// queued: those that a lease for the domain is about.
func (m Message) Queued(d mail.Domain) []int {
	var positions []int
	for i, r := range m.Envelope.Recipients {
		if r.Domain == d && m.Recipients[i].State == RecipientQueued {
			positions = append(positions, i)
		}
	}
	return positions
}

// RecipientState is where a recipient stands.
type RecipientState uint8

// The states. Delivered, failed and removed are ends: nothing leaves them. A
// recipient that the next hop refused for good is held with its reply, as
// nothing bounces yet; so no recipient fails.
const (
	RecipientQueued RecipientState = iota + 1
	RecipientHeld
	RecipientDelivered
	RecipientFailed
	RecipientRemoved
)

// String returns the state as the CLI prints it.
func (r RecipientState) String() string {
	switch r {
	case RecipientQueued:
		return "queued"
	case RecipientHeld:
		return "held"
	case RecipientDelivered:
		return "delivered"
	case RecipientFailed:
		return "failed"
	case RecipientRemoved:
		return "removed"
	}
	return fmt.Sprintf("state %d", uint8(r))
}

// RecipientStatus is what is known of one recipient.
type RecipientStatus struct {
	State  RecipientState
	Reply  mail.Reply // the next hop's last word on it, zero if none
	Reason string     // why it is held, for people
	// Token is the lease under which it was delivered; zero before.
	Token Token
	// DeliveredLate is the lease of a holder that reported it delivered after
	// it had ended otherwise, or had been delivered by another; zero if none.
	DeliveredLate Token
}

// A Part is the recipients of one relay domain within a message: the unit that
// is leased.
//
// Invariant: at most one lease record stands per part.
// Invariant: it is leased only while a recipient of it is queued, and no wait
// is running.
type Part struct {
	Domain   mail.Domain
	Queued   int      // recipients that are queued
	Held     int      // recipients that are held
	Lease    Token    // zero: no lease record stands
	Holder   NodeName // of that lease
	Begun    bool     // the holder may have sent the final dot
	RetryAt  Millis   // not granted before; may lie in the past
	Attempts int      // in which the next hop spoke about this part
	// DoubtUntil is when the wait for a holder in doubt ends; may lie in the
	// past.
	DoubtUntil Millis
}

// message is the stored form of a Message.
//
// It is immutable once it is in a State: change a clone, then put it.
type message struct {
	entry Index
	id    mail.QueueID
	// sealed is what never changes, encoded as queuepb.Accepted: a tenth of
	// the heap that the decoded envelope would take.
	sealed string
	// origin is what many messages have in common, shared between them.
	origin *origin
	// The parts are in the order in which their domains first occur among the
	// recipients: one, or more where there is more than one.
	one  [1]part
	more *[]part
	// notes has one entry per recipient, or none while all recipients are
	// queued and nothing was said about them.
	notes   *[]note
	endedAt Millis // see Message.EndedAt

	settled           bool
	possibleDuplicate bool
	over              bool // Message.Ended
}

// part is the stored form of a Part.
type part struct {
	lease    Token
	waits    *waits // nil until there is one; immutable
	domain   domainNumber
	queued   uint16
	held     uint16
	attempts uint16
	begun    bool
}

// waits are the times before which a part is not granted again.
type waits struct {
	retryAt    Millis
	doubtUntil Millis
	// doubted is the last lease of which a doubt was counted. A holder repeats
	// its report until it is answered, and may report after ExpireLeases did
	// the counting: one lease is one doubt.
	doubted Token
}

func (p *part) wait() waits {
	if p.waits == nil {
		return waits{}
	}
	return *p.waits
}

// note is the stored form of a RecipientStatus.
type note struct {
	state         RecipientState
	code          uint16
	enhanced      [3]uint16
	text          string
	reason        string
	token         Token
	deliveredLate Token
}

// An origin is what a node's messages have in common. It is shared to save
// memory; nothing can be seen of that.
type origin struct {
	node     NodeName
	host     string // Trace.Node
	protocol string
	tls      string
}

// originsMax bounds the origins that are shared: nodes, times protocols, times
// cipher suites. Further ones are stored with each message.
const originsMax = 1024

func (a origin) compare(b origin) int {
	return cmp.Or(
		cmp.Compare(a.node, b.node), cmp.Compare(a.host, b.host),
		cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.tls, b.tls),
	)
}

// origin returns the shared form of o.
func (s *State) origin(o origin) *origin {
	if shared, ok := s.origins.get(&o); ok {
		return shared
	}
	if s.origins.len() < originsMax {
		s.origins.set(&o)
	}
	return &o
}

// parts returns the parts, in place.
func (m *message) parts() []part {
	if m.more != nil {
		return *m.more
	}
	return m.one[:]
}

// live reports whether the body is still needed.
func (m *message) live() bool {
	for _, p := range m.parts() {
		if p.queued > 0 || p.held > 0 {
			return true
		}
	}
	return false
}

// isLeased reports whether a lease record stands.
func (m *message) isLeased() bool {
	for _, p := range m.parts() {
		if p.lease != 0 {
			return true
		}
	}
	return false
}

// newMessage returns a message of so many parts, to be filled in.
func newMessage(entry Index, id mail.QueueID, parts int) *message {
	m := &message{entry: entry, id: id}
	if parts > 1 {
		more := make([]part, parts)
		m.more = &more
	}
	return m
}

// clone returns a copy that may be changed.
func (m *message) clone() *message {
	c := *m
	if m.more != nil {
		more := slices.Clone(*m.more)
		c.more = &more
	}
	if m.notes != nil {
		notes := slices.Clone(*m.notes)
		c.notes = &notes
	}
	return &c
}

// part returns the part of a domain, or nil.
func (m *message) part(n domainNumber) *part {
	parts := m.parts()
	for i := range parts {
		if parts[i].domain == n {
			return &parts[i]
		}
	}
	return nil
}

// writeNotes returns the notes of a clone, for writing.
func (m *message) writeNotes(recipients int) []note {
	if m.notes == nil {
		notes := make([]note, recipients)
		for i := range notes {
			notes[i].state = RecipientQueued
		}
		m.notes = &notes
	}
	return *m.notes
}

// seal encodes what never changes about a message, but its origin.
func seal(a Accept, at Millis) (string, error) {
	a.Envelope.Trace.Node, a.Envelope.Trace.Protocol, a.Envelope.Trace.TLS = "", "", ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&queuepb.Accepted{
		Envelope: envelopeToProto(a.Envelope),
		Digest:   a.Body.Digest[:],
		Size:     int64(a.Body.Size),
		At:       int64(at),
	})
	return string(b), err
}

// unsealed is what seal was given.
type unsealed struct {
	envelope mail.Envelope
	body     mail.BodyRef
	at       Millis
}

func (m *message) unseal() (unsealed, error) {
	var p queuepb.Accepted
	if err := proto.Unmarshal([]byte(m.sealed), &p); err != nil {
		return unsealed{}, fmt.Errorf("envelope of %s: %w", m.id, err)
	}
	e, err := envelopeFromProto(p.GetEnvelope())
	if err != nil {
		return unsealed{}, fmt.Errorf("envelope of %s: %w", m.id, err)
	}
	digest, err := mail.DigestFromBytes(p.GetDigest())
	if err != nil {
		return unsealed{}, fmt.Errorf("envelope of %s: %w", m.id, err)
	}
	e.Trace.Node, e.Trace.Protocol, e.Trace.TLS = m.origin.host, m.origin.protocol, m.origin.tls
	return unsealed{
		envelope: e,
		body:     mail.BodyRef{ID: m.id, Digest: digest, Size: mail.ByteSize(p.GetSize())},
		at:       Millis(p.GetAt()),
	}, nil
}

// open decodes what never changes about m. It cannot fail: Accept and Decode
// let in only what can be read.
func (m *message) open() unsealed {
	u, err := m.unseal()
	if err != nil {
		panic(fmt.Sprintf("message %s of entry %d: %v", m.id, m.entry, err))
	}
	return u
}

// partDomains returns the domains of an envelope's parts, in their order, and
// for each recipient the position of its part.
func partDomains(e mail.Envelope) (domains []mail.Domain, partOf []int) {
	partOf = make([]int, len(e.Recipients))
	seen := make(map[mail.Domain]int)
	for i, r := range e.Recipients {
		k, ok := seen[r.Domain]
		if !ok {
			k = len(domains)
			seen[r.Domain] = k
			domains = append(domains, r.Domain)
		}
		partOf[i] = k
	}
	return domains, partOf
}

// view returns m as others see it.
func (s *State) view(m *message) Message {
	u := m.open()
	v := Message{
		ID:                m.id,
		Entry:             m.entry,
		Envelope:          u.envelope,
		Body:              u.body,
		Node:              m.origin.node,
		Accepted:          u.at,
		Settled:           m.settled,
		PossibleDuplicate: m.possibleDuplicate,
		Finished:          !m.live(),
		Ended:             m.over,
		EndedAt:           m.endedAt,
		Recipients:        make([]RecipientStatus, len(u.envelope.Recipients)),
		Parts:             make([]Part, len(m.parts())),
	}
	for i := range v.Recipients {
		v.Recipients[i].State = RecipientQueued
		if m.notes != nil {
			v.Recipients[i] = (*m.notes)[i].view()
		}
	}
	domains, _ := partDomains(u.envelope)
	for i, p := range m.parts() {
		v.Parts[i] = Part{
			Domain:     domains[i],
			Queued:     int(p.queued),
			Held:       int(p.held),
			Lease:      p.lease,
			Begun:      p.begun,
			RetryAt:    p.wait().retryAt,
			Attempts:   int(p.attempts),
			DoubtUntil: p.wait().doubtUntil,
		}
		if l, ok := s.leases.get(leaseItem{token: p.lease}); ok {
			v.Parts[i].Holder = l.holder
		}
	}
	for a := range s.aliases.from(aliasItem{entry: m.entry}) {
		if a.entry != m.entry {
			break
		}
		v.Aliases = append(v.Aliases, a.id)
	}
	return v
}

func (n note) view() RecipientStatus {
	return RecipientStatus{
		State:         n.state,
		Reply:         n.reply(),
		Reason:        n.reason,
		Token:         n.token,
		DeliveredLate: n.deliveredLate,
	}
}

func (n note) reply() mail.Reply {
	return mail.Reply{
		Code:     int(n.code),
		Enhanced: mail.EnhancedCode{int(n.enhanced[0]), int(n.enhanced[1]), int(n.enhanced[2])},
		Text:     n.text,
	}
}

// setReply notes what the next hop said. A code that no SMTP server has is
// noted as zero, a text that is too long is cut: a reply is hostile input, and
// is only ever shown.
func (n *note) setReply(r mail.Reply) {
	n.code = code(r.Code)
	for i, c := range r.Enhanced {
		n.enhanced[i] = code(c)
	}
	n.text = cut(r.Text, replyBytesMax)
}

func code(c int) uint16 {
	if c < 0 || c > 999 {
		return 0
	}
	return uint16(c)
}
