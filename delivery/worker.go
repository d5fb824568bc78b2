package delivery

import (
	"context"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
)

// deliver is one connection: connect, then lease after lease until there is
// nothing more for us, or the connection ends.
func (h *hop) deliver(w Work) {
	defer func() {
		h.mu.Lock()
		h.workers--
		h.mu.Unlock()
		h.poke()
	}()
	ctx, cancel := context.WithTimeout(h.a.work, connectTimeout)
	conn, at, err := h.connect(ctx, w.Domain, dialTimeout)
	cancel()
	if err != nil {
		if h.a.work.Err() != nil {
			return
		}
		h.a.c.Log.Warn("next hop not reached", "domain", h.name, "error", err)
		h.failed()
		h.reportFailed(err.Error())
		return
	}
	h.reached()
	h.reportUp(at.String())
	var previous *reporter
	for h.a.work.Err() == nil && conn.Usable() {
		sent := h.a.c.Boot() // The right counts from here, not from the answer.
		lease, err := h.pull()
		if err != nil || len(lease.Messages) == 0 {
			h.idle()
			break
		}
		reports, progress := h.serve(conn, at, newHeldLease(h.a, lease, sent), lease)
		if previous != nil {
			<-previous.done // At most one lease's reports are outstanding beside the next.
		}
		previous = reports
		if !progress {
			h.idle()
			break
		}
		h.busy()
		h.reportUp(at.String()) // Others may have called it down meanwhile.
	}
	_ = conn.Quit(h.a.work)
	if previous != nil {
		<-previous.done
	}
}

// pull asks for a lease. It is not given up at a shutdown: a lease granted in
// answer to it can then be handed back at once.
func (h *hop) pull() (Lease, error) {
	ctx, cancel := h.a.callContext()
	defer cancel()
	h.a.stats.Pulls.Add(1)
	lease, err := h.a.c.Queue.Pull(ctx, h.name, h.batch())
	if err != nil {
		h.a.stats.PullsFailed.Add(1)
		h.a.c.Log.Debug("no lease", "domain", h.name, "error", err)
		return Lease{}, err
	}
	h.a.stats.Leased.Add(int64(len(lease.Messages)))
	return lease, nil
}

// serve delivers the messages of a lease, one after the other, and reports every
// one of them. What the connection did not live to see is handed back.
func (h *hop) serve(conn *smtpclient.Conn, at route.Hop, l *heldLease, lease Lease) (reports *reporter, progress bool) {
	reports = newReporter(h.a, h.name, lease.Token)
	h.a.running.Go(reports.run)
	defer reports.close()
	keeping, stop := context.WithCancel(h.a.final)
	defer stop()
	h.a.running.Go(func() { l.keep(keeping) })
	for i, m := range lease.Messages {
		var r result
		if h.a.work.Err() != nil || !conn.Usable() {
			r = newOutcomes(m).untried(true)
		} else {
			l.advance(i)
			r = h.attempt(conn, at, l, m)
		}
		h.a.stats.count(r.outcomes)
		reports.add(r.outcomes)
		progress = progress || r.tried
		if r.answered {
			h.answered()
		}
		if !conn.Usable() && !r.ours {
			h.a.stats.ConnectionsLost.Add(1)
			h.failed()
		}
	}
	return reports, progress
}
