package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

// A holder is one of the two that are compared, new and empty: it takes mail while
// its next hop is down, and delivers it at a flush.
type holder interface {
	// targets are its SMTP addresses, all equal.
	targets() []string
	// nextHop is the address to which it delivers.
	nextHop() string
	// deferred waits until it has exactly so many messages, tries to deliver none,
	// and has nothing else to do.
	deferred(ctx context.Context, messages int) error
	// flush has it deliver them now.
	flush(ctx context.Context) error
	// left is how many it still has to deliver. Messages that it will never
	// deliver by itself are an error.
	left(ctx context.Context) (int, error)
	// logIndex is that of the last entry of its replicated log, 0 without one.
	logIndex(ctx context.Context) (uint64, error)
	// close ends it. Its files are removed unless they say why it failed.
	close(ctx context.Context, failed bool) error
}

// An opener starts a holder.
type opener func(context.Context) (holder, error)

// A drainResult is what came of one side of a cell.
type drainResult struct {
	Messages    int           `json:"messages"`
	Elapsed     time.Duration `json:"elapsed_ns"` // from the flush to the last 250
	First       time.Duration `json:"first_ns"`   // from the flush to the first 250
	Fill        time.Duration `json:"fill_ns"`    // of giving the messages to it
	Defer       time.Duration `json:"defer_ns"`   // from there until all were deferred
	Connections int64         `json:"connections"`
	// ConnectionsMost is the greatest number of connections at a time.
	ConnectionsMost int64         `json:"connections_most"`
	Entries         uint64        `json:"entries"` // of the replicated log
	Violations      int64         `json:"violations"`
	Ledger          ledger.Report `json:"ledger"`
}

func (r drainResult) perSecond() float64 { return float64(r.Messages) / r.Elapsed.Seconds() }

func (r drainResult) entriesPerMessage() float64 { return float64(r.Entries) / float64(r.Messages) }

func (r drainResult) String() string {
	s := fmt.Sprintf("%.1f messages/s, %v in all, the first after %v; %d connections, %d at a time; %v",
		r.perSecond(), r.Elapsed.Round(time.Millisecond), r.First.Round(time.Millisecond), r.Connections, r.ConnectionsMost, r.Ledger)
	if r.Entries > 0 {
		s += fmt.Sprintf("; %.3f log entries a message", r.entriesPerMessage())
	}
	return s
}

// fault says what must not be, nil if all is well. Copies beyond the first may be.
func (r drainResult) fault() (err error) {
	if !r.Ledger.OK() || r.Ledger.Delivered != r.Messages {
		err = errors.Join(err, fmt.Errorf("%w: %v, %d delivered though refused, %d unexpected: %q",
			errFaults, r.Ledger, r.Ledger.Refused, r.Ledger.Unexpected, r.Ledger.Cases))
	}
	if r.ConnectionsMost > drainCeiling {
		err = errors.Join(err, fmt.Errorf("%d connections at a time, and %d are the ceiling", r.ConnectionsMost, drainCeiling))
	}
	if r.Violations > 0 {
		err = errors.Join(err, fmt.Errorf("the primary saw %d violations of SMTP", r.Violations))
	}
	return err
}

// drainSide measures one side of a cell, from nothing to nothing.
func (a *app) drainSide(ctx context.Context, limit time.Duration, open opener, c drainCell, seed uint64) (r drainResult, err error) {
	outer := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	h, err := open(ctx)
	if err != nil {
		return r, err
	}
	defer func() {
		// Whoever interrupts it does not want to look at gigabytes of queue.
		failed := err != nil && outer.Err() == nil
		err = errors.Join(err, h.close(context.WithoutCancel(ctx), failed))
	}()
	d := drainage{h: h, cell: c, seed: seed, book: ledger.New(), stall: drainStall}
	if err := d.fill(ctx); err != nil {
		return d.r, fmt.Errorf("fill: %w", err)
	}
	a.say("%d messages taken in %v, all deferred %v later", c.Messages, d.r.Fill.Round(time.Millisecond), d.r.Defer.Round(time.Millisecond))
	if err := d.run(ctx); err != nil {
		return d.r, err
	}
	return d.r, nil
}

// drainStall is for how long nothing may arrive until the holder is asked whether
// it has anything left: to ask costs processor time.
const drainStall = 10 * time.Second

// A drainage is one queue that is filled and delivered.
type drainage struct {
	h     holder
	cell  drainCell
	seed  uint64
	book  *ledger.Ledger
	stall time.Duration
	r     drainResult
}

// fill gives all messages to the holder, as fast as it takes them.
func (d *drainage) fill(ctx context.Context) error {
	d.r.Messages = d.cell.Messages
	letters := letter.New(letter.Options{Seed: d.seed, Domains: domains()[:1], Sizes: d.cell.Size})
	s, err := sender.New(sender.Options{
		Targets: d.h.targets(), Letter: letters.Letter, Count: d.cell.Messages,
		Sessions: fillSessions, PerConnection: fillPerConnection, Record: d.book, Seed: d.seed,
	})
	if err != nil {
		return err
	}
	begin := time.Now()
	err = s.Run(ctx)
	d.r.Fill = time.Since(begin)
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	stats := s.Stats()
	// Without a reply it may have two copies of a message.
	if err == nil && (stats.Letters != d.cell.Messages || stats.NoReply > 0) {
		err = fmt.Errorf("%d of %d messages were taken; %d refused, %d given up, %d without a reply",
			stats.Letters, d.cell.Messages, stats.Refused, stats.GivenUp, stats.NoReply)
	}
	if err != nil {
		return err
	}
	begin = time.Now()
	err = d.h.deferred(ctx, d.cell.Messages)
	d.r.Defer = time.Since(begin)
	return err
}

// run brings the primary up, has the queue delivered to it, and judges.
func (d *drainage) run(ctx context.Context) error {
	before, err := d.h.logIndex(ctx)
	if err != nil {
		return err
	}
	// What was written meanwhile would be written out while mail is delivered.
	unix.Sync()
	t := newTally(d.book, d.cell.Messages)
	p, err := openPrimary(d.h.nextHop(), d.cell.RoundTrip, t.arrival)
	if err != nil {
		return err
	}
	defer p.close()
	begin := time.Now()
	if err := d.h.flush(ctx); err != nil {
		return err
	}
	err = t.wait(ctx, d.stall, d.h.left)
	d.r.Ledger = d.book.Check()
	if errors.Is(err, errGone) {
		return errors.Join(err, d.r.fault())
	}
	if err != nil {
		return err
	}
	if err := d.emptied(ctx); err != nil {
		return err
	}
	after, err := d.h.logIndex(ctx)
	if err != nil {
		return err
	}
	p.close()
	stats := p.server.Stats()
	d.r.First, d.r.Elapsed = t.first.Sub(begin), t.last.Sub(begin)
	d.r.Connections, d.r.ConnectionsMost, d.r.Violations = stats.Connections, stats.ConnectionsMost, stats.Violations
	d.r.Entries = after - before
	d.r.Ledger = d.book.Check()
	return nil
}

// emptyLooks is how often in a row a queue must look empty: a message that moves
// in it may be missed once.
const emptyLooks = 2

// emptied waits until the holder has nothing left: copies that are under way are
// to be seen, and all outcomes are to be in its log.
func (d *drainage) emptied(ctx context.Context) error {
	for empty := 0; ; {
		n, err := d.h.left(ctx)
		if err != nil {
			return err
		}
		if empty++; n > 0 {
			empty = 0
		}
		if empty == emptyLooks {
			return nil
		}
		select {
		case <-time.After(emptyPoll):
		case <-ctx.Done():
			return fmt.Errorf("all has arrived, and %d messages are still queued: %w", n, context.Cause(ctx))
		}
	}
}

const emptyPoll = 200 * time.Millisecond

// A tally enters what arrives into a ledger, and notes when all of it was there.
type tally struct {
	book *ledger.Ledger
	want int
	all  chan struct{} // closed when so many different messages have arrived

	mu          sync.Mutex
	seen        map[string]struct{} // recipients: each message has one
	first, last time.Time           // of different ones
}

func newTally(book *ledger.Ledger, want int) *tally {
	return &tally{book: book, want: want, all: make(chan struct{}), seen: make(map[string]struct{}, want)}
}

// arrival is called before the 250.
func (t *tally) arrival(arrived ledger.Arrival) error {
	if err := t.book.Arrival(arrived); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, again := t.seen[arrived.Recipient]; again {
		return nil
	}
	t.seen[arrived.Recipient] = struct{}{}
	now := time.Now()
	if t.first.IsZero() {
		t.first = now
	}
	if len(t.seen) == t.want {
		t.last = now
		close(t.all)
	}
	return nil
}

func (t *tally) arrived() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.seen)
}

// errGone ends the wait for messages that do not come any more.
var errGone = errors.New("nobody has the others any more")

// wait waits until all has arrived. Where nothing comes for twice a stall, and
// nothing is left with which it could begin again, messages are lost.
func (t *tally) wait(ctx context.Context, stall time.Duration, left func(context.Context) (int, error)) error {
	tick := time.NewTicker(stall)
	defer tick.Stop()
	seen, idle := 0, 0
	for {
		select {
		case <-t.all:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%d of %d messages have arrived: %w", t.arrived(), t.want, context.Cause(ctx))
		case <-tick.C:
		}
		if now := t.arrived(); now != seen {
			seen, idle = now, 0
			continue
		}
		n, err := left(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d messages have arrived: %w", seen, t.want, err)
		}
		if idle++; n > 0 {
			idle = 0
		}
		if now := t.arrived(); idle > 1 && now == seen && now < t.want {
			return fmt.Errorf("%d of %d messages have arrived: %w", seen, t.want, errGone)
		}
	}
}
