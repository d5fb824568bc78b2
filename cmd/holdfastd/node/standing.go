package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A standing knows the relay domains of which something is wrong, as this node saw it
// last, and since when. E says what it is. The zero value is ready to use.
type standing[E any] struct {
	mu sync.Mutex
	of map[mail.Domain]sight[E]
}

type sight[E any] struct {
	since time.Time
	last  *E
}

// note takes what was seen of a domain; nil is as it should be. It reports whether that
// is news.
func (s *standing[E]) note(d mail.Domain, wrong *E, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, stood := s.of[d]
	if wrong == nil {
		delete(s.of, d)
		return stood
	}
	if !stood {
		old.since = now
	}
	if s.of == nil {
		s.of = make(map[mail.Domain]sight[E])
	}
	old.last = wrong
	s.of[d] = old
	return !stood
}

// last returns what is wrong of a domain, nil where nothing is.
func (s *standing[E]) last(d mail.Domain) *E {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[d].last
}

// alarms returns one for each domain that it still is about. The alarm says all but its
// scope and its time.
func (s *standing[E]) alarms(about func(mail.Domain) bool, alarm func(mail.Domain, *E) admin.Alarm) []admin.Alarm {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []admin.Alarm
	for d, seen := range s.of {
		if !about(d) {
			continue
		}
		a := alarm(d, seen.last)
		a.Scope, a.Since = "domain "+string(d), seen.since
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b admin.Alarm) int { return strings.Compare(a.Scope, b.Scope) })
	return all
}
