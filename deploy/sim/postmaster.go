package sim

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Refusals are what a primary refused for good. They are safe for concurrent use.
type refusals struct {
	mu    sync.Mutex
	count map[string]int // by recipient, and by domain
}

func (r *refusals) note(recipient string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == nil {
		r.count = map[string]int{}
	}
	r.count[strings.ToLower(recipient)]++
	r.count[strings.ToLower(recipient[strings.LastIndexByte(recipient, '@')+1:])]++
}

// of counts the refusals of a recipient, or of all recipients of a domain.
func (r *refusals) of(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.count[strings.ToLower(name)]
}

// A postmaster looks after a queue that drains: what the misbehaving primary refused for
// good is held, and the domain that it refused too much of is stopped, or guarded with
// nothing left that it would take. He lets them go. What waits for another reason, or for
// none, he does not touch: without him it would wait for ever.
type postmaster struct {
	world *World
	// stops are when domains were stopped that he has had go on.
	stops map[mail.Domain]map[fsm.Millis]bool
}

// attend does all that there is to do now.
func (p *postmaster) attend(ctx context.Context, view *fsm.State) error {
	w := p.world
	takeable := map[mail.Domain]bool{}
	for m := range view.Messages(zeroID) {
		wanted, err := w.wanted(m)
		if err != nil {
			return err
		}
		if wanted {
			_ = w.Do(ctx, fsm.Release{ID: m.ID})
		}
		for _, d := range queuedFor(m) {
			takeable[d] = true
		}
	}
	for _, d := range relayDomains {
		h := view.NextHop(d)
		if h.Stopped {
			if p.stops[d] == nil {
				p.stops[d] = map[fsm.Millis]bool{}
			}
			p.stops[d][h.StoppedAt] = true
			if n := w.refusals.of(string(d)); n < fsm.GuardSpentMax*len(p.stops[d]) {
				return fmt.Errorf("%s was stopped %d times, and the primary refused it %d recipients in all", d, len(p.stops[d]), n)
			}
		}
		if h.Stopped || h.Guarded && w.home != nil && !takeable[d] {
			_ = w.Do(ctx, fsm.ResumeDomain{Name: d})
		}
	}
	return nil
}

// queuedFor returns the domains for which a message has something queued that the
// primary takes: in one transaction it refuses all recipients, or none.
func queuedFor(m fsm.Message) (all []mail.Domain) {
	for _, p := range m.Parts {
		queued, vetoed := false, false
		for i, r := range m.Envelope.Recipients {
			to := r.Path.Mailbox.String()
			if r.Domain != p.Domain || m.Recipients[i].State != fsm.RecipientQueued {
				continue
			}
			queued = queued || !letter.IsRefusedAt(sink.Rcpt, to)
			vetoed = vetoed || letter.IsRefusedAt(sink.Dot, to)
		}
		if queued && !vetoed {
			all = append(all, p.Domain)
		}
	}
	return all
}
