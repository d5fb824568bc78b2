package cluster

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// lostAfter is how long no server must have had a good copy of a body before its
// message is held. Until then it waits: a server may be about to get one.
const lostAfter = 30 * time.Second

// lostReason is said of a message that is held for it.
const lostReason = "no server of the cluster has a good copy of its content"

// absencesMax bounds the bodies of which it is remembered what the nodes said.
const absencesMax = hydrateListMax

// An absence is a body that no node gave when this one asked for it.
type absence struct {
	ref     mail.BodyRef
	since   time.Time // of the first such answer
	asked   time.Time // of the last
	unknown []string  // nodes that could not be asked, sorted
}

// nowhere reports that every server was asked, and none has a good copy.
func (a absence) nowhere() bool { return len(a.unknown) == 0 }

// absences are those that stand. The zero value is ready.
//
// Invariant: at most absencesMax. What is over it is missing all the same, is not
// sent, and is looked for; but its message is not held before others have been found.
type absences struct {
	mu  sync.Mutex
	all map[mail.QueueID]absence
}

// note takes in what came of a fetch at now. Errors that are not about the
// others' answers count for nothing.
func (a *absences) note(ref mail.BodyRef, err error, now time.Time) {
	var failed *fetchError
	if !errors.As(err, &failed) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	was, known := a.all[ref.ID]
	if !known && len(a.all) >= absencesMax {
		return
	}
	if a.all == nil {
		a.all = map[mail.QueueID]absence{}
	}
	if !known {
		was.since = now
	}
	slices.Sort(failed.unknown)
	a.all[ref.ID] = absence{ref: ref, since: was.since, asked: now, unknown: failed.unknown}
}

func (a *absences) forget(ref mail.BodyRef) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, ref.ID)
}

// sweep forgets those that a pass which began then did not meet any more.
func (a *absences) sweep(began time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, one := range a.all {
		if one.asked.Before(began) {
			delete(a.all, id)
		}
	}
}

// list returns the absences in order of their queue ids.
func (a *absences) list() []absence {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]absence, 0, len(a.all))
	for _, one := range a.all {
		all = append(all, one)
	}
	slices.SortFunc(all, func(x, y absence) int { return x.ref.ID.Compare(y.ref.ID) })
	return all
}

// summary returns how many bodies no node that could be asked has; how many of
// these no server of the cluster has; and who could not be asked for the others.
func (a *absences) summary() (found, lost uint64, waiting string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	for _, one := range a.all {
		found++
		if one.nowhere() {
			lost++
		}
		names = append(names, one.unknown...)
	}
	slices.Sort(names)
	return found, lost, strings.Join(slices.Compact(names), ", ")
}

// holdLost has a message held of which no server has a good copy: nothing can be
// sent, and it is not for us to bounce what we took. Once a copy turns up it is
// fetched, and an administrator releases the message.
func (m *Member) holdLost(ctx context.Context, ref mail.BodyRef) {
	queued := false
	m.replica.read(func(s *fsm.State) {
		if msg, ok := s.Message(ref.ID); ok && msg.ID == ref.ID {
			for _, p := range msg.Parts {
				queued = queued || p.Queued > 0
			}
		}
	})
	if !queued {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	result, err := m.Do(ctx, fsm.Hold{ID: ref.ID, Reason: lostReason})
	if err != nil {
		m.log.Warn("message not held of which no server has a good copy", "queue_id", ref.ID, "cause", err)
		return
	}
	m.log.Error("no server has a good copy of a message", "queue_id", ref.ID, "held", result.Verdict == fsm.Done)
}
