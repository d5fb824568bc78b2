package fsm

import (
	"iter"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A stored is a message as it lies in the tree. It has no pointers, so the
// garbage collector passes over whole nodes of the tree; and it fills 64 bytes,
// since millions of them are kept. What few messages have is in rests, what
// never changes in blocks.
type stored struct {
	entry    Index
	id       mail.QueueID
	slot     slot
	endedAt  Millis
	lease    Token
	domain   domainNumber
	origin   originNumber
	queued   uint16
	held     uint16
	attempts uint16
	flags    storedFlags
}

type storedFlags uint8

const (
	storedSettled storedFlags = 1 << iota
	storedPossibleDuplicate
	storedOver
	storedBegun
	storedRest // there is a restItem
)

// A restItem is what few messages have, by entry.
type restItem struct {
	entry Index
	rest  *rest
	waits *waits // of the one part
}

// store puts a message into the trees in which messages lie.
func (s *State) store(m *message) {
	p := m.one[0]
	st := stored{
		entry: m.entry, id: m.id, slot: m.slot, endedAt: m.endedAt, origin: m.origin,
		lease: p.lease, domain: p.domain, queued: p.queued, held: p.held, attempts: p.attempts,
		flags: setFlag(storedSettled, m.settled) | setFlag(storedPossibleDuplicate, m.possibleDuplicate) |
			setFlag(storedOver, m.over) | setFlag(storedBegun, p.begun) | setFlag(storedRest, m.rest != nil || p.waits != nil),
	}
	old, known := s.messages.set(st)
	switch {
	case st.flags&storedRest != 0:
		s.rests.set(restItem{m.entry, m.rest, p.waits})
	case known && old.flags&storedRest != 0:
		s.rests.remove(restItem{entry: m.entry})
	}
	if !known {
		s.ids.set(idItem{m.id, m.entry})
	}
}

func setFlag(f storedFlags, is bool) storedFlags {
	if is {
		return f
	}
	return 0
}

// restore is the reverse of store.
func (s *State) restore(st stored) message {
	m := message{
		entry: st.entry, id: st.id, slot: st.slot, endedAt: st.endedAt, origin: st.origin,
		settled:           st.flags&storedSettled != 0,
		possibleDuplicate: st.flags&storedPossibleDuplicate != 0,
		over:              st.flags&storedOver != 0,
	}
	m.one[0] = part{
		lease: st.lease, domain: st.domain, queued: st.queued, held: st.held, attempts: st.attempts,
		begun: st.flags&storedBegun != 0,
	}
	if st.flags&storedRest != 0 {
		r, _ := s.rests.get(restItem{entry: st.entry})
		m.rest, m.one[0].waits = r.rest, r.waits
	}
	return m
}

// message returns the message that was accepted by an entry.
func (s *State) message(entry Index) (*message, bool) {
	st, ok := s.messages.get(stored{entry: entry})
	if !ok {
		return nil, false
	}
	m := s.restore(st)
	return &m, true
}

// hasMessage reports whether there is a message that was accepted by an entry.
func (s *State) hasMessage(entry Index) bool { return s.messages.has(stored{entry: entry}) }

// messagesFrom yields the messages that were accepted by an entry or later, in
// that order.
func (s *State) messagesFrom(entry Index) iter.Seq[message] {
	return func(yield func(message) bool) {
		for st := range s.messages.from(stored{entry: entry}) {
			if !yield(s.restore(st)) {
				return
			}
		}
	}
}

// unstore takes a message out of the trees in which messages lie.
func (s *State) unstore(m *message) {
	s.ids.remove(idItem{id: m.id})
	s.messages.remove(stored{entry: m.entry})
	s.rests.remove(restItem{entry: m.entry})
	s.unseal(m.slot)
}
