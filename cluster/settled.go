package cluster

import (
	"slices"
	"sync"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// settledMax bounds the ids that wait to be committed. An id that is dropped
// stays unsettled, which is the safe side: its repeats go on being recognised.
const settledMax = 100_000

// settledPerCommand bounds how many ids travel with one batch of proposals;
// settledBytesMax is more than they take.
const (
	settledPerCommand = 2048
	settledBytesMax   = 40 << 10
)

// A settledSet holds the messages whose 250 was provably read, until a proposal
// that carries their ids is known to be committed.
//
// Until then every batch of proposals carries all of them, ahead of everything
// else: a client's next message must never be applied before the one whose 250 it
// has read is settled, or two legitimate identical messages become one. The same
// id twice does no harm.
type settledSet struct {
	mu      sync.Mutex
	waiting []mail.QueueID // oldest first
	// fresh, if not nil, carries a value when ids wait that had not been looked for.
	fresh chan struct{}
}

// add remembers id, dropping the oldest when there are too many.
func (s *settledSet) add(id mail.QueueID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) >= settledMax {
		s.waiting = slices.Delete(s.waiting, 0, 1)
	}
	s.waiting = append(s.waiting, id)
	select {
	case s.fresh <- struct{}{}:
	default:
	}
}

// oldest returns the ids that were added first, up to settledPerCommand, and
// whether these are all.
func (s *settledSet) oldest() (ids []mail.QueueID, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(s.waiting), settledPerCommand)
	return slices.Clone(s.waiting[:n]), n == len(s.waiting)
}

// committed forgets ids that a committed proposal carried.
func (s *settledSet) committed(ids []mail.QueueID) {
	if len(ids) == 0 {
		return
	}
	done := make(map[mail.QueueID]bool, len(ids))
	for _, id := range ids {
		done[id] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting = slices.DeleteFunc(s.waiting, func(id mail.QueueID) bool { return done[id] })
}

func (s *settledSet) empty() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.waiting) == 0
}
