package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// An entry is something that happened, or a stretch of something.
type entry struct {
	what     string
	from, to time.Time // to is zero while it lasts
}

// A diary is what was done to whom, and what was found. It is safe for concurrent
// use.
type diary struct {
	mu       sync.Mutex
	begin    time.Time
	out      io.Writer
	faults   []*entry
	outages  []ledger.Outage       // those that are over
	ailing   map[int]ailment       // nodes whose outage lasts
	unheard  map[int]time.Time     // nodes that clients cannot talk to, since when
	silences map[int][]ledger.Span // of each node, in which they could not, and can again
	stalls   []ledger.Span         // in which this process stood still
	acks     []time.Time           // 250s, one for each recipient
	arrivals []time.Time           // at the primary
	leads    []entry               // who led, from when
	broken   []string              // promises, in the order in which that was seen
}

// An ailment is an outage that lasts: since when, and how many things are its causes.
type ailment struct {
	since  time.Time
	causes int
}

func newDiary(out io.Writer, begin time.Time) *diary {
	return &diary{begin: begin, out: out, ailing: map[int]ailment{}, unheard: map[int]time.Time{}, silences: map[int][]ledger.Span{}}
}

// say prints a line of progress.
func (d *diary) say(format string, args ...any) {
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.begin).Seconds(), fmt.Sprintf(format, args...))
}

// breach notes a promise that was broken.
func (d *diary) breach(law, format string, args ...any) {
	text := law + ": " + fmt.Sprintf(format, args...)
	d.say("BROKEN %s", text)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = append(d.broken, text)
}

func (d *diary) breaches() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.broken...)
}

// fault notes that a fault begins, and returns what notes its end.
func (d *diary) fault(what string) func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := &entry{what: what, from: time.Now()}
	d.faults = append(d.faults, e)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		e.to = time.Now()
	}
}

// fail notes a cause for which nodes have an outage since then.
func (d *diary) fail(since time.Time, nodes ...int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		a, ok := d.ailing[n]
		if !ok || since.Before(a.since) {
			a.since = since
		}
		a.causes++
		d.ailing[n] = a
	}
}

// heal notes that a cause is gone. With the last one their outage is over.
func (d *diary) heal(nodes ...int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		a, ok := d.ailing[n]
		if a.causes--; ok && a.causes == 0 {
			d.outages = append(d.outages, ledger.Outage{Node: n, Span: ledger.Span{From: a.since, To: time.Now()}})
			delete(d.ailing, n)
		} else if ok {
			d.ailing[n] = a
		}
	}
}

// allOutages returns the outages so far, those that last included.
func (d *diary) allOutages() []ledger.Outage {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := append([]ledger.Outage(nil), d.outages...)
	for n, a := range d.ailing {
		all = append(all, ledger.Outage{Node: n, Span: ledger.Span{From: a.since, To: time.Now()}})
	}
	return all
}

// silence notes that clients cannot talk to nodes since a time, hear that they can
// again.
func (d *diary) silence(since time.Time, nodes ...int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		if _, ok := d.unheard[n]; !ok {
			d.unheard[n] = since
		}
	}
}

func (d *diary) hear(nodes ...int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range nodes {
		if since, ok := d.unheard[n]; ok {
			d.silences[n] = append(d.silences[n], ledger.Span{From: since, To: time.Now()})
			delete(d.unheard, n)
		}
	}
}

// stalled notes that this process stood still.
func (d *diary) stalled(s ledger.Span) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stalls = append(d.stalls, s)
}

// allStalls returns when this process stood still.
func (d *diary) allStalls() []ledger.Span {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.stalls)
}

// away returns when a node and the clients could not talk to each other, since
// something was done to the node or its ways, or since this process stood still, in
// which the clients are.
func (d *diary) away(node int) []ledger.Span {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := slices.Concat(d.stalls, d.silences[node])
	if since, ok := d.unheard[node]; ok {
		all = append(all, ledger.Span{From: since, To: time.Now()})
	}
	return all
}

// acked notes a 250 to so many recipients of a message.
func (d *diary) acked(recipients int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for range recipients {
		d.acks = append(d.acks, time.Now())
	}
}

// allAcks returns when 250s were given.
func (d *diary) allAcks() []time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.acks)
}

// arrived notes that the primary took something for a recipient.
func (d *diary) arrived() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrivals = append(d.arrivals, time.Now())
}

// leader notes who leads.
func (d *diary) leader(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if n := len(d.leads); n > 0 {
		if d.leads[n-1].what == name {
			d.leads[n-1].to = now
			return
		}
		d.leads[n-1].to = now
	}
	d.leads = append(d.leads, entry{what: name, from: now, to: now})
}

// led reports whether a node led, or nobody did, at a time between the two, as far
// as was seen.
func (d *diary) led(name string, from, to time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.leads {
		if (l.what == name || l.what == "") && l.from.Before(to) && l.to.After(from) {
			return true
		}
	}
	return false
}

const (
	// mindEvery is how often this process looks whether it still runs.
	mindEvery = 100 * time.Millisecond
	// stallMin is the shortest stretch that is noted.
	stallMin = 400 * time.Millisecond
)

// mind notes when this process stood still, until ctx ends: its host was busy, or it
// was stopped.
func (d *diary) mind(ctx context.Context) {
	tick := time.NewTicker(mindEvery)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if now.Sub(last) >= stallMin {
			d.stalled(ledger.Span{From: last, To: now})
		}
		last = now
	}
}
