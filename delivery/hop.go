package delivery

import (
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// A node that could not reach the next hop, or lost it, is quiet for this
	// long, doubled and jittered. The most stays below the time in which a return
	// is to be seen.
	quietFirst = 2 * time.Second
	quietMost  = 24 * time.Second
	// returnSpacing is the least time between our last failure and the attempt
	// that another node's success calls for: a node that is cut off from a next
	// hop that others reach must not propose at their pace.
	returnSpacing = 5 * time.Second
	// A pull that gave nothing, or failed, is repeated after this long.
	emptyFirst = 500 * time.Millisecond
	emptyMost  = 10 * time.Second
	// reportSpacing is the least time between two equal reports of a next hop.
	reportSpacing = 3 * time.Second
	// messagesPerConnection is how many due messages make one more connection
	// worth its while.
	messagesPerConnection = 8
	// stepMost is how long a loop sleeps that waits for being woken.
	stepMost = time.Hour
	// detailBytesMax is what a report of a next hop says at most.
	detailBytesMax = 200
)

// A hop is the loop of one relay domain: it starts connections while there is
// mail and the next hop answers, and probes while it is down.
type hop struct {
	a    *Agent
	name mail.Domain
	wake chan struct{} // holds one value when something changed

	mu        sync.Mutex
	work      *Work      // nil while the domain is not listed
	config    fsm.Domain // as it was listed last
	workers   int
	connected int // of the workers' connections, those that completed EHLO
	probing   int
	reaching  bool // our last attempt completed EHLO
	proven    bool // a reply to a dot was read since the last trouble
	// allowed is how many connections the leader last said that we may have; negative
	// where it did not say. It holds until the leader says something else, however long
	// ago that was: who begins with more is given nothing.
	allowed   int
	lastToken fsm.Token // of the lease that we were granted last
	unprobed  bool      // probe at once
	heardAt   time.Time
	unlisted  time.Time     // since when there is no work
	gone      chan struct{} // closed when it is retired

	trouble   backoff
	quietTill time.Time // no connection before this
	failedAt  time.Time // when we last could not reach it
	empty     backoff
	idleTill  time.Time // no pull before this
	unleased  int       // pulls in a row that failed

	down      bool // it is probed: down or refusing, as last seen in work
	probeBase time.Time
	probeNext time.Time
	flush     fsm.Index

	reported  [Barred + 1]time.Time // when we last reported each Sight
	suspects  suspects
	reception reception

	called *called // not nil where the primary has called for its mail
}

func newHop(a *Agent, w Work) *hop {
	h := &hop{
		a: a, name: w.Domain.Name, wake: make(chan struct{}, 1),
		trouble: backoff{first: quietFirst, most: quietMost},
		empty:   backoff{first: emptyFirst, most: emptyMost},
		flush:   w.NextHop.Flush,
		allowed: -1,
		gone:    make(chan struct{}),
	}
	h.update(&w)
	return h
}

// update takes what the replicated state says now. Nil means nothing to do.
func (h *hop) update(w *Work) {
	h.mu.Lock()
	now := time.Now()
	wasDown := h.down
	if w == nil && h.work != nil {
		h.unlisted = now
	}
	if h.work = w; w != nil {
		h.config = w.Domain
	}
	h.down = w != nil && w.NextHop.State.Probed()
	switch {
	case h.down && !wasDown:
		h.planProbes(now)
	case !h.down && wasDown && w != nil && !h.reaching:
		// Somebody saw it return. Our own backoff keeps its length: if we go on
		// failing where others do not, we are the ones cut off.
		h.quietTill = h.failedAt.Add(max(returnSpacing, h.trouble.next/2))
	}
	if w != nil && w.NextHop.Flush > h.flush {
		h.flush = w.NextHop.Flush
		h.trouble.reset()
		h.empty.reset()
		h.quietTill, h.idleTill = now, now
		h.unprobed = h.down
	}
	h.mu.Unlock()
	h.poke()
}

// hopLife is how long a hop without work is kept, with what it learnt.
const hopLife = 10 * time.Minute

// retire ends the loop of a hop that nobody needs, and reports whether it did: domains
// come and go.
func (h *hop) retire() bool {
	h.mu.Lock()
	over := h.work == nil && h.workers == 0 && h.probing == 0 && time.Since(h.unlisted) >= hopLife
	h.mu.Unlock()
	if over { // without work nothing begins again
		h.a.awaited.forget(h)
		close(h.gone)
	}
	return over
}

// poke has the loop look again.
func (h *hop) poke() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hop) run() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(h.step())
		select {
		case <-h.wake:
		case <-timer.C:
		case <-h.gone:
			return
		case <-h.a.work.Done():
			return
		}
	}
}

// step starts what is due and returns how long nothing will be.
//
// A next hop that is down or refusing for the cluster is tried by a node that reached it
// itself: where one node alone gets through, the others call it down again
// faster than that one could use its own report.
func (h *hop) step() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if h.work == nil {
		return stepMost
	}
	wait := stepMost
	if h.down {
		wait = h.stepProbe(now)
	}
	switch {
	case h.work.Due > 0 && (!h.down || h.reaching):
		wait = min(wait, h.stepDeliver(now))
	case h.reception.barred && !h.down:
		wait = min(wait, h.stepBarred(now))
	}
	return wait
}

// stepDeliver starts connections, or returns the time until it may. The caller
// holds mu.
func (h *hop) stepDeliver(now time.Time) time.Duration {
	start := now
	if h.quietTill.After(start) {
		start = h.quietTill
	}
	if h.idleTill.After(start) {
		start = h.idleTill
	}
	if start.After(now) {
		return start.Sub(now)
	}
	for want := h.connectionsWanted(); h.workers < want; {
		h.workers++
		w := *h.work
		h.a.running.Go(func() { h.deliver(w) })
	}
	return stepMost
}

// connectionsWanted is one until the next hop has answered a dot, then this
// node's share of the ceiling, as far as there is mail for it and the leader allows:
// it knows how many the others have, and what they see. The share alone keeps the
// cluster below the ceiling, whoever leads. The caller holds mu.
func (h *hop) connectionsWanted() int {
	if !h.proven {
		return 1
	}
	want := min(max(1, h.share()), 1+h.work.Due/messagesPerConnection)
	if h.allowed >= 0 {
		want = min(want, max(1, h.allowed))
	}
	return want
}

// share is this node's part of the ceiling; the nodes of the first ranks have what
// does not go into equal parts. The caller holds mu.
func (h *hop) share() int {
	nodes := max(1, h.work.Nodes)
	share := h.ceiling() / nodes
	if h.work.Rank < h.ceiling()%nodes {
		share++
	}
	return share
}

// ceiling is how many connections the cluster has at most. The caller holds mu.
func (h *hop) ceiling() int {
	if n := h.work.Domain.ConnectionsMax; n > 0 {
		return n
	}
	return h.a.c.ConnectionsMax
}

// allow takes how many connections the leader allows.
func (h *hop) allow(n int) {
	h.mu.Lock()
	more := n > h.allowed
	h.allowed = n
	h.mu.Unlock()
	if more {
		h.poke()
	}
}

// batch is how many messages to ask for: a fair part of what is due, so that
// the first to ask does not take all that the others could deliver beside it.
func (h *hop) batch() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.work == nil {
		return min(messagesPerConnection, h.a.c.LeaseBatch)
	}
	part := h.work.Due/max(1, h.ceiling()) + 1
	return min(max(part, messagesPerConnection), h.a.c.LeaseBatch)
}

// failed notes that the next hop could not be reached, or was lost.
func (h *hop) failed() {
	h.mu.Lock()
	now := time.Now()
	h.failedAt, h.reaching, h.proven = now, false, false
	if !h.quietTill.After(now) { // Connections that are lost together count once.
		h.quietTill = now.Add(h.a.jitter(h.trouble.grow()))
	}
	h.mu.Unlock()
}

// reached notes that we completed EHLO, and left that the connection has ended.
func (h *hop) reached() {
	h.mu.Lock()
	h.reaching = true
	h.connected++
	h.mu.Unlock()
}

func (h *hop) left() {
	h.mu.Lock()
	h.connected--
	h.mu.Unlock()
}

// answered notes that the next hop answered a dot.
func (h *hop) answered() {
	h.mu.Lock()
	h.trouble.reset()
	first := !h.proven
	h.proven = true
	h.mu.Unlock()
	if first {
		h.poke() // There may be room for more connections.
	}
}

// idle puts the next pull off.
func (h *hop) idle() {
	h.mu.Lock()
	h.idleTill = time.Now().Add(h.a.jitter(h.empty.grow()))
	h.mu.Unlock()
}

// busy notes that a pull gave messages.
func (h *hop) busy() {
	h.mu.Lock()
	h.empty.reset()
	h.mu.Unlock()
	if h.called != nil {
		h.called.empty = 0
	}
}

// report tells the cluster what we saw of the next hop, if it does not know.
func (h *hop) report(saw Sight, detail string) {
	if h.called != nil {
		return // It says nothing of where its mail goes otherwise.
	}
	h.mu.Lock()
	now := time.Now()
	if h.work == nil || h.known(saw) || now.Sub(h.reported[saw]) < reportSpacing {
		h.mu.Unlock()
		return
	}
	h.reported[saw] = now
	h.mu.Unlock()
	ctx, cancel := h.a.callContext()
	defer cancel()
	if err := h.a.c.Queue.ReportNextHop(ctx, h.name, saw, cutText(detail, detailBytesMax)); err != nil {
		h.a.c.Log.Warn("next hop not reported", "domain", h.name, "saw", saw, "error", err)
		h.mu.Lock() // Unknown: say it again as soon as there is occasion.
		h.reported[saw] = time.Time{}
		h.mu.Unlock()
	}
}

// known reports whether the cluster knows of us what we saw, or it would change
// nothing. The caller holds mu.
func (h *hop) known(saw Sight) bool {
	hop := h.work.NextHop
	switch saw {
	case Reached:
		return hop.State == fsm.NextHopUp
	case Barred:
		return slices.Contains(hop.Barred, h.a.c.Node)
	}
	return hop.State == fsm.NextHopDown || slices.Contains(hop.Failed, h.a.c.Node)
}

// domain is the domain's configuration as it was listed last.
func (h *hop) domain() fsm.Domain {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.config
}
