package delivery

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// beginWindow is how many messages one renewal names ahead: their renewal is
	// committed while others are sent. After a crash so many wait doubt_wait.
	beginWindow = 8
	// beginAhead is how many named messages may be left, the current one
	// included, when the next window is asked for.
	beginAhead = 2
	// A renewal that failed is repeated after this long.
	renewFirst = 200 * time.Millisecond
	renewMost  = 2 * time.Second
	// permitTick is the least time after which the clock is looked at again.
	permitTick = time.Millisecond
)

var (
	errStopped    = errors.New("a renewal said stop")
	errRightEnded = errors.New("the right to act has ended")
)

// A heldLease is a lease that this node holds: what it may still do under it.
//
// Invariant: rightTill counts from when the pull, or a renewal known to be
// committed, was sent, by Config.Boot; it never counts from an answer.
// Invariant: begun holds only messages that a renewal known to be committed
// named.
type heldLease struct {
	a     *Agent
	token fsm.Token
	order []mail.QueueID // of the attempts, and so of the naming
	ask   chan struct{}  // holds one value when a renewal is wanted at once

	mu        sync.Mutex
	rightTill time.Duration // by Config.Boot
	renewed   bool
	renewedAt time.Duration // when the last committed renewal was sent, by Config.Boot
	begun     map[mail.QueueID]bool
	stopped   map[mail.QueueID]bool
	ended     bool          // nothing stands under the token
	current   int           // position of the message that is being delivered
	changed   chan struct{} // closed and replaced when a renewal was answered
}

func newHeldLease(a *Agent, l Lease, sent time.Duration) *heldLease {
	h := &heldLease{
		a: a, token: l.Token, ask: make(chan struct{}, 1),
		rightTill: sent + a.right(),
		begun:     make(map[mail.QueueID]bool), stopped: make(map[mail.QueueID]bool),
		changed: make(chan struct{}),
	}
	for _, m := range l.Messages {
		h.order = append(h.order, m.ID)
	}
	return h
}

// advance says which message is delivered now. What stands before it is over
// and is never named again.
func (l *heldLease) advance(position int) {
	l.mu.Lock()
	l.current = position
	l.mu.Unlock()
	l.want()
}

// due reports whether a renewal that was asked for is still of use: the one
// before it may have brought what was missing.
func (l *heldLease) due() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.windowLocked()) > 0 || !l.renewed || l.a.c.Boot()-l.renewedAt >= l.a.c.LeaseDuration/4
}

// want has the keeper renew at once.
func (l *heldLease) want() {
	select {
	case l.ask <- struct{}{}:
	default:
	}
}

// may reports whether a message may be worked on, short of its dot.
func (l *heldLease) may(id mail.QueueID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mayLocked(id)
}

func (l *heldLease) mayLocked(id mail.QueueID) error {
	if l.ended || l.stopped[id] {
		return errStopped
	}
	if l.a.c.Boot() >= l.rightTill {
		return errRightEnded
	}
	return nil
}

// permit waits until the final dot of a message may be sent, and returns nil
// only then: the message is named as begun by a committed renewal under this
// token, and the last committed renewal was sent less than D/2 ago. It is called
// right before the dot.
func (l *heldLease) permit(ctx context.Context, id mail.QueueID) error {
	if l.a.c.Controls.Has(controls.LeaseUnchecked) {
		return nil
	}
	for {
		l.mu.Lock()
		if err := l.mayLocked(id); err != nil {
			l.mu.Unlock()
			return err
		}
		now := l.a.c.Boot()
		if l.begun[id] && l.renewed && now-l.renewedAt < l.a.c.LeaseDuration/2 {
			l.mu.Unlock()
			return nil
		}
		changed, left := l.changed, l.rightTill-now
		l.mu.Unlock()
		l.want()
		timer := time.NewTimer(max(left, permitTick))
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// keep renews the lease until ctx ends: when asked, and each quarter of its
// duration. It goes on after our right has ended, since the reply to a dot in
// flight is worth having, and a lease that stands lets us report it as ours.
func (l *heldLease) keep(ctx context.Context) {
	trouble := backoff{first: renewFirst, most: renewMost}
	timer := time.NewTimer(l.a.jitter(l.a.c.LeaseDuration / 4))
	defer timer.Stop()
	for {
		select {
		case <-l.ask:
			if !l.due() {
				continue
			}
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait := l.a.jitter(l.a.c.LeaseDuration / 4)
		switch err := l.renew(ctx); {
		case ctx.Err() != nil || errors.Is(err, ErrLeaseEnded):
			return
		case err != nil:
			l.a.stats.RenewalsFailed.Add(1)
			l.a.c.Log.Warn("lease not renewed", "token", uint64(l.token), "error", err)
			wait = l.a.jitter(trouble.grow())
			if !sleep(ctx, wait) {
				return
			}
			l.want()
		default:
			trouble.reset()
		}
		timer.Reset(wait)
	}
}

// renew proposes one renewal that names the next window.
func (l *heldLease) renew(ctx context.Context) error {
	names := l.window()
	ctx, cancel := context.WithTimeout(ctx, queueCallTimeout)
	defer cancel()
	l.a.stats.Renewals.Add(1)
	sent := l.a.c.Boot()
	stop, err := l.a.c.Queue.Renew(ctx, l.token, l.a.request(), names)
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case errors.Is(err, ErrLeaseEnded):
		l.ended = true
	case err != nil:
		return err // Committed or not: it gives no right.
	default:
		l.rightTill = max(l.rightTill, sent+l.a.right())
		l.renewedAt, l.renewed = max(l.renewedAt, sent), true
		for _, id := range names {
			l.begun[id] = true
		}
		for _, id := range stop {
			l.stopped[id] = true
			delete(l.begun, id)
		}
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return err
}

// window returns the messages that the next renewal names: those from the
// current one on that are not begun, as long as few of those that are begun are
// still to come.
func (l *heldLease) window() []mail.QueueID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.windowLocked()
}

func (l *heldLease) windowLocked() []mail.QueueID {
	named := 0
	var names []mail.QueueID
	for _, id := range l.order[l.current:] {
		switch {
		case l.begun[id]:
			named++
		case l.stopped[id]:
		case len(names) < beginWindow:
			names = append(names, id)
		}
	}
	if named > beginAhead {
		return nil // A renewal for the sake of time.
	}
	return names
}
