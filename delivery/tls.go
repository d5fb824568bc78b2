package delivery

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
)

// policyTimeout is for learning what a domain's policy needs to know of one hop.
// It is less than a probe has: a policy's host that hangs must not keep the probe
// from connecting at all.
const policyTimeout = 30 * time.Second

// reach opens a conversation with one hop as the domain's TLS policy wants it.
// An error that wraps a *tlspolicy.Failure means that the policy forbids the
// hop: nothing but EHLO, STARTTLS and QUIT was said to it. odd is what is wrong
// with the policy where the conversation is open all the same.
func (h *hop) reach(ctx context.Context, d fsm.Domain, at route.Hop, dial time.Duration) (conn *smtpclient.Conn, odd *tlspolicy.Failure, err error) {
	decision, err := h.decide(ctx, d, at)
	if ctx.Err() != nil { // What could not be looked up says nothing.
		return nil, nil, ctx.Err()
	}
	if err != nil {
		var f *tlspolicy.Failure
		if errors.As(err, &f) {
			h.refused(f)
		}
		return nil, nil, err
	}
	config := decision.Config
	if config == nil {
		config = h.a.c.TLS.Clone()
		config.ServerName = at.Host
	}
	conn, err = h.open(ctx, at, dial, config)
	if errors.Is(err, smtpclient.ErrTLS) && ctx.Err() == nil {
		f := decision.Explain(err)
		if decision.Config != nil {
			h.refused(f)
			return nil, nil, f
		}
		// Opportunistic: not verified, and better in the clear than not at all.
		h.a.c.TLSCounts.Fail(today(), h.name, f)
		h.a.stats.TLSFallbacks.Add(1)
		h.a.c.Log.Warn("TLS failed, going on without", "domain", h.name, "hop", at.String(), "error", err)
		conn, err = h.open(ctx, at, dial, nil)
		return conn, nil, err
	}
	if err != nil {
		return nil, nil, err
	}
	state := conn.TLS()
	if state == nil {
		f := decision.InTheClear()
		if decision.Config != nil {
			h.refused(f)
			_ = conn.Quit(ctx)
			return nil, nil, f
		}
		h.a.c.TLSCounts.Fail(today(), h.name, f)
		return conn, nil, nil
	}
	found := decision.Trouble
	if decision.Judge != nil {
		found = decision.Judge(*state)
	}
	if found == nil {
		h.a.c.TLSCounts.Succeed(today(), h.name, decision.Source)
		return conn, nil, nil
	}
	h.a.c.TLSCounts.Fail(today(), h.name, found)
	h.a.c.Log.Warn("TLS is not as it should be, going on", "domain", h.name, "hop", at.String(), "error", found)
	return conn, decision.Trouble, nil
}

// decide asks the domain's policy about a hop, with what the policy needs to
// know. A policy whose lookups this agent was not given is told nothing.
func (h *hop) decide(ctx context.Context, d fsm.Domain, at route.Hop) (tlspolicy.Decision, error) {
	var policy tlspolicy.Policy
	if h.a.c.TLSPolicy != nil {
		if p := h.a.c.TLSPolicy(h.name); p != nil {
			policy = *p
		}
	}
	known := tlspolicy.Hop{Domain: h.name, Host: at.Host, ByMX: d.MX, Roots: h.a.c.PublicRoots}
	looking, cancel := context.WithTimeout(ctx, policyTimeout)
	defer cancel()
	switch {
	case policy.Mode == tlspolicy.DANE && h.a.c.TLSA != nil:
		known.TLSA = h.a.c.TLSA(looking, d, at)
	case policy.Mode == tlspolicy.MTASTS && h.a.c.STS != nil:
		known.STS = h.a.c.STS(looking, h.name)
	}
	known.Now = time.Now()
	return policy.Decide(known)
}

// refused counts a hop that the policy forbids. The mail waits.
func (h *hop) refused(f *tlspolicy.Failure) {
	h.a.stats.TLSRefused.Add(1)
	h.a.c.TLSCounts.Fail(today(), h.name, f)
}

func today() tlspolicy.Day { return tlspolicy.DayOf(time.Now()) }
