package fsm

// reasonExpired is why a recipient is held whose message has outlived the lifetime
// that its domain gives.
const reasonExpired = "not delivered within its lifetime"

// expire holds what has outlived its domain's lifetime, the oldest first. Nothing
// expires under a lease record or in doubt: it may be delivered at this moment.
func (s *State) expire() {
	left, looks := expiredPerTick, expiredLooksMax
	for d := range s.domains.all() {
		if d.config.Schedule.Lifetime == 0 {
			continue
		}
		// In the order of entries, which is that of log time: the first that is not old
		// ends the look.
		for _, index := range []tree[partItem]{s.due, s.waiting} {
			for _, m := range s.expired(d, index, left, &looks) {
				s.expirePart(m, d.number)
				left--
			}
		}
	}
}

// expired returns messages with a part in an index that is to be held, up to max.
func (s *State) expired(d *domain, index tree[partItem], max int, looks *int) (all []*message) {
	born := s.now - d.config.Schedule.Lifetime // or earlier
	for item := range index.from(partItem{domain: d.number}) {
		if item.domain != d.number || len(all) == max || *looks == 0 {
			break
		}
		*looks--
		m, _ := s.message(item.entry)
		if s.sealed.get(m.slot).at() > born {
			break
		}
		if w := m.part(d.number).wait(); w.released <= born && w.doubtUntil <= s.now {
			all = append(all, m)
		}
	}
	return all
}

// expirePart holds what is queued of a part, or drops it where it is a report.
func (s *State) expirePart(m *message, n domainNumber) {
	c := m.clone()
	e := s.open(m).envelope
	_, partOf := partDomains(e)
	outbound := s.isOutbound(n)
	notes, parts := c.writeNotes(len(partOf)), c.parts()
	for i := range notes {
		p := &parts[partOf[i]]
		if p.domain == n && notes[i].state == RecipientQueued {
			p.queued--
			if outbound {
				notes[i].state, notes[i].report = RecipientFailed, 0
				continue
			}
			notes[i].state, notes[i].reason = RecipientHeld, reasonExpired
			notes[i].report = s.owed(ReportExpired, n, e, e.Recipients[i])
			p.held++
		}
	}
	if outbound {
		s.totals.ReportsDropped++
	} else {
		s.totals.Expired++
	}
	s.put(c)
}
