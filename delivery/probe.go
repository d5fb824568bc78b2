package delivery

import (
	"context"
	"time"
)

const (
	// Across the cluster a next hop that is down is probed every probeTurn. A
	// node's own turn comes round after probeTurn times the nodes, but at most
	// probeCycleMost: also a node that alone reaches the next hop sees its return
	// within 30 s.
	probeTurn      = 8 * time.Second
	probeCycleMost = 24 * time.Second
	// probeTimeout is for all of one probe. It is longer than a cycle, since some
	// servers make strangers wait for the banner; probesMax of them may overlap.
	probeTimeout     = time.Minute
	probeDialTimeout = 10 * time.Second
	probeQuitTimeout = 2 * time.Second
	probesMax        = 3
)

// planProbes lays this node's probes on a grid: a cycle, shifted by the node's
// rank. Each probe is jittered around its point, not around the one before it,
// so that the ranks stay apart. The caller holds mu.
func (h *hop) planProbes(now time.Time) {
	nodes := max(1, h.work.Nodes)
	cycle := min(time.Duration(nodes)*probeTurn, probeCycleMost)
	h.probeBase = now.Add(cycle * time.Duration(h.work.Rank%nodes+1) / time.Duration(nodes))
	h.probeNext = h.probeBase.Add(h.a.jitter(cycle) - cycle)
}

// stepProbe starts a probe that is due and returns the time until the next. The
// caller holds mu.
func (h *hop) stepProbe(now time.Time) time.Duration {
	cycle := min(time.Duration(max(1, h.work.Nodes))*probeTurn, probeCycleMost)
	due := !h.probeNext.After(now)
	if due {
		for !h.probeBase.After(now) || !h.probeNext.After(now) {
			h.probeBase = h.probeBase.Add(cycle)
			h.probeNext = h.probeBase.Add(h.a.jitter(cycle) - cycle)
		}
	}
	if (due || h.unprobed) && h.probing < probesMax {
		h.unprobed = false
		h.probing++
		w := *h.work
		h.a.running.Go(func() { h.probe(w) })
	}
	return h.probeNext.Sub(now)
}

// stepBarred starts a probe where this node alone is refused, from time to time, and
// returns the time until the next. The caller holds mu.
func (h *hop) stepBarred(now time.Time) time.Duration {
	if h.probing > 0 {
		return stepMost // it wakes us when it ends
	}
	again := h.failedAt.Add(barredEvery)
	if again.After(now) {
		return again.Sub(now)
	}
	h.probing++
	w := *h.work
	h.a.running.Go(func() { h.probe(w) })
	return stepMost
}

// probe connects, reads the banner, says EHLO, begins TLS where offered, and
// says QUIT.
func (h *hop) probe(w Work) {
	defer func() {
		h.mu.Lock()
		h.probing--
		h.mu.Unlock()
		h.poke()
	}()
	h.a.stats.Probes.Add(1)
	ctx, cancel := context.WithTimeout(h.a.work, probeTimeout)
	defer cancel()
	conn, at, err := h.connect(ctx, w.Domain, probeDialTimeout)
	if err != nil {
		if h.a.work.Err() == nil {
			h.a.c.Log.Debug("probe failed", "domain", h.name, "error", err)
			h.mu.Lock()
			h.failedAt, h.reaching = time.Now(), false
			h.mu.Unlock()
			h.missed(err, true)
		}
		return
	}
	h.a.stats.ProbesUp.Add(1)
	h.a.c.Log.Info("next hop answers", "domain", h.name, "hop", at.String())
	h.mu.Lock()
	h.reaching = true
	h.quietTill = time.Now()
	h.mu.Unlock()
	// Those who come now find the connection gone, where there is but one.
	leaving, end := context.WithTimeout(ctx, probeQuitTimeout)
	_ = conn.Quit(leaving)
	end()
	h.report(Reached, at.String())
}
