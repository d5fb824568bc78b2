package dispatch

import (
	"iter"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Who gets the places of a lease. They are numbered through all leases of a next hop,
// so that leases of one message each share them out as one of a hundred does.
const (
	// newestEvery: each fifth place goes to the newest message, which would else wait
	// behind the whole queue of an outage.
	newestEvery = 5
	// slowEvery: each sixteenth place goes to the slow lane, which has what the next
	// hop keeps putting off. Such messages come back as often as their waits end; as
	// the oldest there are, they would take every place.
	slowEvery = 16
	// looksMore is at how many messages a plan looks beside one per place, from each of
	// the points where it looks: a queue may have a million that are due.
	looksMore = 100
)

// Lanes is how far the leases of one next hop have been filled. The zero value is the
// beginning: its first places are for the oldest.
//
// All other places are the oldest message's. A lane that has nothing gives its places
// to the others, so that a lease is full where enough is due. In the slow lane the turn
// passes round: there the oldest first would mean the same ones for ever.
//
// A Lanes is a hint. Nothing breaks when it is lost; the shares begin anew.
type Lanes struct {
	place int       // the number of the next place, modulo placesRound
	slow  fsm.Index // from which entry on the slow lane goes on
	rove  fsm.Index // from which entry on to look past a front of slow messages
}

// placesRound is after how many places their pattern repeats.
const placesRound = newestEvery * slowEvery

// Plan picks the messages to grant: those that are due, at most limit of them, each
// place as its lane says; none of a domain that is stopped. It returns where the next
// plan goes on if all of these are granted. It is pure.
func Plan(view *fsm.State, r Request, limit int, at Lanes) ([]mail.QueueID, Lanes) {
	n := min(r.Max, limit)
	if n <= 0 || view.NextHop(r.Domain).Stopped {
		return nil, at
	}
	return at.fill(n, dueMail{
		from:   func(entry fsm.Index) iter.Seq[fsm.DueMessage] { return view.DueFrom(r.Domain, entry) },
		newest: view.DueNewest(r.Domain),
	})
}

// dueMail is what is due for one next hop.
type dueMail struct {
	from   func(fsm.Index) iter.Seq[fsm.DueMessage] // the oldest first, from an entry on
	newest iter.Seq[fsm.DueMessage]                 // the newest first
}

// fill picks up to n messages for the places from l on.
func (l Lanes) fill(n int, due dueMail) ([]mail.QueueID, Lanes) {
	looks := n + looksMore
	oldest := &lane{due: due.from(0), fits: isNotSlow, looks: looks}
	// Where the front of the queue is all slow, the oldest of the others is somewhere
	// behind it. What earlier plans have seen of that front is not looked at again.
	roving := &lane{fits: isNotSlow, looks: looks, due: func(yield func(fsm.DueMessage) bool) {
		if !oldest.ended {
			due.from(max(l.rove, oldest.behind))(yield)
		}
	}}
	newest := &lane{due: due.newest, fits: isNotSlow, looks: looks}
	slow := &lane{due: roundFrom(due, l.slow), fits: isSlow, looks: looks}
	rest := &lane{due: due.from(0), fits: isAny, looks: 2 * n} // what is taken is passed over
	lanes := []*lane{oldest, roving, newest, slow, rest}
	defer func() {
		for _, a := range lanes {
			a.close()
		}
	}()
	taken := make(map[fsm.Index]bool, n)
	planned := make([]mail.QueueID, 0, n)
	for len(planned) < n {
		order := lanes
		switch place := l.place + len(planned); {
		case place%slowEvery == slowEvery-1:
			order = []*lane{slow, oldest, roving, newest, rest}
		case place%newestEvery == newestEvery-1:
			order = []*lane{newest, oldest, roving, slow, rest}
		}
		m, ok := firstOf(order, taken)
		if !ok {
			break
		}
		taken[m.Entry] = true
		planned = append(planned, m.ID)
	}
	next := Lanes{place: (l.place + len(planned)) % placesRound, slow: l.slow, rove: l.rove}
	if slow.behind > 0 {
		next.slow = slow.behind
	}
	switch {
	case roving.ended:
		next.rove = 0
	case roving.behind > 0:
		next.rove = roving.behind
	}
	return planned, next
}

func isSlow(m fsm.DueMessage) bool    { return m.Slow }
func isNotSlow(m fsm.DueMessage) bool { return !m.Slow }
func isAny(fsm.DueMessage) bool       { return true }

// firstOf takes from the first of the lanes that has something.
func firstOf(lanes []*lane, taken map[fsm.Index]bool) (fsm.DueMessage, bool) {
	for _, a := range lanes {
		if m, ok := a.take(taken); ok {
			return m, true
		}
	}
	return fsm.DueMessage{}, false
}

// roundFrom is all that is due, the oldest first, from an entry on and then from the
// beginning up to it.
func roundFrom(due dueMail, entry fsm.Index) iter.Seq[fsm.DueMessage] {
	return func(yield func(fsm.DueMessage) bool) {
		for m := range due.from(entry) {
			if !yield(m) {
				return
			}
		}
		for m := range due.from(0) {
			if m.Entry >= entry || !yield(m) {
				return
			}
		}
	}
}

// A lane looks through due messages for those that fit, one at a time, as long as it
// has looks left.
type lane struct {
	due   iter.Seq[fsm.DueMessage]
	fits  func(fsm.DueMessage) bool
	looks int // that are left, one at least

	next   func() (fsm.DueMessage, bool) // nil before the first look
	stop   func()
	behind fsm.Index // the entry behind what was looked at last, zero before
	ended  bool      // there is nothing further
}

// take returns the next message that fits and is not taken.
func (a *lane) take(taken map[fsm.Index]bool) (fsm.DueMessage, bool) {
	if a.next == nil {
		a.next, a.stop = iter.Pull(a.fitting)
	}
	for {
		m, ok := a.next()
		if !ok || !taken[m.Entry] {
			return m, ok
		}
	}
}

// fitting are the messages that fit.
func (a *lane) fitting(yield func(fsm.DueMessage) bool) {
	for m := range a.due {
		a.looks--
		a.behind = m.Entry + 1
		if a.fits(m) && !yield(m) || a.looks == 0 {
			return
		}
	}
	a.ended = true
}

func (a *lane) close() {
	if a.stop != nil {
		a.stop()
	}
}
