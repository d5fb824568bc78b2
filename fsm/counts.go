package fsm

import "github.com/holdfast-mx/holdfast/fsm/mail"

// Counts says how many messages of one relay domain stand where.
//
// Invariant: Due + Waiting, and those leased ones that have a queued recipient,
// are Queued.
type Counts struct {
	Queued  int // with a queued recipient of the domain
	Held    int // with a held recipient of the domain
	Due     int // that GrantLeases would grant now
	Waiting int // queued, with a retry wait or doubt_wait running
	Leased  int // with a lease record of the domain
}

type countsItem struct {
	domain domainNumber
	Counts
}

// Totals counts over the whole queue.
type Totals struct {
	// As it is now.
	Messages     int           // records, ended ones included
	Live         int           // messages whose body is still needed
	LiveBytes    mail.ByteSize // octets of those bodies
	Unsettled    int           // records whose 250 nobody provably read
	Marked       int           // records that are marked possible duplicate
	Aliases      int
	Leases       int
	Fingerprints int

	// Since the cluster was made.
	Accepted            uint64 // messages
	Repeats             uint64 // Accepts answered with the id of an earlier message
	Delivered           uint64 // recipients
	Removed             uint64 // recipients
	FingerprintsDropped uint64 // because there were too many
	DoubtsReported      uint64 // parts whose holder reported them in doubt
	DoubtsExpired       uint64 // parts whose lease expired, begun and without outcome
	DeliveredLate       uint64 // recipients delivered after they had ended, or a second time
	Expired             uint64 // parts that outlived their domain's lifetime, and were held
	Failed              uint64 // recipients that the next hop refused, and whose sender was told
	Reports             uint64 // reports to senders that were queued
	ReportsDropped      uint64 // of those, what could not be delivered
	ReportsIgnored      uint64 // outcomes that came under an ended lease or named nothing known
}

// Counts returns how many messages of the domain stand where.
func (s *State) Counts(d mail.Domain) Counts {
	n, ok := s.names.get(nameItem{name: d})
	if !ok {
		return Counts{}
	}
	c, _ := s.counts.get(countsItem{domain: n.number})
	return c.Counts
}

// Totals returns the counts over the whole queue.
func (s *State) Totals() Totals {
	t := s.totals
	t.Messages = s.messages.len()
	t.Aliases = s.aliases.len()
	t.Leases = s.leases.len()
	t.Fingerprints = s.prints.len()
	return t
}

// count adds a part to the counts of its domain, or takes it away.
func (s *State) count(p part, by int) {
	c, ok := s.counts.get(countsItem{domain: p.domain})
	if !ok {
		return // the domain is gone; so nothing of it is queued, held or leased
	}
	if p.queued > 0 {
		c.Queued += by
	}
	if p.held > 0 {
		c.Held += by
	}
	switch where, _ := s.place(p); where {
	case isDue:
		c.Due += by
	case isWaiting:
		c.Waiting += by
	case isLeased:
		c.Leased += by
	}
	s.counts.set(c)
}

// countMessage adds a message to the totals, or takes it away.
func (t *Totals) countMessage(m *message, by int) {
	if m.live() {
		t.Live += by
	}
	if !m.settled {
		t.Unsettled += by
	}
	if m.possibleDuplicate {
		t.Marked += by
	}
}
