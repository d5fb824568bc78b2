package fsm

import (
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A ReportKind is what a delivery status notification tells a sender (RFC 3461).
type ReportKind uint8

// The kinds. Zero is none.
const (
	ReportFailure ReportKind = iota + 1 // the next hop refused the recipient for good
	ReportExpired                       // it was not delivered within its lifetime
	ReportDelay                         // it is not delivered yet
	ReportRelayed                       // it was delivered to a next hop that makes no reports
)

// String returns the kind in words.
func (k ReportKind) String() string {
	switch k {
	case 0:
		return "none"
	case ReportFailure:
		return "failure"
	case ReportExpired:
		return "expiry"
	case ReportDelay:
		return "delay"
	case ReportRelayed:
		return "relayed"
	}
	return fmt.Sprintf("report %d", uint8(k))
}

// BouncePolicy is whose mail is reported on to its sender.
type BouncePolicy uint8

// The policies. What is not reported on is held.
const (
	// BounceAligned reports to senders that were authenticated when the mail was
	// accepted. No verdicts are recorded yet, so there is none.
	BounceAligned BouncePolicy = iota
	BounceHold                 // reports nothing
	BounceAlways               // reports to every sender
)

// String returns the policy as it is configured.
func (b BouncePolicy) String() string {
	switch b {
	case BounceAligned:
		return "aligned"
	case BounceHold:
		return "hold"
	case BounceAlways:
		return "always"
	}
	return fmt.Sprintf("policy %d", uint8(b))
}

// outboundPrefix begins the names of outbound domains. No relay domain has one
// like it, since none has an @: whoever asks for a domain that a client named never
// finds an outbound one.
const outboundPrefix = "outbound@"

// outboundMax bounds the outbound domains. What would need one more waits.
const outboundMax = 1000

// OutboundDomain returns the name of the domain that reports to a host are queued
// for, which is no relay domain.
func OutboundDomain(host mail.Domain) mail.Domain { return outboundPrefix + host }

// Outbound returns the host that an outbound domain's reports go to; false for a
// relay domain.
func (d Domain) Outbound() (host mail.Domain, ok bool) {
	name, ok := strings.CutPrefix(string(d.Name), outboundPrefix)
	return mail.Domain(name), ok
}

// outboundConfig is how reports to a host are delivered: by its MX records, for some
// days. One that cannot be delivered is dropped.
func outboundConfig(name mail.Domain) Domain {
	return Domain{Name: name, MX: true, Schedule: Schedule{RetryMin: 5 * minute, RetryMax: 4 * hour, Lifetime: 5 * 24 * hour}}
}

// isOutbound reports whether a number is that of an outbound domain.
func (s *State) isOutbound(n domainNumber) bool {
	d, ok := s.domains.get(&domain{number: n})
	if !ok {
		return false
	}
	_, is := d.config.Outbound()
	return is
}

// owed returns the report that a recipient's sender is to get, or zero.
func (s *State) owed(k ReportKind, n domainNumber, e mail.Envelope, r mail.Recipient) ReportKind {
	d, ok := s.domains.get(&domain{number: n})
	if !ok || d.config.Bounce != BounceAlways || e.From.IsNull() || r.Notify&mail.NotifyNever != 0 {
		return 0
	}
	// Who said nothing hears of failures alone (RFC 3461 section 4.1).
	if k == ReportRelayed && r.Notify&mail.NotifySuccess == 0 || k == ReportDelay && r.Notify&mail.NotifyDelay == 0 ||
		(k == ReportFailure || k == ReportExpired) && r.Notify != 0 && r.Notify&mail.NotifyFailure == 0 {
		return 0
	}
	return k
}

// owes reports whether the message owes its sender a report.
func (m *message) owes() bool {
	return slices.ContainsFunc(m.notes(), func(n note) bool { return n.report != 0 })
}

// mayOwe reports whether the report that is owed of a recipient fits its state.
func (n note) mayOwe() bool {
	switch n.report {
	case 0:
		return true
	case ReportFailure, ReportExpired:
		return n.state == RecipientHeld
	case ReportDelay:
		return n.state == RecipientQueued
	case ReportRelayed:
		return n.state == RecipientDelivered
	}
	return false
}

// Owing returns the messages that owe their senders reports, from an entry on, in the
// order in which they were accepted.
func (s *State) Owing(from Index) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for entry := range s.owing.from(from) {
			m, _ := s.message(entry)
			if !yield(s.view(m)) {
				return
			}
		}
	}
}

// OwingCount is how many messages Owing has.
func (s *State) OwingCount() int { return s.owing.len() }

// Owes reports whether a message is one of them.
func (s *State) Owes(id mail.QueueID) bool {
	m, ok := s.ids.get(idItem{id: id})
	return ok && s.owing.has(m.entry)
}

// issueReport settles what a message owes its sender for some recipients, all at once
// or not at all: it has changed since its node looked if one of them owes no such
// report any more.
//
// One that is issued twice is found by its own id.
func (s *State) issueReport(i Index, node NodeName, a IssueReport) Result {
	id := a.Report.Body.ID
	if !id.IsZero() {
		if m, ok := s.find(id); ok && m.id == id {
			return Result{Verdict: Done, ID: id}
		}
	}
	orphan := func(r Result) Result {
		if !id.IsZero() {
			s.effects = append(s.effects, Finished{id})
		}
		return r
	}
	if a.Kind < ReportFailure || a.Kind > ReportRelayed || len(a.Recipients) == 0 || len(a.Recipients) > recipientsMax {
		return orphan(invalid("malformed report"))
	}
	m, ok := s.findOwn(a.Message)
	if !ok {
		return orphan(notFound("no message %s", a.Message))
	}
	notes := m.notes()
	for _, r := range a.Recipients {
		if r < 0 || r >= len(notes) || notes[r].report != a.Kind {
			return orphan(refused("it owes recipient %d no report of its %v", r, a.Kind))
		}
	}
	if !id.IsZero() {
		if r := s.queueReport(i, node, a.Report); r.Verdict != Done {
			return orphan(r)
		}
		s.totals.Reports++
	}
	s.settleReport(m.clone(), a)
	return Result{Verdict: Done, ID: id}
}

// queueReport accepts a report. It goes to one recipient, of a relay domain or of the
// outbound domain of another host. It repeats no other message, and no client waits
// for its 250.
func (s *State) queueReport(i Index, node NodeName, a Accept) Result {
	if flaw := a.flaw(); flaw != "" {
		return invalid("report: %s", flaw)
	}
	if len(a.Envelope.Recipients) != 1 || !a.Envelope.From.IsNull() {
		return invalid("report that is none")
	}
	r := a.Envelope.Recipients[0]
	host := r.Path.Domain()
	if _, relayed := s.names.get(nameItem{name: host}); relayed && r.Domain != host || !relayed && r.Domain != OutboundDomain(host) {
		return refused("a report to %q does not go to %q", host, r.Domain)
	}
	if _, ok := s.names.get(nameItem{name: r.Domain}); !ok {
		if name, err := mail.ParseDomain(string(host)); err != nil || name != host {
			return invalid("report to a malformed domain")
		}
		if s.outbound >= outboundMax || s.domains.len() >= domainsMax {
			return refused("reports go to %d hosts already", s.outbound)
		}
		s.addDomain(outboundConfig(r.Domain))
	}
	return s.enqueue(i, node, a, true)
}

// settleReport notes that the report was issued, or that none may be. m is a clone.
func (s *State) settleReport(m *message, a IssueReport) {
	_, partOf := partDomains(s.open(m).envelope)
	notes, parts := m.writeNotes(len(partOf)), m.parts()
	issued := !a.Report.Body.ID.IsZero()
	failed := false
	for _, r := range a.Recipients {
		n := &notes[r]
		n.report = 0
		switch {
		case issued && a.Kind == ReportFailure:
			n.state, n.reason = RecipientFailed, ""
			parts[partOf[r]].held--
			s.totals.Failed++
			failed = true
		case issued && a.Kind == ReportExpired:
			n.reason = reasonExpired + "; the sender was told"
		case a.Kind == ReportFailure:
			n.reason = cut(reasonRefused+"; no report: "+a.Reason, reasonBytesMax)
		case a.Kind == ReportExpired:
			n.reason = cut(reasonExpired+"; no report: "+a.Reason, reasonBytesMax)
		}
	}
	if failed { // a repeat would be told that it was accepted
		s.dropFingerprint(m)
	}
	s.put(m)
}

// warn has messages that wait for long owe a report of that, each once, in the order
// in which they were accepted.
func (s *State) warn() {
	left := warnLooksMax
	for d := range s.domains.all() {
		if d.config.DelayWarning == 0 {
			continue
		}
		c := *d
		for m := range s.messagesFrom(d.warned + 1) {
			if left == 0 || s.sealed.get(m.slot).at()+d.config.DelayWarning > s.now {
				break
			}
			left--
			c.warned = m.entry
			if p := m.part(d.number); p != nil && p.queued > 0 {
				s.warnOf(m.clone(), d.number)
			}
		}
		if c.warned != d.warned {
			s.domains.set(&c)
		}
	}
}

// warnLooksMax bounds the messages that one Tick looks at to warn of delays.
const warnLooksMax = 5000

func (s *State) warnOf(m *message, n domainNumber) {
	e := s.open(m).envelope
	_, partOf := partDomains(e)
	parts, owing := m.parts(), false
	for i, r := range e.Recipients {
		if parts[partOf[i]].domain != n || m.notes() != nil && m.notes()[i].state != RecipientQueued {
			continue
		}
		if k := s.owed(ReportDelay, n, e, r); k != 0 {
			m.writeNotes(len(partOf))[i].report = k
			owing = true
		}
	}
	if owing {
		s.put(m)
	}
}

// endOutbound ends outbound domains that have nothing left to deliver.
func (s *State) endOutbound() {
	if s.outbound == 0 {
		return
	}
	var over []*domain
	for d := range s.domains.all() {
		if _, is := d.config.Outbound(); !is {
			continue
		}
		if c, _ := s.counts.get(countsItem{domain: d.number}); c.Queued == 0 && c.Held == 0 && c.Leased == 0 {
			over = append(over, d)
		}
	}
	for _, d := range over {
		s.dropDomain(d)
	}
}

// reporting reports whether the State has what only version 6 of snapshots can say.
func (s *State) reporting() bool {
	if s.totals.Reports > 0 || s.totals.ReportsDropped > 0 || s.owing.len() > 0 || s.outbound > 0 {
		return true
	}
	for d := range s.domains.all() {
		if d.config.latest() || d.policy != nil {
			return true
		}
	}
	return false
}

// latest says that the configuration has what only version 5 of commands can say.
func (d Domain) latest() bool { return d.Bounce != BounceAligned || d.DelayWarning != 0 || d.XClient }
