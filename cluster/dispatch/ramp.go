package dispatch

import (
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
)

// A Feedback is what a holder saw of the next hop in one lease.
type Feedback struct {
	Token    fsm.Token // of the lease; zero: there was none
	Answered int       // messages that the next hop took, or refused for good
	Deferred int       // messages that it put off with a 4yz
	// Lost says that a connection ended otherwise than by us: 421, a timeout, a
	// reset.
	Lost bool
	// Mean is the mean time from a final dot to its reply; zero where there was
	// none.
	Mean time.Duration
}

// The shape of a ramp.
const (
	// slowFactor is by how much replies must be slower than the quickest lease since
	// the ramp began for the next hop to be called overloaded, and slowLeast from
	// which on: what takes a few milliseconds may take ten.
	slowFactor = 3
	slowLeast  = 500 * time.Millisecond
	// meanSampleMin is how many answers make a mean that says something.
	meanSampleMin = 3
	// cohortMessages is the most that a lease has while the window may still double: the
	// window grows when a lease is over, so what takes a turn a message would otherwise
	// take hundreds of turns to reach a ceiling of 20.
	cohortMessages = 8
)

// A ramp is how many connections the whole cluster has to one next hop, so that one
// that has just come back is not run over: one message first, then one connection,
// one more for each clean lease, and after the first trouble half as many and one
// more for each clean round. It is TCP's slow start and congestion avoidance (RFC
// 5681), with connections for segments. It is pure, and not for concurrent use.
//
// Invariant: 1 <= window <= the ceiling that it was last asked with, or 1.
type ramp struct {
	// early: who asks has reached the next hop, and by its replicated state it is away.
	early   bool
	window  float64
	proven  bool          // the next hop has answered a dot since the ramp began
	steady  bool          // there was trouble: it grows by rounds
	first   fsm.Token     // leases from here on were granted since the ramp began
	last    fsm.Token     // of the leases that were granted
	halved  fsm.Token     // leases from here on were granted after the window was halved
	fastest time.Duration // of the leases since it began, zero if none
	// active is how many connections each holder had when it was last granted a
	// lease, and when that was.
	active map[fsm.NodeName]activity
}

type activity struct {
	connections int
	at          time.Time
}

func newRamp() *ramp {
	return &ramp{window: 1, active: make(map[fsm.NodeName]activity)}
}

// anew returns the ramp that follows r when the next hop was away. Who is connected stays
// so, whatever the others hear of it: the node, too, that found that the next hop is back.
// What was granted before says nothing of it.
func (r *ramp) anew() *ramp {
	next := newRamp()
	next.active, next.first, next.last = r.active, r.last+1, r.last
	return next
}

// note takes what a holder saw.
func (r *ramp) note(f Feedback, ceiling int) {
	if f.Answered+f.Deferred == 0 && !f.Lost || f.Token < r.first {
		return
	}
	slow := r.fastest > 0 && f.Answered >= meanSampleMin && f.Mean > slowFactor*r.fastest && f.Mean >= slowLeast
	if f.Answered >= meanSampleMin && f.Mean > 0 && (r.fastest == 0 || f.Mean < r.fastest) {
		r.fastest = f.Mean
	}
	if f.Lost || f.Deferred > f.Answered || slow {
		// What was granted before the window was halved is the same trouble.
		if f.Token >= r.halved {
			r.window, r.steady, r.halved = max(1, r.window/2), true, r.last+1
		}
		return
	}
	r.proven = true
	if r.steady {
		r.window += 1 / r.window
	} else {
		r.window++
	}
	r.window = min(r.window, float64(max(1, ceiling)))
}

// grant decides whether a holder with so many open connections gets a lease, of how
// many messages at most, and how many connections it may have. Of a holder that was
// granted nothing for stale, and is not busy with what it was granted before, nothing is
// counted any more.
func (r *ramp) grant(holder fsm.NodeName, open int, now time.Time, stale time.Duration, ceiling int, busy func(fsm.NodeName) bool) (messages, connections int) {
	r.window = min(r.window, float64(max(1, ceiling)))
	others := 0
	for h, a := range r.active {
		switch {
		case h == holder:
		case now.Sub(a.at) >= stale && !busy(h):
			delete(r.active, h)
		default:
			others += a.connections
		}
	}
	connections = max(0, int(r.window)-others)
	if open = max(1, open); open > connections {
		return 0, connections
	}
	r.active[holder] = activity{open, now}
	if !r.proven {
		return 1, connections // the canary
	}
	if !r.steady && r.window < float64(ceiling) {
		return cohortMessages, connections
	}
	return leaseUnbounded, connections
}

// leaseUnbounded leaves the number of messages to who asks.
const leaseUnbounded = 1 << 30

// closed notes that a holder has so many connections left.
func (r *ramp) closed(holder fsm.NodeName, open int) {
	a, ok := r.active[holder]
	switch {
	case !ok:
	case open <= 0:
		delete(r.active, holder)
	default:
		a.connections = min(a.connections, open)
		r.active[holder] = a
	}
}
