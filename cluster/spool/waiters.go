package spool

import (
	"container/list"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The bounds of Arrived. Those who wait for a body do so for seconds; they number
// a few hundred, as many as there are bodies in one request of Raft or in the
// proposals of one peer.
const (
	waitersMax = 8192
	waiterAge  = 5 * time.Minute
)

// waiters are the channels that Arrived gave out for bodies that are not held.
// A name that several wait for has one channel.
//
// Nobody says when he stops waiting. A name that does not arrive is therefore
// dropped, its channel closed, when it is waiterAge since somebody asked, or
// when it is the longest not asked for of waitersMax. Dropping is done when the
// next one asks, so what is left over without any further call is bounded by
// waitersMax.
type waiters struct {
	byRef map[mail.BodyRef]*list.Element
	// asked has a *waiter for each name, the longest not asked for in front.
	asked *list.List
}

type waiter struct {
	ref     mail.BodyRef
	arrived chan struct{}
	at      time.Time
}

func newWaiters() waiters {
	return waiters{byRef: make(map[mail.BodyRef]*list.Element), asked: list.New()}
}

func (w *waiters) len() int { return len(w.byRef) }

// wait returns the channel for ref.
func (w *waiters) wait(ref mail.BodyRef, now time.Time) <-chan struct{} {
	if el, ok := w.byRef[ref]; ok {
		one := el.Value.(*waiter)
		one.at = now
		w.asked.MoveToBack(el)
		return one.arrived
	}
	for el := w.asked.Front(); el != nil; el = w.asked.Front() {
		one := el.Value.(*waiter)
		if w.len() < waitersMax && now.Sub(one.at) < waiterAge {
			break
		}
		w.arrive(one.ref)
	}
	one := &waiter{ref: ref, arrived: make(chan struct{}), at: now}
	w.byRef[ref] = w.asked.PushBack(one)
	return one.arrived
}

// arrive wakes who waits for ref.
func (w *waiters) arrive(ref mail.BodyRef) {
	el, ok := w.byRef[ref]
	if !ok {
		return
	}
	delete(w.byRef, ref)
	w.asked.Remove(el)
	close(el.Value.(*waiter).arrived)
}
