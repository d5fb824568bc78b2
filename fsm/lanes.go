package fsm

import (
	"iter"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// slowFrom is from how many attempts on a part is in the slow lane. By then it has
// waited for three retries, so what is put off once or twice for a good reason, as by
// greylisting, is not in it.
const slowFrom = 4

// Slow reports whether the part is in the slow lane: its next hop has spoken about it
// so often, and not taken all of it. A leader plans such parts into few places of each
// lease, so that they are not in the way of what the next hop takes.
func (p Part) Slow() bool { return p.Queued > 0 && p.Attempts >= slowFrom }

// A DueMessage is a message that GrantLeases would grant, as much of it as a plan
// needs to know.
type DueMessage struct {
	ID    mail.QueueID
	Entry Index // of the Accept: a greater one is newer
	Slow  bool  // see Part.Slow
}

// DueFrom returns the messages that Due returns, from the entry on.
func (s *State) DueFrom(d mail.Domain, from Index) iter.Seq[DueMessage] {
	return func(yield func(DueMessage) bool) {
		n, ok := s.names.get(nameItem{name: d})
		if !ok {
			return
		}
		for item := range s.due.from(partItem{n.number, from}) {
			if item.domain != n.number || !yield(s.dueMessage(item)) {
				return
			}
		}
	}
}

// DueNewest returns the messages that Due returns, the newest first.
func (s *State) DueNewest(d mail.Domain) iter.Seq[DueMessage] {
	return func(yield func(DueMessage) bool) {
		n, ok := s.names.get(nameItem{name: d})
		if !ok {
			return
		}
		s.due.items.Descend(partItem{n.number, indexMax}, func(item partItem) bool {
			return item.domain == n.number && yield(s.dueMessage(item))
		})
	}
}

// indexMax is behind every entry.
const indexMax = ^Index(0)

func (s *State) dueMessage(item partItem) DueMessage {
	st, _ := s.messages.get(stored{entry: item.entry})
	attempts := st.attempts
	if st.domain != item.domain { // one part of several
		m := s.restore(st)
		attempts = m.part(item.domain).attempts
	}
	return DueMessage{ID: st.id, Entry: item.entry, Slow: attempts >= slowFrom}
}
