package main

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// readEvery is how often a maildir or log of a peer is read.
const readEvery = 300 * time.Millisecond

// A shelf is what a real primary wrote.
type shelf struct {
	box  mailserver.Maildir
	kept []mailserver.Kept
	// latest says when the last copy was written of those that look the same.
	latest       map[copyOf]time.Time
	disturbances []ledger.Span // when the primary was killed, stopped or slowed
}

// A copyOf names copies of a message that came within one second.
type copyOf struct {
	recipient, queueID string
	second             int64
}

func nameOf(a ledger.Arrival) copyOf { return copyOf{a.Recipient, a.QueueID, a.At.Unix()} }

// takeIn enters what is new in the ledgers. What counts is what the primary has on
// its disk, not what it said.
func (p *peer) takeIn() error {
	fresh, err := p.shelf.box.Read()
	for _, k := range fresh {
		p.diary.arrived()
		err = errors.Join(err, p.arrived.Arrival(k.Arrival), p.book.Arrival(k.Arrival))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shelf.kept = append(p.shelf.kept, fresh...)
	for _, k := range fresh {
		if name := nameOf(k.Arrival); k.Wrote.After(p.shelf.latest[name]) {
			p.shelf.latest[name] = k.Wrote
		}
	}
	return err
}

// disturb notes that the primary is killed, stopped or slowed, until the function is
// called that it returns.
func (p *peer) disturb() (end func()) {
	from := time.Now()
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.shelf.disturbances = append(p.shelf.disturbances, ledger.Span{From: from, To: time.Now()})
	}
}

// excuse notes the 250s that nobody may have read since the primary itself was
// disturbed: those of messages that it was given before the end of a disturbance and
// wrote after its beginning.
func (p *peer) excuse() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, k := range p.shelf.kept {
		// What the primary says has whole seconds.
		given, wrote := k.At.Add(-time.Second), k.Wrote.Add(time.Second)
		for _, span := range p.shelf.disturbances {
			if given.Before(span.To) && wrote.After(span.From) {
				errs = append(errs, p.arrived.Unread(ledger.Unread{Recipient: k.Recipient, QueueID: k.QueueID, Arrived: k.At, At: k.Wrote}))
				break
			}
		}
	}
	// What it had begun to write when it was killed it delivers once more.
	for name, at := range p.shelf.box.Unread {
		disturbed := slices.ContainsFunc(p.shelf.disturbances, func(s ledger.Span) bool {
			return at.Add(time.Second).After(s.From) && at.Add(-time.Second).Before(s.To)
		})
		if !disturbed {
			p.diary.breach("L2", "%v wrote what is no message, and was not disturbed: %s", p.is, name)
		}
	}
	return errors.Join(errs...)
}

// wrote is when a copy was with the primary for certain: at once for the one that is
// played here. A real one says in whole seconds when the message came, before its
// final dot, and writes it to the maildir after that.
func (p *peer) wrote(a ledger.Arrival) time.Time {
	if !p.primary() {
		return a.At
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if latest, ok := p.shelf.latest[nameOf(a)]; ok && latest.After(a.At) {
		return latest
	}
	return a.At
}

// watch reads what a peer wrote or logged, until ctx ends.
func (p *peer) watch(ctx context.Context) {
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := p.read(); err != nil {
			p.diary.breach("L1", "what %v wrote cannot be read: %v", p.is, err)
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// read reads what is new.
func (p *peer) read() error {
	p.reading.Lock()
	defer p.reading.Unlock()
	if p.primary() {
		return p.takeIn()
	}
	return p.follow()
}
