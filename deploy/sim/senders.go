package sim

import (
	"cmp"
	"context"
	"net"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

// Send sends letters to all nodes in turn, as a real sender does, until all
// have a 250 or ctx ends.
func (w *World) Send(ctx context.Context, count, sessions int, pause time.Duration) (sender.Stats, error) {
	return w.sendWith(ctx, sender.Options{Count: count, Sessions: sessions, Pause: pause})
}

// sendWith is Send with other options. Those that are the same in every world it
// sets itself; without targets, all nodes are.
func (w *World) sendWith(ctx context.Context, o sender.Options) (sender.Stats, error) {
	if o.Targets == nil {
		for _, name := range w.names {
			o.Targets = append(o.Targets, name+":"+smtpPort)
		}
	}
	var domains []string
	for _, d := range relayDomains {
		domains = append(domains, string(d))
	}
	if o.Letter == nil {
		o.Letter = letter.New(letter.Options{Seed: w.seed, Domains: domains, Sizes: letter.ShapesOfMail, BigAt: -1, RefusedEvery: w.refusedEvery()}).Letter
	}
	o.Record = w.record
	if o.Record == nil {
		o.Record = w.ledger
	}
	o.PerConnection, o.GiveUp = cmp.Or(o.PerConnection, 2), cmp.Or(o.GiveUp, 24*time.Hour)
	o.Waited = w.waiting
	if o.Dial == nil {
		o.Dial = w.network.Host(senderName).Dial
	}
	o.Seed, o.Hello = w.seed, "sender.test"
	s, err := sender.New(o)
	if err != nil {
		return sender.Stats{}, err
	}
	err = s.Run(ctx)
	return s.Stats(), err
}

// mute returns the nodes that the senders cannot talk to now, each with the time until
// which it is frozen, zero where that is not why.
func (w *World) mute() map[string]time.Time {
	mute := map[string]time.Time{}
	for _, name := range w.names {
		if until := w.network.Frozen(name); until.After(time.Now()) {
			mute[name] = until
		} else if !w.network.Reachable(senderName, name) {
			mute[name] = time.Time{}
		}
	}
	return mute
}

// silent notes that the senders could not talk to these nodes since then, and that they
// can now, but for those that are frozen for longer.
func (w *World) silent(mute map[string]time.Time, since time.Time) {
	w.silencesLock.Lock()
	defer w.silencesLock.Unlock()
	for name, until := range mute {
		if now := time.Now(); until.Before(now) {
			until = now
		}
		w.silences[name] = append(w.silences[name], ledger.Span{From: since, To: until})
	}
}

// away returns when the senders could not talk to a node, by its address.
func (w *World) away(address string) []ledger.Span {
	w.silencesLock.Lock()
	defer w.silencesLock.Unlock()
	name, _, _ := net.SplitHostPort(address)
	return slices.Clone(w.silences[name])
}
