// Package dispatch is what only the leader does: it plans which messages an
// asking node may lease, ends leases whose time is over, and advances log time.
//
// Plan and the lease clock are pure; the Dispatcher is the loop that proposes
// what they say. Nothing here is trusted by Apply, which checks each message
// again: a dispatcher that is slow, stale or doubled wastes an entry, no more.
package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Queue is the replicated queue as the leader sees it.
type Queue interface {
	// View returns a snapshot of the applied state.
	View() *fsm.State
	// Propose has an action committed and applied by this node as leader. It
	// does not look for another leader.
	Propose(ctx context.Context, action fsm.Action) (fsm.Index, fsm.Result, error)
}

// Config sets a Dispatcher up. All fields but those about controls are required.
type Config struct {
	Queue Queue
	Log   *slog.Logger
	// LeaseDuration is D: how long a lease lasts after its grant or renewal.
	LeaseDuration time.Duration
	// LeaseMargin is what the leader adds before it expires a lease, for the
	// drift of its own clock against the holder's.
	LeaseMargin time.Duration
	// LeaseBatchMax bounds the messages of one grant.
	LeaseBatchMax int
	// TickEvery is how often log time advances.
	TickEvery time.Duration
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
	// WallClock is what a control asks; nothing else does. It may be nil.
	WallClock func() time.Time
}

// A Request is a node's wish for messages to one next hop. The node has just
// completed EHLO with it.
type Request struct {
	Holder fsm.NodeName
	Domain mail.Domain
	// Max is at most how many messages; with 0 the holder wants none, and only says
	// what it saw.
	Max int
	// Connections is how many it has to the next hop, the one that asks included. A
	// version that does not say it, and sees nothing, is given what it wants.
	Connections int
	// Seen is what it saw in a lease before.
	Seen Feedback
}

// A Grant answers a Request. No messages and no token: nothing is due, or there are
// too many connections already.
type Grant struct {
	Token    fsm.Token
	Messages []mail.QueueID
	// Connections is how many the holder may have to the next hop.
	Connections int
}

// ErrNotLeading: this node does not lead, or does so no longer.
var ErrNotLeading = errors.New("not leading")

// A Dispatcher serves pulls and runs the leader's timers. It is safe for
// concurrent use.
type Dispatcher struct {
	config Config
	// turn lets one pull plan and commit at a time: two plans made from the
	// same view would name the same messages. Who has it may use ramps and lanes.
	turn  chan struct{}
	ramps map[mail.Domain]*ramp
	lanes map[mail.Domain]Lanes

	mu sync.Mutex
	// down are the next hops that were seen to be down since their ramps were last asked
	// for. It has no more than there are domains, and forget drops what is no more.
	down map[mail.Domain]bool
}

// New returns a Dispatcher.
func New(c Config) *Dispatcher {
	return &Dispatcher{
		config: c, turn: make(chan struct{}, 1),
		ramps: make(map[mail.Domain]*ramp), lanes: make(map[mail.Domain]Lanes),
		down: make(map[mail.Domain]bool),
	}
}

// Pull plans and commits a grant, as the ramp of the next hop allows. The answer
// lists what was really granted.
func (d *Dispatcher) Pull(ctx context.Context, r Request) (Grant, error) {
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-ctx.Done():
		return Grant{}, ctx.Err()
	}
	view := d.config.Queue.View()
	domain, ok := view.Domain(r.Domain)
	if !ok {
		delete(d.ramps, r.Domain)
		delete(d.lanes, r.Domain)
		return Grant{}, nil
	}
	ceiling := domain.ConnectionsMax
	if ceiling == 0 {
		ceiling = fsm.ConnectionsMaxDefault
	}
	hop := view.NextHop(r.Domain)
	ramp := d.ramp(r.Domain, hop, view)
	ramp.note(r.Seen, ceiling)
	if r.Max <= 0 {
		ramp.closed(r.Holder, r.Connections)
		return Grant{}, nil
	}
	grant := Grant{Connections: ceiling}
	if r.Connections > 0 {
		messages := 0
		messages, grant.Connections = ramp.grant(r.Holder, r.Connections, time.Now(), d.config.LeaseDuration, ceiling, func(holder fsm.NodeName) bool {
			return leases(view, r.Domain)[holder] > 0
		})
		r.Max = min(r.Max, messages)
	}
	lanes := d.lanes[r.Domain]
	// The few that a next hop which is back gets first are of the oldest: what it does
	// with one that it has always put off says nothing of the others.
	trying := hop.Guarded || r.Connections > 0 && !ramp.proven
	if trying {
		lanes.place = 0
	}
	planned, next := Plan(view, r, d.config.LeaseBatchMax, lanes)
	if len(planned) == 0 {
		ramp.closed(r.Holder, r.Connections-1) // who gets nothing closes
		return grant, nil
	}
	index, result, err := d.config.Queue.Propose(ctx, fsm.GrantLeases{Holder: r.Holder, Domain: r.Domain, Messages: planned})
	if err != nil {
		return Grant{}, err
	}
	if len(result.Messages) > 0 {
		grant.Token, grant.Messages = fsm.Token(index), result.Messages
		ramp.last = grant.Token
	}
	if len(grant.Messages) == len(planned) { // else the same ones have their turn again
		if trying {
			next.place = d.lanes[r.Domain].place
		}
		d.lanes[r.Domain] = next
	}
	return grant, nil
}

// ramp returns the ramp of a domain's next hop, a new one where that was away since. The
// caller has the turn.
func (d *Dispatcher) ramp(n mail.Domain, hop fsm.NextHop, view *fsm.State) *ramp {
	d.mu.Lock()
	wasDown := d.down[n]
	delete(d.down, n)
	d.mu.Unlock()
	r := d.ramps[n]
	early := hop.State.Probed()
	switch {
	case r == nil:
		// A new leader knows of leases only, and goes on with as many.
		r = newRamp()
		under := 0
		for holder, n := range leases(view, n) {
			r.active[holder] = activity{n, time.Now()}
			under += n
		}
		r.window = max(1, float64(under))
	case r.early:
	case early || wasDown:
		r = r.anew()
	}
	r.early = early
	d.ramps[n] = r
	return r
}

// lookForDown notes which next hops are down.
func (d *Dispatcher) lookForDown(view *fsm.State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, domain := range view.Domains() {
		if view.NextHop(domain.Name).State.Probed() {
			d.down[domain.Name] = true
		}
	}
}

// leases counts the leases of a domain's messages by their holders.
func leases(view *fsm.State, n mail.Domain) map[fsm.NodeName]int {
	count := map[fsm.NodeName]int{}
	for _, l := range view.Leases() {
		if l.Domain == n {
			count[l.Holder]++
		}
	}
	return count
}

// lookEvery is how often the leader looks for leases to end. It adds to a
// lease's length, which is the safe direction.
const lookEvery = time.Second

// Lead runs the leader's timers until ctx ends. Call it in each leadership
// anew, after the leader has applied everything that was committed before.
func (d *Dispatcher) Lead(ctx context.Context) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	// What an earlier leadership saw of the next hops is old.
	select {
	case d.turn <- struct{}{}:
		clear(d.ramps)
		<-d.turn
	case <-ctx.Done():
		return
	}
	// A leader's first tick counts from when it became leader: what went before
	// is the old leader's, or nobody's.
	lastTick := time.Now()
	var lastWall time.Time
	clock := leaseClock{after: d.config.LeaseDuration + d.config.LeaseMargin}
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		view := d.config.Queue.View()
		d.lookForDown(view)
		now := time.Now() // after the look: a lease is timed from when it was seen
		for _, e := range clock.overdue(view.Leases(), now) {
			if _, _, err := d.config.Queue.Propose(ctx, e); err != nil {
				d.config.Log.Info("lease not expired", "token", e.Token, "cause", err)
				break
			}
		}
		if d.config.Controls.Has(controls.WallClockExpiry) {
			lastWall = d.followWallClock(ctx, lastWall)
		}
		if elapsed := now.Sub(lastTick); elapsed >= d.config.TickEvery {
			if _, _, err := d.config.Queue.Propose(ctx, fsm.Tick{Elapsed: fsm.Millis(elapsed.Milliseconds())}); err != nil {
				d.config.Log.Info("log time not advanced", "cause", err)
			}
			// Also where it failed: the entry may yet be committed, and time
			// counted twice would end waits early. Time lost only lengthens them.
			lastTick = now
			d.forget(view)
		}
	}
}

// forget drops what is kept for domains that are no more: those that reports go to
// come and go. Whoever has the turn now leaves it for the next time.
func (d *Dispatcher) forget(view *fsm.State) {
	select {
	case d.turn <- struct{}{}:
	default:
		return
	}
	gone := func(n mail.Domain) bool {
		_, ok := view.Domain(n)
		return !ok
	}
	maps.DeleteFunc(d.ramps, func(n mail.Domain, _ *ramp) bool { return gone(n) })
	maps.DeleteFunc(d.lanes, func(n mail.Domain, _ Lanes) bool { return gone(n) })
	d.mu.Lock()
	maps.DeleteFunc(d.down, func(n mail.Domain, _ bool) bool { return gone(n) })
	d.mu.Unlock()
	<-d.turn
}

// A leaseClock knows since when, by this leader's own monotonic clock, each
// lease has stood as it stands now.
type leaseClock struct {
	after time.Duration
	seen  map[fsm.Token]sighting
}

type sighting struct {
	renewal fsm.Index
	at      time.Time
}

// overdue notes the leases that stand at now and returns the expiry of those
// that have stood unrenewed for longer than after. A lease is timed from when
// this clock first saw its last renewal, which is after that was applied.
func (c *leaseClock) overdue(leases []fsm.Lease, now time.Time) []fsm.ExpireLeases {
	standing := make(map[fsm.Token]sighting, len(leases))
	var overdue []fsm.ExpireLeases
	for _, l := range leases {
		s, ok := c.seen[l.Token]
		if !ok || s.renewal != l.Renewal {
			s = sighting{renewal: l.Renewal, at: now}
		}
		standing[l.Token] = s
		if now.Sub(s.at) > c.after {
			overdue = append(overdue, fsm.ExpireLeases{Token: l.Token, Renewal: l.Renewal})
		}
	}
	c.seen = standing
	return overdue
}
