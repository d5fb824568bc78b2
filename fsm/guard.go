package fsm

import (
	"slices"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A guard watches what a next hop says first when it has come back: one that was set
// up anew, and knows no mailbox yet, would refuse the whole queue for good.
//
// As long as it is armed, only few messages are out at a time. What the next hop takes
// disarms it. When it has refused mail GuardSpentMax times for recipients that it took
// mail for before, the domain is stopped: no message is leased, and leases are not
// renewed, until an administrator has it go on. Where nothing is known of the
// domain's recipients, so many refusals for different recipients stop it.
//
// Invariant: armed and stopped exclude each other.
// Invariant: refused has at most GuardSpentMax keys, and none unless armed or stopped.
type guard struct {
	armed     bool
	stopped   bool
	stoppedAt Millis
	refused   []recipientKey // immutable
}

// GuardSpentMax is how many messages are spent to find out.
const GuardSpentMax = 3

// flaw says which invariant is broken, or "".
func (g guard) flaw(now Millis) string {
	switch {
	case g.armed && g.stopped:
		return "guard both armed and stopped"
	case g.stoppedAt < 0 || g.stoppedAt > now || g.stoppedAt > 0 && !g.stopped:
		return "guard that stopped at another time"
	case len(g.refused) > GuardSpentMax || g.armed && len(g.refused) == GuardSpentMax || len(g.refused) > 0 && !g.armed && !g.stopped:
		return "guard with too many refusals"
	}
	return ""
}

// grantMax is how many messages of a domain may be leased now.
func (s *State) grantMax(d *domain) int {
	switch {
	case d.guard.stopped:
		return 0
	case d.guard.armed:
		c, _ := s.counts.get(countsItem{domain: d.number})
		return max(0, GuardSpentMax-len(d.guard.refused)-c.Leased)
	}
	return leaseMessagesMax
}

// took notes that the next hop took a message for a recipient: it is known good from
// now on. Current says that it did so under a lease that stands: then it is no old
// news.
func (s *State) took(n domainNumber, r mail.Recipient, current bool) {
	d, ok := s.domains.get(&domain{number: n})
	if !ok || !d.guarded() {
		return
	}
	s.learn(n, keyOf(r))
	if current && d.guard.armed {
		c := *d
		c.guard = guard{}
		s.domains.set(&c)
	}
}

// unproven reports whether the next hop has come back and has taken nothing yet, or was
// stopped for what it refused. What it refuses then says little of the recipient, whoever
// that is: nobody is told, or the senders of a queue would hear from a primary without
// mailboxes that there are none.
func (s *State) unproven(n domainNumber) bool {
	d, ok := s.domains.get(&domain{number: n})
	return ok && (d.guard.armed || d.guard.stopped)
}

// refusedForGood notes that the next hop refused a message for a recipient.
func (s *State) refusedForGood(n domainNumber, r mail.Recipient) {
	d, ok := s.domains.get(&domain{number: n})
	if !ok || !d.guard.armed {
		return
	}
	key := keyOf(r)
	switch history := s.knowsAny(n); {
	case history && !s.knows(n, key):
		return // it may well not exist
	case !history && slices.Contains(d.guard.refused, key):
		return // one that does not exist says nothing of the others
	}
	c := *d
	c.guard.refused = append(slices.Clone(d.guard.refused), key)
	if len(c.guard.refused) >= GuardSpentMax {
		c.guard.armed, c.guard.stopped, c.guard.stoppedAt = false, true, s.now
		s.effects = append(s.effects, DomainStopped{d.config.Name})
	}
	s.domains.set(&c)
}

// guarded reports whether guards watch over the domain. A version that does not know
// of them knows no such domain.
func (d *domain) guarded() bool { return d.config.ConnectionsMax > 0 }

// resumeDomain has a domain that is stopped go on. The guard is not armed again before
// the next outage: the administrator has looked.
func (s *State) resumeDomain(n mail.Domain) Result {
	old, ok := s.domain(n)
	if !ok {
		return notFound("%q is not a relay domain", n)
	}
	if old.guard.stopped || old.guard.armed {
		d := *old
		d.guard = guard{}
		s.domains.set(&d)
		c, _ := s.counts.get(countsItem{domain: d.number})
		if c.Due > 0 {
			s.sayQueued(d.number)
		}
	}
	return Result{Verdict: Done}
}
