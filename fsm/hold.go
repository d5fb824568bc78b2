package fsm

import "github.com/holdfast-mx/holdfast/fsm/mail"

// hold freezes what is queued of a message. A lease record stands on: cleared,
// a Release would make the message grantable while the first holder still acts.
func (s *State) hold(h Hold) Result {
	return s.change(h.ID, "nothing of it is queued", func(n *note, p *part) bool {
		if n.state != RecipientQueued {
			return false
		}
		n.state, n.reason, n.report = RecipientHeld, cut(h.Reason, reasonBytesMax), 0
		p.queued--
		p.held++
		if s.waived.holdEndsLease {
			p.lease, p.begun = 0, false
		}
		return true
	})
}

// release makes what is held of a message queued again, also what the next hop
// refused. It is grantable when the old lease record and the waits have ended.
func (s *State) release(r Release) Result {
	return s.change(r.ID, "nothing of it is held", func(n *note, p *part) bool {
		if n.state != RecipientHeld {
			return false
		}
		n.state, n.reason, n.report = RecipientQueued, "", 0
		p.held--
		p.queued++
		// Else the next Tick would hold again what has expired.
		if d, ok := s.domains.get(&domain{number: p.domain}); ok && d.config.Schedule.Lifetime > 0 {
			w := p.wait()
			w.released = s.now
			p.waits = &w
		}
		return true
	})
}

// remove ends what is queued or held of a message. A repeat afterwards is a new
// message, since a 250 for this one would be for nothing.
func (s *State) remove(r Remove) Result {
	res := s.change(r.ID, "nothing of it is queued or held", func(n *note, p *part) bool {
		switch n.state {
		case RecipientQueued:
			p.queued--
		case RecipientHeld:
			p.held--
		default:
			return false
		}
		n.state, n.reason, n.report = RecipientRemoved, "", 0
		s.totals.Removed++
		return true
	})
	if m, ok := s.find(r.ID); ok && res.Verdict == Done && !s.waived.matchAnyState {
		s.dropFingerprint(m)
	}
	return res
}

// change applies an operator's change to each recipient of a message, and warns
// where the final dot may have been sent.
func (s *State) change(id mail.QueueID, otherwise string, each func(*note, *part) bool) Result {
	m, ok := s.find(id)
	if !ok {
		return notFound("no message %s", id)
	}
	_, partOf := partDomains(s.open(m).envelope)
	c := m.clone()
	notes, parts := c.writeNotes(len(partOf)), c.parts()
	changed := false
	for i := range notes {
		if each(&notes[i], &parts[partOf[i]]) {
			changed = true
		}
	}
	if !changed {
		return refused("%s", otherwise)
	}
	r := Result{Verdict: Done, ID: m.id}
	for _, p := range m.parts() {
		if p.lease != 0 && p.begun || p.wait().doubtUntil > s.now {
			r.MayStillArrive = true
		}
	}
	s.put(c)
	return r
}
