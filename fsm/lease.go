package fsm

import (
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Lease is the exclusive right of Holder to attempt the messages towards the
// next hop of Domain.
//
// Invariant: Token is the index of the entry that granted it, so a later lease
// has a greater token.
// Invariant: a lease has messages; with the last record in it, it ends.
type Lease struct {
	Token    Token
	Holder   NodeName
	Domain   mail.Domain
	Renewal  Index // index of the last renewal, or the token itself
	Messages []mail.QueueID
}

type leaseItem struct {
	token    Token
	holder   NodeName
	domain   domainNumber
	renewal  Index
	messages int // lease records that stand
}

// Leases returns the leases by token, the messages of each as they were
// accepted.
func (s *State) Leases() []Lease {
	leases := make([]Lease, 0, s.leases.len())
	for item := range s.leases.all() {
		d, _ := s.domains.get(&domain{number: item.domain})
		l := Lease{Token: item.token, Holder: item.holder, Domain: d.config.Name, Renewal: item.renewal}
		for _, m := range s.leasedMessages(item.token) {
			l.Messages = append(l.Messages, m.id)
		}
		leases = append(leases, l)
	}
	return leases
}

// Lease returns one lease.
func (s *State) Lease(t Token) (Lease, bool) {
	item, ok := s.leases.get(leaseItem{token: t})
	if !ok {
		return Lease{}, false
	}
	d, _ := s.domains.get(&domain{number: item.domain})
	l := Lease{Token: t, Holder: item.holder, Domain: d.config.Name, Renewal: item.renewal}
	for _, m := range s.leasedMessages(t) {
		l.Messages = append(l.Messages, m.id)
	}
	return l, true
}

// leasedMessages returns the messages with a record of the lease.
func (s *State) leasedMessages(t Token) []*message {
	var messages []*message
	for item := range s.leased.from(leasedItem{token: t}) {
		if item.token != t {
			break
		}
		m, _ := s.message(item.entry)
		messages = append(messages, m)
	}
	return messages
}

// dropEmptyLease ends a lease in which no record stands any more.
func (s *State) dropEmptyLease(t Token) {
	if l, ok := s.leases.get(leaseItem{token: t}); ok && l.messages == 0 {
		s.leases.remove(l)
	}
}

// grantLeases gives the holder those of the messages that may be given now: it
// checks each again, since Hold, Remove, an outcome or another grant may have
// been committed after the plan was made.
func (s *State) grantLeases(i Index, g GrantLeases) Result {
	if g.Holder == "" || len(g.Holder) > nodeNameBytesMax || !utf8.ValidString(string(g.Holder)) {
		return invalid("malformed holder")
	}
	if len(g.Messages) == 0 || len(g.Messages) > leaseMessagesMax {
		return invalid("lease of %d messages", len(g.Messages))
	}
	n, ok := s.names.get(nameItem{name: g.Domain})
	if !ok {
		return notFound("%q is not a relay domain", g.Domain)
	}
	d, _ := s.domains.get(&domain{number: n.number})
	left := s.grantMax(d)
	token := Token(i)
	s.leases.set(leaseItem{token: token, holder: g.Holder, domain: n.number, renewal: i})
	r := Result{Verdict: Done}
	for _, id := range g.Messages {
		m, ok := s.findOwn(id)
		if !ok || len(r.Messages) == left {
			continue
		}
		p := m.part(n.number)
		if p == nil || p.lease == token {
			continue
		}
		if where, _ := s.place(*p); where != isDue && !s.waived.grantUnchecked {
			continue
		}
		c := m.clone()
		p = c.part(n.number)
		p.lease, p.begun = token, false
		s.put(c)
		r.Messages = append(r.Messages, id)
	}
	s.dropEmptyLease(token)
	return r
}

// renewLeases prolongs the lease and marks messages as begun.
//
// A message of which nothing is queued any more is answered "stop", and is not
// begun; so is each one of a domain that is stopped. Its record stands while the lease does, so the holder must report; if
// nothing of the lease is queued, the lease is not prolonged.
//
// A renewal that is applied twice prolongs twice. That is harmless: the holder
// counts from when it sent the request whose answer it got.
func (s *State) renewLeases(i Index, r RenewLeases) Result {
	l, ok := s.leases.get(leaseItem{token: r.Token})
	if !ok || l.holder != r.Holder {
		res := notFound("no lease %d of %q", r.Token, r.Holder)
		res.Messages = distinct(r.Begun)
		return res
	}
	begun := make(map[mail.QueueID]bool, len(r.Begun))
	for _, id := range r.Begun {
		begun[id] = true
	}
	d, _ := s.domains.get(&domain{number: l.domain})
	result := Result{Verdict: Done}
	queued := false
	for _, m := range s.leasedMessages(r.Token) {
		p := m.part(l.domain)
		switch {
		case p.queued == 0 || d.guard.stopped:
			result.Messages = append(result.Messages, m.id)
		case begun[m.id] && !p.begun:
			c := m.clone()
			c.part(l.domain).begun = true
			s.put(c)
			queued = true
		default:
			queued = true
		}
		delete(begun, m.id)
	}
	for _, id := range distinct(r.Begun) {
		if begun[id] { // not in the lease
			result.Messages = append(result.Messages, id)
		}
	}
	if queued {
		l, _ = s.leases.get(l)
		l.renewal = i
		s.leases.set(l)
	}
	return result
}

// distinct returns the ids without repetitions, in order.
func distinct(ids []mail.QueueID) []mail.QueueID {
	var out []mail.QueueID
	seen := make(map[mail.QueueID]bool, len(ids))
	for _, id := range ids {
		if !seen[id] {
			seen[id] = true
			out = append(out, id)
		}
	}
	return out
}

// expireLeases ends a lease that its holder let run out, unless it was renewed
// since the leader looked:
//
//  1. The leader's timer fires while a renewal is in flight.
//  2. The renewal is committed, and the holder learns that its right goes on.
//  3. ExpireLeases is committed. Without the check a second holder gets the
//     messages while the first still has the right to send them.
//
// A message that was begun may have been sent: it is marked, counted, and waits
// for its holder, which may still be alive and report.
func (s *State) expireLeases(e ExpireLeases) Result {
	l, ok := s.leases.get(leaseItem{token: e.Token})
	if !ok {
		return notFound("no lease %d", e.Token)
	}
	if l.renewal != e.Renewal && !s.waived.expireUnguarded {
		return refused("lease %d was renewed by entry %d", e.Token, l.renewal)
	}
	for _, m := range s.leasedMessages(e.Token) {
		c := m.clone()
		p := c.part(l.domain)
		if p.begun && s.doubt(c, p, e.Token) {
			s.totals.DoubtsExpired++
		}
		p.lease, p.begun = 0, false
		s.put(c)
	}
	return Result{Verdict: Done}
}

// doubt marks a clone as possible duplicate and starts its doubt_wait. It
// reports whether this is the first that is heard of it under the lease; a
// repeated or later report changes nothing.
//
// One tick is added, since the log time of an entry may be one tick old.
func (s *State) doubt(m *message, p *part, t Token) bool {
	m.possibleDuplicate = true
	w := p.wait()
	if t <= w.doubted {
		return false
	}
	w.doubted = t
	w.doubtUntil = s.now + s.settings.DoubtWait + tickMax
	p.waits = &w
	return true
}
