package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Do has an action committed by any node that can.
func (w *World) Do(ctx context.Context, action fsm.Action) error {
	for {
		for _, name := range w.names {
			p := w.nodes[name]
			if p == nil || p.node.Member().Ready() != nil {
				continue
			}
			attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
			result, err := p.node.Member().Do(attempt, action)
			cancel()
			if err == nil && result.Verdict == fsm.Done {
				return nil
			}
			if err == nil {
				return fmt.Errorf("%T: %s", action, result.Text)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%T: no node commits: %w", action, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// PutDomains registers the relay domains with the primary.
func (w *World) PutDomains(ctx context.Context) error {
	for _, d := range relayDomains {
		if err := w.Do(ctx, fsm.PutDomain{Domain: w.relayDomain(d)}); err != nil {
			return err
		}
	}
	for _, name := range w.names {
		for !w.knows(name) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s does not learn of the relay domains: %w", name, ctx.Err())
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// knows reports whether a node has heard of all relay domains. Before that it
// refuses mail for them, as it should.
func (w *World) knows(name string) bool {
	p := w.nodes[name]
	return p != nil && len(p.node.Member().View().Domains()) == len(relayDomains)
}

// relayDomain is how a relay domain is registered: in a world whose senders are told with
// a guard, as an administrator of this version does.
func (w *World) relayDomain(name mail.Domain) fsm.Domain {
	d := fsm.Domain{Name: name, Targets: []fsm.Target{{Host: w.network.Host(primaryName).IP().String(), Port: 25}}}
	if w.home == nil {
		return d
	}
	d.ConnectionsMax = fsm.ConnectionsMaxDefault
	d.Schedule = fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault, Lifetime: fsm.LifetimeDefault}
	if name == toldDomain {
		d.Bounce = fsm.BounceAlways
	}
	return d
}
