package fsm

import (
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Check verifies every invariant of a State that can be seen in one: those of
// the data, and that each index holds exactly what follows from the messages.
// It costs time in proportion to the queue. Tests and simulations call it; an error
// is a defect of this package.
//
// Decode, which a node that starts waits for, verifies the data alone: it makes the
// indexes itself.
func (s *State) Check() error {
	c := checker{s: s, counts: make(map[domainNumber]Counts)}
	for m := range s.messagesFrom(0) {
		u, err := s.sealed.get(m.slot).open()
		if err == nil {
			domains, partOf := partDomains(u.envelope)
			err = errors.Join(s.fits(&m, u, domains, partOf), c.message(&m))
		}
		if err != nil {
			return fmt.Errorf("message %s of entry %d: %w", m.id, m.entry, err)
		}
	}
	return errors.Join(c.indexes(), s.checkLeases(), c.domains(), c.fingerprints())
}

// fits verifies the data of a message, beside the envelope: u is what its sealed
// part holds, domains and partOf are partDomains of that.
func (s *State) fits(m *message, u unsealed, domains []mail.Domain, partOf []int) error {
	if s.originOf(m) == nil {
		return errors.New("has no origin")
	}
	notes := m.notes()
	if len(domains) != len(m.parts()) || notes != nil && len(notes) != len(partOf) || u.at > s.now {
		return errors.New("does not fit its envelope")
	}
	if m.entry == 0 || m.entry > s.applied {
		return fmt.Errorf("accepted after entry %d", s.applied)
	}
	if m.endedAt > s.now {
		return fmt.Errorf("ended at %d, after %d", m.endedAt, s.now)
	}
	type count struct{ queued, held uint16 }
	counts := make([]count, 1, 8) // on the stack, for nearly all mail
	counts = append(counts, make([]count, len(domains)-1)...)
	for i, k := range partOf {
		switch {
		case notes == nil || notes[i].state == RecipientQueued:
			counts[k].queued++
		case notes[i].state == RecipientHeld:
			counts[k].held++
		}
		if notes != nil && !notes[i].mayOwe() {
			return fmt.Errorf("owes a report of its %v of a recipient that is %v", notes[i].report, notes[i].state)
		}
	}
	for k, p := range m.parts() {
		if has := (count{p.queued, p.held}); has != counts[k] {
			return fmt.Errorf("counts %+v for %q, has %+v", has, domains[k], counts[k])
		}
		if k > 0 && slices.ContainsFunc(m.parts()[:k], func(q part) bool { return q.domain == p.domain }) {
			return fmt.Errorf("%q has the number of another domain", domains[k])
		}
		if p.begun && p.lease == 0 {
			return errors.New("is begun without a lease")
		}
		if p.queued > 0 || p.held > 0 || p.lease != 0 {
			if d, ok := s.domain(domains[k]); !ok || d.number != p.domain {
				return fmt.Errorf("%q is not the relay domain it was", domains[k])
			}
		}
	}
	if kept, ok := s.printed.get(printItem{entry: m.entry}); ok {
		if m.settled || !m.matches() {
			return errors.New("keeps a fingerprint that must not match")
		}
		u.body.ID = m.id
		if kept.print != fingerprintOf(u.envelope, u.body) {
			return errors.New("keeps the fingerprint of another message")
		}
		if p, ok := s.prints.get(kept); !ok || p.entry != m.entry {
			return errors.New("its fingerprint does not find it")
		}
		if u.at+s.settings.FingerprintLife <= s.now {
			return errors.New("keeps a fingerprint whose time is over")
		}
	}
	return nil
}

// A checker counts what it saw of the messages, to compare the indexes with.
type checker struct {
	s *State

	messages, rests, aliases, due, waiting, leasedAll, ended, owing int

	sealed int // octets

	totals Totals
	counts map[domainNumber]Counts
}

func (c *checker) message(m *message) error {
	s := c.s
	c.messages++
	if found, ok := s.ids.get(idItem{id: m.id}); !ok || found.entry != m.entry {
		return errors.New("its id does not find it")
	}
	if e, _, n := s.sealed.record(m.slot); e != m.entry {
		return fmt.Errorf("lies where entry %d does", e)
	} else {
		c.sealed += n
	}
	if m.rest != nil || m.one[0].waits != nil {
		c.rests++
	}
	for _, p := range m.parts() {
		if err := c.part(m, &p); err != nil {
			return fmt.Errorf("for domain %d: %w", p.domain, err)
		}
	}
	if m.owes() {
		c.owing++
		if !s.owing.has(m.entry) {
			return errors.New("owes a report and is not found by that")
		}
	}
	if over := !m.live() && !m.isLeased(); m.over != over || over != s.ended.has(endedItem{m.endedAt, m.entry}) {
		return errors.New("ended, or not, against its record")
	}
	if m.over {
		c.ended++
	}
	c.totals.countMessage(m, +1)
	if m.live() {
		c.totals.LiveBytes += s.sealed.get(m.slot).size()
	}
	return nil
}

func (c *checker) part(m *message, p *part) error {
	s, key := c.s, partItem{p.domain, m.entry}
	where, at := s.place(*p)
	if s.due.has(key) != (where == isDue) ||
		s.waiting.has(key) != (where == isWaiting) ||
		where == isWaiting && !s.wakes.has(wakeItem{at, key}) ||
		p.lease != 0 && !s.leased.has(leasedItem{p.lease, m.entry}) {
		return errors.New("is not where it stands")
	}
	counts := c.counts[p.domain]
	switch where {
	case isDue:
		c.due++
		counts.Due++
	case isWaiting:
		c.waiting++
		counts.Waiting++
	case isLeased:
		c.leasedAll++
		counts.Leased++
	}
	if p.queued > 0 {
		counts.Queued++
	}
	if p.held > 0 {
		counts.Held++
	}
	c.counts[p.domain] = counts
	return nil
}

func (c *checker) indexes() error {
	s := c.s
	for a := range s.aliases.all() {
		c.aliases++
		item, ok := s.aliasIDs.get(idItem{id: a.id})
		if !ok || !s.hasMessage(a.entry) || item.entry != a.entry || s.ids.has(idItem{id: a.id}) {
			return fmt.Errorf("alias %s of entry %d finds nothing", a.id, a.entry)
		}
	}
	for _, i := range []struct {
		name      string
		got, want int
	}{
		{"ids", s.ids.len(), c.messages},
		{"rests", s.rests.len(), c.rests},
		{"sealed octets", s.sealed.live(), c.sealed},
		{"ids of aliases", s.aliasIDs.len(), c.aliases},
		{"numbered origins", s.numbered.len(), s.origins.len()},
		{"due", s.due.len(), c.due},
		{"waiting", s.waiting.len(), c.waiting},
		{"wakes", s.wakes.len(), c.waiting},
		{"leased", s.leased.len(), c.leasedAll},
		{"ended", s.ended.len(), c.ended},
		{"owing", s.owing.len(), c.owing},
		{"fingerprints", s.prints.len(), s.printed.len()},
		{"names", s.names.len(), s.domains.len()},
		{"counts", s.counts.len(), s.domains.len()},
	} {
		if i.got != i.want {
			return fmt.Errorf("index %s has %d, want %d", i.name, i.got, i.want)
		}
	}
	t := s.totals
	if t.Live != c.totals.Live || t.LiveBytes != c.totals.LiveBytes || t.Unsettled != c.totals.Unsettled || t.Marked != c.totals.Marked {
		return fmt.Errorf("totals %+v, want %+v", t, c.totals)
	}
	if w, ok := s.wakes.first(); ok && w.at <= s.now {
		return fmt.Errorf("wait until %d at %d", w.at, s.now)
	}
	return nil
}

// checkLeases verifies that each part which is leased is so by a lease that is there,
// and that each lease counts its own.
func (s *State) checkLeases() error {
	counts := make(map[Token]int)
	for item := range s.leased.all() {
		m, _ := s.message(item.entry)
		l, ok := s.leases.get(leaseItem{token: item.token})
		if p := m.part(l.domain); !ok || p == nil || p.lease != l.token {
			return fmt.Errorf("message %s of entry %d is in lease %d, which is not there", m.id, m.entry, item.token)
		}
		counts[item.token]++
	}
	for l := range s.leases.all() {
		if l.messages != counts[l.token] || l.messages == 0 {
			return fmt.Errorf("lease %d counts %d messages, has %d", l.token, l.messages, counts[l.token])
		}
		if l.token == 0 || Index(l.token) > s.applied || l.renewal < Index(l.token) || l.renewal > s.applied {
			return fmt.Errorf("lease %d, renewed by %d, after entry %d", l.token, l.renewal, s.applied)
		}
	}
	return nil
}

func (c *checker) domains() error {
	endings, outbound := 0, 0
	for d := range c.s.domains.all() {
		if d.ending > 0 {
			endings++
		}
		if _, is := d.config.Outbound(); is {
			outbound++
		}
		if flaw := d.guard.flaw(c.s.now); flaw != "" {
			return fmt.Errorf("domain %q: %s", d.config.Name, flaw)
		}
		if flaw := d.hop.flaw(); flaw != "" {
			return fmt.Errorf("domain %q: %s", d.config.Name, flaw)
		}
		if (d.ending > 0) != c.s.endings.has(d.number) {
			return fmt.Errorf("domain %q ends waits from entry %d on, or not", d.config.Name, d.ending)
		}
		item, _ := c.s.counts.get(countsItem{domain: d.number})
		if want := c.counts[d.number]; item.Counts != want {
			return fmt.Errorf("domain %q counts %+v, want %+v", d.config.Name, item.Counts, want)
		}
	}
	if c.s.outbound != outbound {
		return fmt.Errorf("counts %d outbound domains, has %d", c.s.outbound, outbound)
	}
	if n := c.s.endings.len(); n != endings {
		return fmt.Errorf("%d domains end waits, want %d", n, endings)
	}
	return nil
}

func (c *checker) fingerprints() error {
	s := c.s
	if n := s.prints.len(); n > s.settings.FingerprintMax {
		return fmt.Errorf("%d fingerprints, want at most %d", n, s.settings.FingerprintMax)
	}
	for p := range s.prints.all() {
		if !s.printed.has(p) || !s.hasMessage(p.entry) {
			return fmt.Errorf("fingerprint of entry %d, which keeps none", p.entry)
		}
	}
	return nil
}
