package spool

import (
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Held is a body that is on stable storage here.
type Held struct {
	Ref mail.BodyRef
	// Since is when this process first knew the body, by the process's clock: the
	// Put, or, for what a restart found, the time of Open.
	Since time.Time
}

// Held reports whether the body is on stable storage here, and not doomed. The
// answer may be old when it arrives; whoever builds on it needs Pin.
func (s *Spool) Held(ref mail.BodyRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heldLocked(ref)
}

func (s *Spool) heldLocked(ref mail.BodyRef) bool {
	e, ok := s.index[ref.ID]
	if !ok || !e.is(ref) {
		return false
	}
	_, bad := s.bad[ref.ID]
	_, doomed := s.doomed[ref.ID]
	return !bad && !doomed
}

// Pin keeps the body from being deleted until release is called, which may be
// done more than once. It reports false, and release does nothing, if the body
// is neither held nor coming (see PutThen). Pins nest, and end with the process.
func (s *Spool) Pin(ref mail.BodyRef) (release func(), here bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.heldLocked(ref) && !s.comingLocked(ref) {
		return func() {}, false
	}
	s.pins[ref.ID]++
	return sync.OnceFunc(func() { s.unpin(ref.ID) }), true
}

func (s *Spool) unpin(id mail.QueueID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pins[id]--; s.pins[id] == 0 {
		delete(s.pins, id)
	}
}

// Doom marks bodies for Delete, and returns those that it marked, with those
// that were marked already. It passes over what is pinned, coming or not here. From now
// on a doomed body is not Held, cannot be pinned and is not listed, until Spare
// or a Put takes the mark away. Every body that Doom returns must be given to
// Spare or to Delete.
func (s *Spool) Doom(ids []mail.QueueID) (doomed []mail.BodyRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		e, ok := s.index[id]
		// What is coming may be here already, while its Put is about to say so: who
		// pins it then is told that it is here, and must not be told wrong.
		if !ok || s.pins[id] > 0 || s.coming[id] != nil {
			continue
		}
		s.doomed[id] = struct{}{}
		doomed = append(doomed, e.ref(id))
	}
	return doomed
}

// Spare takes the mark of Doom back.
func (s *Spool) Spare(refs []mail.BodyRef) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ref := range refs {
		if e, ok := s.index[ref.ID]; ok && e.is(ref) {
			s.spareLocked(ref)
		}
	}
}

func (s *Spool) spareLocked(ref mail.BodyRef) {
	delete(s.doomed, ref.ID)
	if s.heldLocked(ref) {
		s.waiters.arrive(ref)
	}
}

// Pinned returns those of the bodies that are pinned or coming now: those that
// Doom passes over.
func (s *Spool) Pinned(ids []mail.QueueID) (pinned []mail.QueueID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		if s.pins[id] > 0 || s.coming[id] != nil {
			pinned = append(pinned, id)
		}
	}
	return pinned
}

// Bodies lists what is held, in the order of the queue ids. Doomed and damaged
// bodies are left out. It takes memory for all of them: Walk does not.
func (s *Spool) Bodies() []Held {
	return slices.SortedFunc(s.Walk(), func(a, b Held) int { return a.Ref.ID.Compare(b.Ref.ID) })
}

// walkStep is how many bodies a walk looks at while it has the pin lock.
const walkStep = 256

// Walk yields what is held, in no order, without doomed and damaged bodies. The
// pin lock is free whenever a body is yielded, so a walk may take its time. What
// was held before it and still is behind it is yielded exactly once; what came
// meanwhile may be.
func (s *Spool) Walk() iter.Seq[Held] {
	return func(yield func(Held) bool) {
		step := make([]Held, 0, walkStep)
		s.mu.Lock()
		defer s.mu.Unlock()
		// A map may be changed by others between two steps of a range over it; the
		// lock is taken back before the next one.
		looked := 0
		for id, e := range s.index {
			_, bad := s.bad[id]
			_, doomed := s.doomed[id]
			if !bad && !doomed {
				step = append(step, Held{Ref: e.ref(id), Since: s.opened.Add(time.Duration(e.since) * time.Second)})
			}
			if looked++; looked%walkStep == 0 {
				if !s.yieldUnlocked(step, yield) {
					return
				}
				step = step[:0]
			}
		}
		s.yieldUnlocked(step, yield)
	}
}

// yieldUnlocked yields a step of a walk without the pin lock.
func (s *Spool) yieldUnlocked(step []Held, yield func(Held) bool) bool {
	s.mu.Unlock()
	defer s.mu.Lock()
	for _, b := range step {
		if !yield(b) {
			return false
		}
	}
	return true
}

// Arrived returns a channel that is closed when the body is held or coming, by
// whatever route it came; at once if it is now.
//
// The close is a hint, as Held is: look again with Pin. The spool keeps a
// channel for at most waitersMax names, and none that nobody has asked for in
// waiterAge; what it drops it closes, so that no waiter is ever forgotten. Wait
// beside a timer, and ask again if you still want to know.
func (s *Spool) Arrived(ref mail.BodyRef) <-chan struct{} {
	now := s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heldLocked(ref) || s.comingLocked(ref) {
		closed := make(chan struct{})
		close(closed)
		return closed
	}
	return s.waiters.wait(ref, now)
}
