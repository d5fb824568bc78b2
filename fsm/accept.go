package fsm

import (
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// accept makes a message ours, or finds that it is already.
//
// A known id is answered as the first time, whatever became of the message
// since, so that its node may ask again while it does not know the outcome.
//
// A refused Accept is not remembered: nothing bounds how many there are. Its
// node may therefore tell the client so, with a 4yz or 5yz, only when every
// attempt that it made with this id has been answered. While one is unknown,
// that one may still be applied, after a PutDomain that came in between, and be
// accepted; then the node closes without a reply, as for any unknown outcome.
func (s *State) accept(i Index, node NodeName, a Accept) Result {
	id := a.Body.ID
	if m, ok := s.find(id); ok {
		if m.id == id {
			return Result{Verdict: Done, ID: id}
		}
		return Result{Verdict: Repeat, ID: m.id}
	}
	if flaw := a.flaw(); flaw != "" {
		return invalid("%s", flaw)
	}
	if len(node) > nodeNameBytesMax || !utf8.ValidString(string(node)) {
		return invalid("malformed node name")
	}
	print := fingerprintOf(a.Envelope, a.Body)
	if m, ok := s.repeated(print); ok {
		s.aliasIDs.set(idItem{id, m.entry})
		s.aliases.set(aliasItem{m.entry, id})
		s.totals.Repeats++
		s.effects = append(s.effects, Finished{id}) // nobody needs this copy's body
		return Result{Verdict: Repeat, ID: m.id}
	}
	for _, r := range a.Envelope.Recipients {
		if _, outbound := (Domain{Name: r.Domain}).Outbound(); outbound {
			s.effects = append(s.effects, Finished{id})
			return refused("%q is not a relay domain", r.Domain)
		}
	}
	r := s.enqueue(i, node, a, false)
	if r.Verdict == Done {
		s.keepFingerprint(print, i)
		s.totals.Accepted++
	}
	return r
}

// enqueue stores a new message.
func (s *State) enqueue(i Index, node NodeName, a Accept, settled bool) Result {
	id := a.Body.ID
	domains, partOf := partDomains(a.Envelope)
	m := newMessage(i, id, len(domains))
	m.settled = settled
	parts := m.parts()
	for k, d := range domains {
		n, ok := s.names.get(nameItem{name: d})
		if !ok {
			s.effects = append(s.effects, Finished{id})
			return refused("%q is not a relay domain", d)
		}
		parts[k].domain = n.number
	}
	for _, k := range partOf {
		parts[k].queued++
	}
	octets := seal(a.Envelope, a.Body, s.now)
	if len(octets) > envelopeBytesMax {
		return invalid("envelope of %d bytes", len(octets))
	}
	m.slot = s.seal(i, octets)
	t := a.Envelope.Trace
	s.setOrigin(m, origin{node, t.Node, t.Protocol, t.TLS})
	s.add(m)
	for _, p := range parts {
		s.sayQueued(p.domain)
	}
	return Result{Verdict: Done, ID: id}
}

// flaw says what makes an Accept malformed, or "". The accepting node has
// checked all of it; this is the second look of those who must live with it.
func (a Accept) flaw() string {
	e := a.Envelope
	switch n := len(e.Recipients); {
	case a.Body.ID.IsZero():
		return "no queue id"
	case a.Body.Size < 0 || a.Body.Size > bodyBytesMax:
		return "impossible body size"
	case n == 0:
		return "no recipients"
	case n > recipientsMax:
		return "too many recipients"
	case e.Return > mail.ReturnHeaders:
		return "unknown RET"
	}
	for _, t := range []string{e.Trace.Node, e.Trace.Protocol, e.Trace.TLS} {
		if len(t) > originBytesMax {
			return "trace too long"
		}
	}
	valid := true
	for _, t := range [...]string{
		e.From.Local, e.From.Host, e.EnvelopeID,
		e.Trace.Hello, e.Trace.Node, e.Trace.Protocol, e.Trace.TLS,
	} {
		valid = valid && utf8.ValidString(t)
	}
	var paths map[mail.Mailbox]bool
	if len(e.Recipients) > 1 {
		paths = make(map[mail.Mailbox]bool, len(e.Recipients))
	}
	for _, r := range e.Recipients {
		if r.Path.Local == "" {
			return "empty forward-path"
		}
		if r.Domain == "" {
			return "recipient without relay domain"
		}
		if r.Notify > 2*mail.NotifyDelay-1 {
			return "unknown NOTIFY"
		}
		if paths != nil {
			path := canonical(r.Path.Mailbox)
			if paths[path] {
				return "duplicate forward-path"
			}
			paths[path] = true
		}
		for _, t := range [...]string{r.Path.Local, r.Path.Host, string(r.Domain), r.Original} {
			valid = valid && utf8.ValidString(t)
		}
	}
	if !valid {
		return "text that is not UTF-8"
	}
	return ""
}

// settle notes that clients have read the 250 of these messages: from now on
// the same octets again are a new message.
func (s *State) settle(ids []mail.QueueID) {
	if s.waived.neverSettle {
		return
	}
	for _, id := range ids {
		m, ok := s.find(id)
		if !ok || m.settled {
			continue
		}
		s.dropFingerprint(m)
		c := m.clone()
		c.settled = true
		s.put(c)
	}
}
