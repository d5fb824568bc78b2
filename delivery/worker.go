package delivery

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
)

// deliver is one connection: connect, then lease after lease until there is
// nothing more for us, or the connection ends.
//
// A lease is asked for once there is a connection, since a next hop that cannot be
// reached would hold it up. But where there are fewer connections than nodes, the lease
// says who has one, and comes first.
func (h *hop) deliver(w Work) {
	defer func() {
		h.mu.Lock()
		h.workers--
		h.mu.Unlock()
		h.poke()
	}()
	var lease Lease
	var sent time.Duration
	var err error
	if h.scarce() {
		sent = h.a.c.Boot()
		if lease, err = h.pull(h.batch(), Feedback{}); err != nil || len(lease.Messages) == 0 {
			h.idle()
			return
		}
	}
	ctx, cancel := context.WithTimeout(h.a.work, connectTimeout)
	conn, at, err := h.connect(ctx, w.Domain, dialTimeout)
	cancel()
	if err != nil {
		h.handBack(lease)
		if h.a.work.Err() != nil {
			return
		}
		h.a.c.Log.Warn("next hop not reached", "domain", h.name, "error", err)
		if h.a.c.Controls.Has(controls.UnknownNameBounced) && errors.Is(err, route.ErrNotFound) {
			h.bounce()
		}
		h.failed()
		h.missed(err, false)
		return
	}
	h.reached()
	defer h.left()
	h.report(Reached, at.String())
	finish := h.exhaust(conn, at, w.Domain, lease, sent)
	_ = conn.Quit(h.a.work)
	finish()
}

// exhaust delivers lease after lease over a connection, beginning with one that was
// pulled at sent, if that has messages, until there is nothing more for us or the
// connection ends, or the domain is not as it was, d, when that was opened. finish is to
// be called when the connection is over for the domain: it returns when all is reported.
func (h *hop) exhaust(conn *smtpclient.Conn, at route.Hop, d fsm.Domain, lease Lease, sent time.Duration) (finish func()) {
	var previous *reporter
	var seen Feedback
	opened := time.Now()
	for h.a.work.Err() == nil && conn.Usable() && !h.turned(d) && (h.called != nil || time.Since(opened) < connectionLife) {
		var err error
		if len(lease.Messages) == 0 {
			sent = h.a.c.Boot() // The right counts from here, not from the answer.
			lease, err = h.pull(h.batch(), seen)
			if err == nil {
				seen = Feedback{} // it is told
			}
			if err != nil || len(lease.Messages) == 0 {
				if h.called != nil && h.called.again() {
					continue
				}
				h.idle()
				break
			}
		}
		var reports *reporter
		var progress bool
		reports, progress, seen = h.serve(conn, at, d, newHeldLease(h.a, lease, sent), lease)
		if previous != nil {
			<-previous.done // At most one lease's reports are outstanding beside the next.
		}
		previous, lease = reports, Lease{}
		if !progress && !h.turned(d) {
			h.idle()
			break
		}
		h.busy()
		h.report(Reached, at.String()) // Others may have called it down meanwhile.
	}
	h.handBack(lease) // one that was not begun
	return func() {
		if seen.Token != 0 && h.a.work.Err() == nil {
			_, _ = h.pull(0, seen) // What this connection saw last is a hint: it may be lost.
		}
		if previous != nil {
			<-previous.done
		}
	}
}

// connectionLife is how long a connection is given new leases: what DNS says of the next
// hops is looked up for each connection.
const connectionLife = 5 * time.Minute

// turned reports whether the domain's mail goes another way by now than it did when a
// connection was opened, or in another manner: what is leased then is for the next one.
func (h *hop) turned(since fsm.Domain) bool {
	now := h.domain()
	return now.MX != since.MX || now.OnDemand != since.OnDemand || !slices.Equal(now.Targets, since.Targets) || now.XClient != since.XClient ||
		now.TLS.Mode != since.TLS.Mode || now.TLS.Authorities != since.TLS.Authorities ||
		!slices.Equal(now.TLS.Pins, since.TLS.Pins) || !slices.Equal(now.TLS.Names, since.TLS.Names)
}

// scarce reports whether the ceiling leaves nodes without a connection.
func (h *hop) scarce() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.work != nil && h.ceiling() < h.work.Nodes
}

// handBack reports all messages of a lease as not tried, so that others get them now,
// and the connection that went with it.
func (h *hop) handBack(l Lease) {
	if len(l.Messages) == 0 {
		return
	}
	reports := newReporter(h.a, h.name, l.Token)
	h.a.running.Go(reports.run)
	for _, m := range l.Messages {
		reports.add(newOutcomes(m).untried(true).outcomes)
	}
	reports.close()
	<-reports.done
	_, _ = h.pull(0, Feedback{Token: l.Token}) // a hint
}

// pull asks for a lease. It is not given up at a shutdown: a lease granted in
// answer to it can then be handed back at once.
func (h *hop) pull(most int, seen Feedback) (Lease, error) {
	ctx, cancel := h.a.callContext()
	defer cancel()
	h.a.stats.Pulls.Add(1)
	h.mu.Lock()
	connections := h.workers
	h.mu.Unlock()
	if most == 0 {
		connections-- // this one is over
	}
	lease, err := h.a.c.Queue.Pull(ctx, Wish{Domain: h.name, Max: most, Connections: connections, Seen: seen})
	if err != nil {
		h.a.stats.PullsFailed.Add(1)
		h.unanswered(err)
		return Lease{}, err
	}
	h.mu.Lock()
	h.unleased = 0
	h.mu.Unlock()
	if most > 0 {
		h.allow(lease.Connections)
	}
	if lease.Token != 0 {
		h.mu.Lock()
		h.lastToken = lease.Token
		h.mu.Unlock()
	}
	h.a.stats.Leased.Add(int64(len(lease.Messages)))
	return lease, nil
}

// pullsUnanswered is from how many pulls in a row that failed on it is said: one may fail
// while the leader changes.
const pullsUnanswered = 4

// unanswered notes a pull that failed.
func (h *hop) unanswered(cause error) {
	h.mu.Lock()
	h.unleased++
	n := h.unleased
	h.mu.Unlock()
	level := slog.LevelDebug
	if n >= pullsUnanswered {
		level = slog.LevelWarn
	}
	h.a.c.Log.Log(h.a.final, level, "no lease", "domain", h.name, "in_a_row", n, "error", cause)
}

// serve delivers the messages of a lease, one after the other, and reports every
// one of them. What the connection did not live to see is handed back. Where the
// next hop pipelines, a message is begun behind the dot of the one before; the
// last of a lease is followed by nothing.
func (h *hop) serve(conn *smtpclient.Conn, at route.Hop, d fsm.Domain, l *heldLease, lease Lease) (reports *reporter, progress bool, seen Feedback) {
	seen.Token = lease.Token
	var waited time.Duration
	dots := 0
	reports = newReporter(h.a, h.name, lease.Token)
	h.a.running.Go(reports.run)
	defer reports.close()
	keeping, stop := context.WithCancel(h.a.final)
	defer stop()
	h.a.running.Go(func() { l.keep(keeping) })
	var next *attempt
	for i, m := range lease.Messages {
		t := next
		if t == nil {
			t = h.newAttempt(conn, at, d, l, m)
		}
		next = nil
		var r result
		switch {
		case h.a.work.Err() != nil || !conn.Usable():
			r = t.o.untried(true)
		case h.turned(d):
			if t.begun {
				conn.Abort() // The next hop may wait for content, and must not get any.
			}
			r = t.o.untried(true)
		default:
			l.advance(i)
			if i+1 < len(lease.Messages) && h.pipelines(conn, at, d) {
				next = h.newAttempt(conn, at, d, l, lease.Messages[i+1])
			}
			r = t.run(next)
		}
		t.close()
		h.pipelined(conn, at)
		h.a.stats.count(r.outcomes)
		reports.add(r.outcomes)
		progress = progress || r.tried
		if r.answered {
			h.answered()
		}
		seen.count(r)
		if r.answered {
			waited += r.waited
			dots++
		}
		if !conn.Usable() && !r.ours {
			seen.Lost = true
			h.a.stats.ConnectionsLost.Add(1)
			h.failed()
		}
	}
	if dots > 0 {
		seen.Mean = waited / time.Duration(dots)
	}
	return reports, progress, seen
}

// count adds what became of one message.
func (f *Feedback) count(r result) {
	if !r.tried {
		return
	}
	for _, o := range r.outcomes.Recipients {
		if o.Outcome == fsm.Delivered || o.Outcome == fsm.Failed {
			f.Answered++
			return
		}
	}
	f.Deferred++
}
