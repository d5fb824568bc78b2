package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Which recipients the primaries took mail for: learnt from deliveries, forgotten
// knownDays after the last one. It is remembered by a hash, as it is only ever asked
// about a recipient at hand.
const (
	knownDays = 60
	day       = 24 * hour
	// knownMax bounds them: with more, no further one is learnt until old ones are
	// forgotten. They take some 40 octets each.
	knownMax = 1_000_000
	// knownSweep is how many a Tick looks at, to forget old ones: all of them in
	// half a day.
	knownSweep = 500
)

// A recipientKey stands for a recipient of a relay domain: the first octets of the
// SHA-256 of its local part in lower case. Mailboxes whose local parts differ in case
// alone are one mailbox nearly everywhere.
type recipientKey uint64

func keyOf(r mail.Recipient) recipientKey {
	sum := sha256.Sum256([]byte(strings.ToLower(r.Path.Local)))
	return recipientKey(binary.BigEndian.Uint64(sum[:]))
}

type knownItem struct {
	domain domainNumber
	day    uint16 // of log time, of the last delivery
	key    recipientKey
}

func (a knownItem) less(b knownItem) bool {
	if a.domain != b.domain {
		return a.domain < b.domain
	}
	return a.key < b.key
}

func (s *State) today() uint16 { return uint16(min(s.now/day, 1<<16-1)) }

func (s *State) learn(n domainNumber, key recipientKey) {
	item := knownItem{n, s.today(), key}
	old, ok := s.known.get(item)
	if ok && old.day == item.day || !ok && s.known.len() >= knownMax {
		return
	}
	s.known.set(item)
}

func (s *State) knows(n domainNumber, key recipientKey) bool {
	item, ok := s.known.get(knownItem{domain: n, key: key})
	return ok && s.fresh(item)
}

// knowsAny reports whether any recipient of the domain is known. It looks at few.
func (s *State) knowsAny(n domainNumber) bool {
	looks := 0
	for item := range s.known.from(knownItem{domain: n}) {
		if item.domain != n || looks == knownSweep {
			break
		}
		if s.fresh(item) {
			return true
		}
		looks++
	}
	return false
}

func (s *State) fresh(item knownItem) bool { return int(s.today())-int(item.day) <= knownDays }

// forgetKnown goes on with the walk over all that are known.
func (s *State) forgetKnown() {
	if s.known.len() == 0 {
		s.swept = knownItem{}
		return
	}
	var old []knownItem
	looks, next := 0, knownItem{}
	var of domainNumber // the domain of the last one, and whether there still is such a domain
	there := false
	for item := range s.known.from(s.swept) {
		if looks == knownSweep {
			next = item
			break
		}
		looks++
		if item.domain != of {
			of, there = item.domain, s.domains.has(&domain{number: item.domain})
		}
		if !there || !s.fresh(item) {
			old = append(old, item)
		}
	}
	s.swept = knownItem{domain: next.domain, key: next.key}
	for _, item := range old {
		s.known.remove(item)
	}
}

// KnownGood reports whether a primary took mail for a recipient of the domain in the
// last 60 days of log time.
func (s *State) KnownGood(d mail.Domain, r mail.Recipient) bool {
	n, ok := s.names.get(nameItem{name: d})
	return ok && s.knows(n.number, keyOf(r))
}

// KnownRecipients counts the recipients that are remembered, of all domains.
func (s *State) KnownRecipients() int { return s.known.len() }
