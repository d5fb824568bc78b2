package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// undo takes back that a domain was flushed.
func (t *turns) undo(d mail.Domain) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.last, d)
}

// Turn has the mail of a domain delivered now, by connections that the nodes open to
// where it goes.
func (q smtpQueue) Turn(ctx context.Context, who smtpd.Caller, d mail.Domain) (smtpd.Turned, error) {
	behind := q.n.member.Ready()
	view := q.n.member.View()
	domain, known := view.Domain(d)
	err := fmt.Errorf("%w: no relay domain of that name", smtpd.ErrTurnRefused)
	if known {
		err = mayTurn(ctx, q.n.router, who, domain)
	}
	switch {
	case errors.Is(err, smtpd.ErrTurnRefused) && behind != nil:
		// Who may call, and for what, may be known to the others: "never" is only for
		// the newest state to say.
		return smtpd.Turned{}, fmt.Errorf("not certain: %w", behind)
	case err != nil:
		return smtpd.Turned{}, err
	case domain.OnDemand:
		return smtpd.Turned{}, errors.New("nobody can connect to its primary: that calls by ATRN")
	case view.NextHop(d).Stopped:
		return smtpd.Turned{}, errors.New("delivery to the domain is stopped until an administrator has it go on")
	}
	turned := smtpd.Turned{Waiting: view.Counts(d).Queued, Uncounted: behind != nil}
	if turned.Waiting == 0 && !turned.Uncounted && !view.NextHop(d).State.Probed() {
		return turned, nil
	}
	if turned.Underway = !q.n.turns.due(d, q.n.seams.Now()); turned.Underway {
		return turned, nil
	}
	result, err := q.n.member.Do(ctx, fsm.FlushDomain{Name: d})
	if err == nil && result.Verdict != fsm.Done {
		err = fmt.Errorf("flush: %s", result.Text)
	}
	if err != nil {
		q.n.turns.undo(d) // who asks again is to be heard
	}
	return turned, err
}

// KnowsKeys reports whether some relay domain knows a caller by its key.
func (q smtpQueue) KnowsKeys() bool { return q.n.member.View().CallersHaveKeys() }

// mayTurn returns nil if a caller may have a domain's mail delivered: one of the
// domain's next hops, or a host in a network that the domain lists, or who has a key
// that it lists.
func mayTurn(ctx context.Context, router interface {
	Route(context.Context, fsm.Domain) ([]route.Hop, error)
}, who smtpd.Caller, d fsm.Domain) error {
	client := who.Address.Unmap()
	if who.HasKey && slices.Contains(d.Callers.Pins, who.Key) {
		return nil
	}
	for _, n := range d.ETRN {
		if n.Contains(client) {
			return nil
		}
	}
	var hops []route.Hop
	var err error
	if !d.OnDemand {
		hops, err = router.Route(ctx, d)
	}
	if err != nil {
		return fmt.Errorf("next hops not known: %w", err)
	}
	for _, h := range hops {
		if h.Address.Addr().Unmap() == client {
			return nil
		}
	}
	return fmt.Errorf("%w: %s is no next hop, in no network that is listed, and has no key that is", smtpd.ErrTurnRefused, client)
}
