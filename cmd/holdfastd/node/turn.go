package node

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd"
)

// turnSpacing is the least time between two flushes of a domain that ETRN asks for at
// this node: each is an entry in the log, and makes all waiting mail due.
const turnSpacing = 10 * time.Second

// turns are when each domain was last flushed for ETRN. There are no more than relay
// domains.
type turns struct {
	mu   sync.Mutex
	last map[mail.Domain]time.Time
}

// due reports whether a domain may be flushed, and notes that it is.
func (t *turns) due(d mail.Domain, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if last, ok := t.last[d]; ok && now.Sub(last) < turnSpacing {
		return false
	}
	if t.last == nil {
		t.last = make(map[mail.Domain]time.Time)
	}
	t.last[d] = now
	return true
}

// Turn has the mail of a domain delivered now. A client may ask for that which is one
// of the domain's next hops, or in a network that the domain lists.
func (q smtpQueue) Turn(ctx context.Context, client netip.Addr, d mail.Domain) (int, error) {
	view := q.n.member.View()
	domain, ok := view.Domain(d)
	if !ok {
		return 0, fmt.Errorf("%w: no relay domain of that name", smtpd.ErrTurnRefused)
	}
	if err := mayTurn(ctx, q.n.router, client, domain); err != nil {
		return 0, err
	}
	waiting := view.Counts(d).Queued
	if waiting == 0 && view.NextHop(d).State != fsm.NextHopDown || !q.n.turns.due(d, q.n.seams.Now()) {
		return waiting, nil
	}
	result, err := q.n.member.Do(ctx, fsm.FlushDomain{Name: d})
	if err == nil && result.Verdict != fsm.Done {
		err = fmt.Errorf("flush: %s", result.Text)
	}
	return waiting, err
}

// mayTurn returns nil if a client may have a domain's mail delivered.
func mayTurn(ctx context.Context, router interface {
	Route(context.Context, fsm.Domain) ([]route.Hop, error)
}, client netip.Addr, d fsm.Domain) error {
	client = client.Unmap()
	for _, n := range d.ETRN {
		if n.Contains(client) {
			return nil
		}
	}
	hops, err := router.Route(ctx, d)
	if err != nil {
		return fmt.Errorf("next hops not known: %w", err)
	}
	for _, h := range hops {
		if h.Address.Addr().Unmap() == client {
			return nil
		}
	}
	return fmt.Errorf("%w: %s is no next hop, and in no network that is listed", smtpd.ErrTurnRefused, client)
}
