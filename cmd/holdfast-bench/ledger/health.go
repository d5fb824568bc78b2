package ledger

import (
	"math/bits"
	"slices"
	"time"
)

// A Span is a stretch of time.
type Span struct{ From, To time.Time }

// overlap returns for how long both last.
func (s Span) overlap(o Span) time.Duration {
	if o.From.After(s.From) {
		s.From = o.From
	}
	if o.To.Before(s.To) {
		s.To = o.To
	}
	return max(0, s.To.Sub(s.From))
}

// An Outage says that a node was broken, cut off or being mended for a while. Nodes
// are numbered from 0.
type Outage struct {
	Node int
	Span Span
}

// Pauses returns the stretches longer than limit without a 250 in which one and
// the same majority of the nodes was healthy, without an outage of any of them, sorted.
// offered is when mail was offered to every node, but for stalls, in which nobody saw
// anything: they do not overlap, and do not count. acks are the moments of 250s.
func Pauses(nodes int, offered Span, outages []Outage, stalls []Span, acks []time.Time, limit time.Duration) []Span {
	acks = slices.Clone(acks)
	slices.SortFunc(acks, time.Time.Compare)
	var pauses []Span
	for majority := uint(0); majority < 1<<nodes; majority++ {
		// A larger set is healthy only where smaller majorities are.
		if bits.OnesCount(majority) != nodes/2+1 {
			continue
		}
		for _, healthy := range healthySpans(majority, offered, outages) {
			for _, p := range silences(healthy, stalls, acks, limit) {
				if !slices.Contains(pauses, p) {
					pauses = append(pauses, p)
				}
			}
		}
	}
	slices.SortFunc(pauses, func(a, b Span) int { return a.From.Compare(b.From) })
	return pauses
}

// healthySpans returns the stretches of a span in which no node of the set had an
// outage.
func healthySpans(set uint, within Span, outages []Outage) []Span {
	mine := slices.DeleteFunc(slices.Clone(outages), func(o Outage) bool { return set>>o.Node&1 == 0 })
	slices.SortFunc(mine, func(a, b Outage) int { return a.Span.From.Compare(b.Span.From) })
	var spans []Span
	from := within.From
	for _, o := range mine {
		if o.Span.From.After(from) {
			spans = append(spans, Span{from, o.Span.From})
		}
		if o.Span.To.After(from) {
			from = o.Span.To
		}
	}
	if within.To.After(from) {
		spans = append(spans, Span{from, within.To})
	}
	return spans
}

// silences returns the stretches of a span longer than limit without a moment, beside
// stalls. moments are sorted.
func silences(s Span, stalls []Span, moments []time.Time, limit time.Duration) []Span {
	var found []Span
	last := s.From
	note := func(to time.Time) {
		awake := to.Sub(last)
		for _, stall := range stalls {
			awake -= Span{last, to}.overlap(stall)
		}
		if awake > limit {
			found = append(found, Span{last, to})
		}
		last = to
	}
	for _, m := range moments {
		if m.After(s.From) && m.Before(s.To) {
			note(m)
		}
	}
	note(s.To)
	return found
}
