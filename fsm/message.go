package fsm

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/holdfast-mx/holdfast/fsm/mail"
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
	// Finished says that no recipient needs the body any more, and no report to the
	// sender is owed.
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
// recipient that the next hop refused for good is held with its reply; it fails in the
// entry that queues the report to its sender, if there may be one. What fails without is
// a report itself.
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
	// Report is what its sender is still to be told; zero for nothing.
	Report ReportKind
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
	// ExpiresAt is when what is queued of it is held; zero for never, and where
	// nothing is.
	ExpiresAt Millis
}

// message is the stored form of a Message.
//
// It is read out of a State, and good until the next change of it: change a
// clone, then put it. What it points to is immutable. Millions are kept, in the
// form of a stored.
type message struct {
	entry Index
	id    mail.QueueID
	slot  slot // of what never changes
	// The parts are in the order in which their domains first occur among the
	// recipients: one, or those in rest where there is more than one.
	one     [1]part
	rest    *rest  // nil where all of it is nil
	endedAt Millis // see Message.EndedAt
	// origin is what many messages have in common.
	origin originNumber

	settled           bool
	possibleDuplicate bool
	over              bool // Message.Ended
}

// A rest is what few messages have. Immutable, as message is.
type rest struct {
	more []part // nil where there is one part
	// notes has one entry per recipient, or none while all recipients are
	// queued and nothing was said about them.
	notes []note
	// origin is not nil where the message's number is zero.
	origin *origin
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
	// released is when an operator released it, where its domain's mail has a
	// lifetime, which begins anew.
	released Millis
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
	report        ReportKind
}

// An origin is what a node's messages have in common. It is shared to save
// memory; nothing can be seen of that.
type origin struct {
	node     NodeName
	host     string // Trace.Node
	protocol string
	tls      string
}

// An originNumber stands for a shared origin. It differs between nodes, since
// it depends on which messages a node has seen; so nothing outside of the State
// may depend on it.
type originNumber uint32

type originItem struct {
	number originNumber
	origin *origin
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

// setOrigin notes where a new message comes from.
func (s *State) setOrigin(m *message, o origin) {
	shared, ok := s.origins.get(originItem{origin: &o})
	switch {
	case ok:
		m.origin = shared.number
	case s.origins.len() < originsMax:
		m.origin = originNumber(s.origins.len() + 1)
		s.origins.set(originItem{m.origin, &o})
		s.numbered.set(originItem{m.origin, &o})
	default:
		m.writeRest().origin = &o
	}
}

// originOf returns where a message comes from.
func (s *State) originOf(m *message) *origin {
	if m.origin == 0 {
		return m.rest.origin
	}
	item, _ := s.numbered.get(originItem{number: m.origin})
	return item.origin
}

// parts returns the parts, in place.
func (m *message) parts() []part {
	if m.rest != nil && m.rest.more != nil {
		return m.rest.more
	}
	return m.one[:]
}

// notes returns what is known of the recipients, nil where all are queued and
// nothing was said about them.
func (m *message) notes() []note {
	if m.rest == nil {
		return nil
	}
	return m.rest.notes
}

// writeRest returns the rest of a message that may be changed.
func (m *message) writeRest() *rest {
	if m.rest == nil {
		m.rest = new(rest)
	}
	return m.rest
}

// live reports whether the body is still needed.
func (m *message) live() bool {
	for _, p := range m.parts() {
		if p.queued > 0 || p.held > 0 {
			return true
		}
	}
	return m.owes()
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
		m.writeRest().more = make([]part, parts)
	}
	return m
}

// clone returns a copy that may be changed.
func (m *message) clone() *message {
	c := *m
	if m.rest != nil {
		c.rest = &rest{more: slices.Clone(m.rest.more), notes: slices.Clone(m.rest.notes), origin: m.rest.origin}
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
	r := m.writeRest()
	if r.notes == nil {
		r.notes = make([]note, recipients)
		for i := range r.notes {
			r.notes[i].state = RecipientQueued
		}
	}
	return r.notes
}

// open decodes what never changes about m. It cannot fail: Accept and Decode
// let in only what can be read.
func (s *State) open(m *message) unsealed {
	u, err := s.sealed.get(m.slot).open()
	if err != nil {
		panic(fmt.Sprintf("message %s of entry %d: %v", m.id, m.entry, err))
	}
	u.body.ID = m.id
	o := s.originOf(m)
	u.envelope.Trace.Node, u.envelope.Trace.Protocol, u.envelope.Trace.TLS = o.host, o.protocol, o.tls
	return u
}

// bodyOf names a message's body, without decoding the envelope.
func (s *State) bodyOf(m *message) mail.BodyRef {
	digest, size := s.sealed.get(m.slot).body()
	return mail.BodyRef{ID: m.id, Digest: digest, Size: size}
}

// partDomains returns the domains of an envelope's parts, in their order, and
// for each recipient the position of its part.
func partDomains(e mail.Envelope) (domains []mail.Domain, partOf []int) {
	partOf = make([]int, len(e.Recipients))
	if len(e.Recipients) == 1 { // nearly all mail
		return []mail.Domain{e.Recipients[0].Domain}, partOf
	}
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
	u := s.open(m)
	v := Message{
		ID:                m.id,
		Entry:             m.entry,
		Envelope:          u.envelope,
		Body:              u.body,
		Node:              s.originOf(m).node,
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
		if notes := m.notes(); notes != nil {
			v.Recipients[i] = notes[i].view()
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
		if d, ok := s.domains.get(&domain{number: p.domain}); ok && p.queued > 0 && d.config.Schedule.Lifetime > 0 {
			v.Parts[i].ExpiresAt = max(u.at, p.wait().released) + d.config.Schedule.Lifetime
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
		Report:        n.report,
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
