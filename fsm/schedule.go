package fsm

import (
	"slices"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A place is where a part stands.
type place uint8

const (
	nowhere place = iota // nothing of it is queued, and no lease record stands
	isDue
	isWaiting
	isLeased
)

// place returns where p stands at the present log time, and when a wait ends.
func (s *State) place(p part) (place, Millis) {
	w := p.wait()
	switch wait := max(w.retryAt, w.doubtUntil); {
	case p.lease != 0:
		return isLeased, 0
	case p.queued == 0:
		return nowhere, 0
	case wait > s.now:
		return isWaiting, wait
	default:
		return isDue, 0
	}
}

// add stores a message that is new, and brings every index and count in line with
// it. One that has ended has its endedAt. There are no effects.
//
// Nothing but add and put writes a message, so the indexes cannot drift from the
// messages.
func (s *State) add(m *message) {
	live := m.live()
	if m.over = !live && !m.isLeased(); m.over {
		s.ended.set(endedItem{m.endedAt, m.entry})
	}
	s.store(m)
	s.putOwing(m)
	for _, p := range m.parts() {
		s.replace(m.entry, p)
	}
	s.totals.countMessage(m, +1)
	if live {
		s.totals.LiveBytes += s.sealed.get(m.slot).size()
	}
}

// put stores a changed clone of a message that is stored, and brings every index,
// count and effect in line with it.
func (s *State) put(m *message) {
	old, _ := s.message(m.entry)
	live := m.live()
	if m.over = !live && !m.isLeased(); m.over && !old.over {
		m.endedAt = s.now
		s.ended.set(endedItem{m.endedAt, m.entry})
	}
	s.store(m)
	s.putOwing(m)
	for i, p := range m.parts() {
		before := old.parts()[i]
		if before == p {
			continue
		}
		was, _ := s.place(before)
		s.displace(m.entry, before)
		s.replace(m.entry, p)
		s.dropEmptyLease(before.lease)
		if is, _ := s.place(p); is == isDue && was != isDue {
			s.sayQueued(p.domain)
		}
	}
	s.totals.countMessage(old, -1)
	s.totals.countMessage(m, +1)
	switch wasLive := old.live(); {
	case live && !wasLive:
		s.totals.LiveBytes += s.sealed.get(m.slot).size()
	case wasLive && !live:
		s.totals.LiveBytes -= s.sealed.get(m.slot).size()
		s.effects = append(s.effects, Finished{m.id})
	}
}

// putOwing brings the index of what owes reports in line with a message. One that is
// dropped owes none: it has ended.
func (s *State) putOwing(m *message) {
	if m.owes() {
		s.owing.set(m.entry)
	} else if s.owing.len() > 0 {
		s.owing.remove(m.entry)
	}
}

// drop forgets a message.
func (s *State) drop(m *message) {
	for _, p := range m.parts() {
		s.displace(m.entry, p)
		s.dropEmptyLease(p.lease)
	}
	s.totals.countMessage(m, -1)
	s.dropFingerprint(m)
	s.ended.remove(endedItem{m.endedAt, m.entry})
	var aliases []mail.QueueID
	for a := range s.aliases.from(aliasItem{entry: m.entry}) {
		if a.entry != m.entry {
			break
		}
		aliases = append(aliases, a.id)
	}
	for _, id := range aliases {
		s.aliases.remove(aliasItem{m.entry, id})
		s.aliasIDs.remove(idItem{id: id})
	}
	s.unstore(m)
}

// displace takes a part out of the indexes and counts.
func (s *State) displace(entry Index, p part) {
	key := partItem{p.domain, entry}
	switch where, at := s.place(p); where {
	case isDue:
		s.due.remove(key)
	case isWaiting:
		s.waiting.remove(key)
		s.wakes.remove(wakeItem{at, key})
	case isLeased:
		s.leased.remove(leasedItem{p.lease, entry})
		if l, ok := s.leases.get(leaseItem{token: p.lease}); ok {
			l.messages--
			s.leases.set(l)
		}
	}
	s.count(p, -1)
}

// replace puts a part into the indexes and counts.
func (s *State) replace(entry Index, p part) {
	key := partItem{p.domain, entry}
	switch where, at := s.place(p); where {
	case isDue:
		s.due.set(key)
	case isWaiting:
		s.waiting.set(key)
		s.wakes.set(wakeItem{at, key})
	case isLeased:
		s.leased.set(leasedItem{p.lease, entry})
		if l, ok := s.leases.get(leaseItem{token: p.lease}); ok {
			l.messages++
			s.leases.set(l)
		}
	}
	s.count(p, +1)
}

// wake makes the parts due whose waits have ended.
func (s *State) wake() {
	for {
		w, ok := s.wakes.first()
		if !ok || w.at > s.now {
			return
		}
		s.wakes.remove(w)
		s.waiting.remove(w.part)
		s.due.set(w.part)
		c, _ := s.counts.get(countsItem{domain: w.part.domain})
		c.Waiting--
		c.Due++
		s.counts.set(c)
		s.sayQueued(w.part.domain)
	}
}

// endRetryWaits has every part of the domain become due that waits for nothing
// but its next retry: endWaits does it, from this entry on. A part that is
// deferred anew before endWaits comes to it is due once more than it had to be.
func (s *State) endRetryWaits(old *domain) {
	d := *old
	d.ending = 1 // the least index there is
	s.domains.set(&d)
	s.endings.set(d.number)
}

// endWaits goes on with what endRetryWaits has begun, for Settings.WaitsPerEntry
// parts at most, one domain after the other in the order of their numbers. It
// follows every command, so all replicas come equally far.
func (s *State) endWaits() {
	left := s.settings.WaitsPerEntry
	if left == 0 {
		left = s.waiting.len() + 1 // more than there are
	}
	for left > 0 {
		n, ok := s.endings.first()
		if !ok {
			return
		}
		old, _ := s.domains.get(&domain{number: n})
		entries, more := s.waitingFrom(partItem{n, old.ending}, left)
		for _, entry := range entries {
			s.endRetryWait(entry, n)
		}
		left -= len(entries)
		d := *old
		if d.ending = 0; more {
			d.ending = entries[len(entries)-1] + 1
		} else {
			s.endings.remove(n)
		}
		s.domains.set(&d)
	}
}

// waitingFrom returns the waiting parts of the domain from that one on, at most
// max of them, and whether there may be more.
func (s *State) waitingFrom(first partItem, max int) (entries []Index, more bool) {
	for item := range s.waiting.from(first) {
		if item.domain != first.domain {
			return entries, false
		}
		if entries = append(entries, item.entry); len(entries) == max {
			return entries, true
		}
	}
	return entries, false
}

// endRetryWait ends the wait of one part, unless that is in doubt only.
func (s *State) endRetryWait(entry Index, n domainNumber) {
	m, _ := s.message(entry)
	w := m.part(n).wait()
	if w.retryAt <= s.now {
		return
	}
	w.retryAt = s.now
	c := m.clone()
	c.part(n).waits = &w
	s.put(c)
}

// sayQueued tells the shell, once per command, that a domain has due mail.
func (s *State) sayQueued(n domainNumber) {
	d, ok := s.domains.get(&domain{number: n})
	if !ok {
		return
	}
	if e := Effect(Queued{d.config.Name}); !slices.Contains(s.effects, e) {
		s.effects = append(s.effects, e)
	}
}
