package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

const (
	// queuedMax is how many recipients a real sender may have in its queue before it
	// is given no more.
	queuedMax = 300
	// laterAttempts numbers what a real sender tried and did not end well, above the
	// attempts of who gives it mail.
	laterAttempts = 1_000_000
)

// A post is what a real sender was given, and what its log says came of it.
type post struct {
	letters map[string]*handed // by the sender's own queue id
	open    map[string]bool    // recipients whose end is not known
	lines   int                // of the log, read so far
	early   []mailserver.Delivery
	later   int
}

// A handed is one letter that the sender took.
type handed struct {
	id         ledger.MessageID
	attempt    int
	recipients []string
}

// A clerk gives a real sender mail, and records for it. What is intended is recorded
// before the sender can have the letter; what came of it comes from the log, since
// the sender's own 250 promises nothing of Holdfast's.
type clerk struct{ p *peer }

// Intent records that the sender may have a letter from now on.
func (c clerk) Intent(i ledger.Intent) error {
	c.p.mu.Lock()
	for _, r := range i.Recipients {
		c.p.post.open[r] = true
	}
	c.p.mu.Unlock()
	return errors.Join(c.p.sent.Intent(i), c.p.book.Intent(i))
}

// Outcome remembers what the sender calls a letter that it took.
func (c clerk) Outcome(o ledger.Outcome) error {
	if o.Result != ledger.OK {
		return fmt.Errorf("%v does not take what it is given: %s", c.p.is, o.Reply)
	}
	id := mailserver.QueueIDOf(o.Reply)
	if id == "" {
		return fmt.Errorf("%v names no queue id: %s", c.p.is, o.Reply)
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.p.post.letters[id] = &handed{o.ID, o.Attempt, o.Recipients}
	return nil
}

// hand has a run's sender give its letters to the peer.
func (p *peer) hand(o *sender.Options) {
	o.Targets, o.Record, o.Dial = []string{p.address()}, clerk{p}, nil
	admit := o.Admit
	o.Admit = func(ctx context.Context, n int) bool {
		for p.pending() > queuedMax && admit(ctx, n) && ctx.Err() == nil {
			wait(ctx, readEvery)
		}
		return admit(ctx, n)
	}
}

// pending counts recipients whose end is not known.
func (p *peer) pending() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.post.open)
}

// finish waits until the sender has got rid of all that it was given.
func (p *peer) finish(ctx context.Context, c *cast) error {
	err := c.await(ctx, giveUpTime, func(context.Context) error {
		if n := p.pending(); n > 0 {
			return fmt.Errorf("its log tells no end of %d recipients, with %d messages in its queue", n, p.server.Queued())
		}
		return nil
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%v: %w\n%s", p.is, err, mailserver.Tail(p.server))
	}
	return ctx.Err()
}

// follow reads the new lines of the log.
func (p *peer) follow() error {
	lines := mailserver.Lines(p.server)
	fresh := lines[p.post.lines:max(p.post.lines, len(lines)-1)] // the last one may be incomplete
	p.post.lines += len(fresh)
	all := p.post.early
	p.post.early = nil
	for _, line := range fresh {
		if d, ok := p.is.Make.ParseDelivery(line); ok {
			all = append(all, d)
		}
	}
	var errs []error
	for _, d := range all {
		errs = append(errs, p.enter(d))
	}
	return errors.Join(errs...)
}

// enter records what a line says. A line may be written before we know what letter
// it is about: it is read again.
func (p *peer) enter(d mailserver.Delivery) error {
	p.mu.Lock()
	h := p.post.letters[d.QueueID]
	if h == nil {
		p.post.early = append(p.post.early, d)
		p.mu.Unlock()
		return nil
	}
	o := ledger.Outcome{ID: h.id, Attempt: h.attempt, Recipients: []string{d.Recipient}, Reply: d.Reply, At: time.Now()}
	switch d.Status {
	case mailserver.Sent:
		o.Result, o.QueueID = ledger.OK, mailserver.QueueIDOf(d.Reply)
		delete(p.post.open, d.Recipient)
	case mailserver.Bounced:
		o.Result = ledger.Fail
		delete(p.post.open, d.Recipient)
	case mailserver.Unsure:
		o.Result = ledger.Info
	case mailserver.Deferred:
		// A reply of the host, or no connection: it is tried again.
		o.Result = ledger.Fail
	default:
		p.mu.Unlock()
		return fmt.Errorf("status %q", d.Status)
	}
	if d.Status == mailserver.Unsure || d.Status == mailserver.Deferred {
		p.post.later++
		o.Attempt = laterAttempts + p.post.later
	}
	if d.Recipient == "" {
		o.Recipients = slices.Clone(h.recipients)
	}
	p.mu.Unlock()
	if d.Status == mailserver.Bounced {
		p.diary.breach("L8", "%v gave <%s> up: %s", p.is, d.Recipient, strings.TrimSpace(d.Reply))
	}
	if o.Result == ledger.OK {
		p.diary.acked(1)
	}
	return errors.Join(p.sent.Outcome(o), p.book.Outcome(o))
}
