package cluster

import (
	"sync"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// settledMax bounds the ids that wait to be proposed. An id that is dropped
// stays unsettled, which is the safe side: its repeats go on being recognised.
const settledMax = 100_000

// settledPerCommand bounds how many ids travel with one command, so that an
// entry stays small.
const settledPerCommand = 256

// A settledSet holds the messages whose 250 was provably read, until a proposal
// that carries their ids is known to be committed.
type settledSet struct {
	mu      sync.Mutex
	waiting []mail.QueueID // oldest first
}

// add remembers id, dropping the oldest when there are too many.
func (s *settledSet) add(id mail.QueueID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) >= settledMax {
		s.waiting = s.waiting[1:]
	}
	s.waiting = append(s.waiting, id)
}

// take removes up to settledPerCommand ids. Who takes them gives them back if
// the proposal that carried them is not known to be committed; ids that travel
// twice do no harm.
func (s *settledSet) take() []mail.QueueID {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.waiting), settledPerCommand)
	if n == 0 {
		return nil
	}
	ids := append([]mail.QueueID(nil), s.waiting[:n]...)
	s.waiting = s.waiting[n:]
	return ids
}

// giveBack returns ids that take removed.
func (s *settledSet) giveBack(ids []mail.QueueID) {
	for _, id := range ids {
		s.add(id)
	}
}

func (s *settledSet) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) == 0
}
