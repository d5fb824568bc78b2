package fsm

import "github.com/holdfast-mx/holdfast/fsm/mail"

// reasonRefused is why a recipient is held that the next hop refused for good.
const reasonRefused = "refused by the next hop"

// ReasonUnproven is why a recipient is held that the next hop refused for good before it
// had taken anything: nobody is told of it, see guard.
const ReasonUnproven = "refused by the next hop, which has taken nothing since it came back"

// recordOutcomes takes a holder's report.
//
// Delivered and in doubt are facts, under any token. Deferred and failed count
// only under the lease that stands: a holder whose lease has ended must not end
// the wait, or the lease, of another. Ends absorb: what is reported of a
// recipient that has ended is noted beside it and counted.
//
// A report that is applied twice changes nothing the second time, but that its
// deferred and failed are counted as ignored.
func (s *State) recordOutcomes(i Index, r RecordOutcomes) Result {
	if r.Token == 0 || Token(i) <= r.Token {
		return invalid("report under lease %d", r.Token)
	}
	if len(r.Messages) == 0 || len(r.Messages) > leaseMessagesMax {
		return invalid("report of %d messages", len(r.Messages))
	}
	l, ok := s.leases.get(leaseItem{token: r.Token})
	current := ok && l.holder == r.Holder
	for _, o := range r.Messages {
		m, ok := s.findOwn(o.ID)
		if !ok {
			s.totals.ReportsIgnored += uint64(len(o.Recipients))
			continue
		}
		s.recordMessage(m.clone(), o.Recipients, r.Token, current)
	}
	return Result{Verdict: Done}
}

// recordMessage takes what a holder reports of one message. m is a clone.
func (s *State) recordMessage(m *message, outcomes []RecipientOutcome, t Token, current bool) {
	envelope := s.open(m).envelope
	domains, partOf := partDomains(envelope)
	parts := m.parts()
	attempted := make([]bool, len(domains)) // the next hop spoke
	deferred := make([]bool, len(domains))  // and said 4yz
	for _, o := range outcomes {
		if o.Recipient < 0 || o.Recipient >= len(partOf) || o.Outcome < Delivered || o.Outcome > Failed {
			s.totals.ReportsIgnored++
			continue
		}
		k := partOf[o.Recipient]
		p := &parts[k]
		fenced := !(current && p.lease == t) && !s.waived.unfenced
		switch o.Outcome {
		case Delivered:
			n := &m.writeNotes(len(partOf))[o.Recipient]
			if s.recordDelivered(n, p, o.Reply, t) && o.Relayed {
				n.report = s.owed(ReportRelayed, p.domain, envelope, envelope.Recipients[o.Recipient])
			}
			s.took(p.domain, envelope.Recipients[o.Recipient], current && p.lease == t)
			attempted[k] = true
		case InDoubt:
			if s.doubt(m, p, t) {
				s.totals.DoubtsReported++
			}
			attempted[k] = true
		case Deferred, Failed:
			if fenced {
				s.totals.ReportsIgnored++
				continue
			}
			if o.Outcome == Deferred && !o.Tried {
				continue
			}
			attempted[k] = true
			n := &m.writeNotes(len(partOf))[o.Recipient]
			if n.state != RecipientQueued && n.state != RecipientHeld {
				continue
			}
			n.setReply(o.Reply)
			if o.Outcome == Deferred {
				deferred[k] = true
			} else if n.state == RecipientQueued {
				p.queued--
				if s.isOutbound(p.domain) {
					n.state, n.report = RecipientFailed, 0
					s.totals.ReportsDropped++
					continue
				}
				p.held++
				if n.state, n.reason = RecipientHeld, ReasonUnproven; !s.unproven(p.domain) {
					n.reason = reasonRefused
					n.report = s.owed(ReportFailure, p.domain, envelope, envelope.Recipients[o.Recipient])
				}
				s.refusedForGood(p.domain, envelope.Recipients[o.Recipient])
			}
		}
	}
	for k := range parts {
		p := &parts[k]
		if !(current && p.lease == t) && !(s.waived.unfenced && attempted[k]) {
			continue
		}
		p.lease, p.begun = 0, false
		if attempted[k] && p.attempts < 1<<16-1 {
			p.attempts++
		}
		if deferred[k] {
			w := p.wait()
			w.retryAt = s.now + s.retryWait(p, m.id)
			p.waits = &w
		}
	}
	s.put(m)
}

// recordDelivered notes that the next hop has the message for a recipient. It reports
// whether that is the recipient's end.
func (s *State) recordDelivered(n *note, p *part, reply mail.Reply, t Token) bool {
	switch n.state {
	case RecipientQueued:
		p.queued--
	case RecipientHeld:
		p.held--
	default:
		// A second copy, or one that came in spite of its end. The report of one
		// lease counts once.
		if n.token != t && t > n.deliveredLate {
			n.deliveredLate = t
			s.totals.DeliveredLate++
		}
		return false
	}
	n.state, n.reason, n.token, n.report = RecipientDelivered, "", t, 0
	n.setReply(reply)
	s.totals.Delivered++
	return true
}

// retryWait is how long a part waits that was deferred.
func (s *State) retryWait(p *part, id mail.QueueID) Millis {
	d, ok := s.domains.get(&domain{number: p.domain})
	if !ok || d.config.Schedule.RetryMin == 0 {
		return doubled(s.settings.RetryMin, s.settings.RetryMax, int(p.attempts))
	}
	wait := doubled(d.config.Schedule.RetryMin, d.config.Schedule.RetryMax, int(p.attempts))
	// The last octets of an id are random. The attempt shifts them, so that two
	// messages that come together once do not always.
	share := Millis(uint16(id[14])<<8|uint16(id[15])+retryStride*p.attempts) % retryShares
	return wait + wait/4*share/retryShares
}

const (
	retryShares = 1024
	retryStride = 389 // odd, and far from a divisor of retryShares
)

// doubled returns the n-th wait of those from first on, each twice as long as the
// one before, up to most.
func doubled(first, most Millis, n int) Millis {
	wait := first
	for ; n > 1 && wait < most; n-- {
		wait *= 2
	}
	return min(wait, most)
}
