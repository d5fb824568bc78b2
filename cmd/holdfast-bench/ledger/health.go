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

// A Harm says that a node was broken, cut off or being mended for a while. Nodes
// are numbered from 0.
type Harm struct {
	Node int
	Span Span
}

// Pauses returns the stretches longer than limit without a 250 in which one and
// the same majority of the nodes was unharmed, sorted. Mail must have been offered
// to every node all the while, but for stalls, in which nobody saw anything: they do
// not overlap, and do not count. accepted are the moments of 250s.
func Pauses(nodes int, whole Span, harms []Harm, stalls []Span, accepted []time.Time, limit time.Duration) []Span {
	accepted = slices.Clone(accepted)
	slices.SortFunc(accepted, time.Time.Compare)
	var pauses []Span
	for majority := uint(0); majority < 1<<nodes; majority++ {
		// A larger set is healthy only where smaller majorities are.
		if bits.OnesCount(majority) != nodes/2+1 {
			continue
		}
		for _, healthy := range unharmed(majority, whole, harms) {
			for _, p := range silences(healthy, stalls, accepted, limit) {
				if !slices.Contains(pauses, p) {
					pauses = append(pauses, p)
				}
			}
		}
	}
	slices.SortFunc(pauses, func(a, b Span) int { return a.From.Compare(b.From) })
	return pauses
}

// unharmed returns the stretches in which no node of the set was harmed.
func unharmed(set uint, whole Span, harms []Harm) []Span {
	mine := slices.DeleteFunc(slices.Clone(harms), func(h Harm) bool { return set>>h.Node&1 == 0 })
	slices.SortFunc(mine, func(a, b Harm) int { return a.Span.From.Compare(b.Span.From) })
	var spans []Span
	from := whole.From
	for _, h := range mine {
		if h.Span.From.After(from) {
			spans = append(spans, Span{from, h.Span.From})
		}
		if h.Span.To.After(from) {
			from = h.Span.To
		}
	}
	if whole.To.After(from) {
		spans = append(spans, Span{from, whole.To})
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
