package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Copies is what CheckCopies found.
type Copies struct {
	// Histogram counts pairs by how often they arrived; what arrived never is
	// at 0, whether it was accepted or not.
	Histogram []int `json:"histogram"`
	// Extra counts the copies beyond the first of each pair, as
	// Report.Duplicates does.
	Extra int `json:"extra"`
	// Bound is the greatest number of copies beyond the first that what
	// happened excuses, all pairs together.
	Bound int `json:"bound"`
	// Again counts the final dots by which a part of a message came again: copies under
	// one queue id, for the recipients of one domain, who get it in one transaction.
	// Whoever delivers knows of each of these that it may be another.
	Again int `json:"again"`
	// TooMany counts pairs with more copies than what happened to them excuses. Each is
	// a fault, even where the sum is below the bound. That they came under two queue ids
	// is none: a node that was cut off may commit what it closed without a reply after
	// the sender has read the 250 to his next attempt.
	TooMany int      `json:"too_many"`
	Cases   []string `json:"cases,omitempty"`
}

// CheckCopies judges second copies by the bound that Holdfast publishes: a pair
// may arrive once more for each of its dots to which the sender had no reply, for
// each of its arrivals whose 250 nobody may have read, and for each arrival at a
// node that was interrupted before it can be sure to have recorded the 250.
// interrupted says which those are.
func (l *Ledger) CheckCopies(interrupted func(Arrival) bool) Copies {
	l.mu.Lock()
	defer l.mu.Unlock()
	var c Copies
	most := map[[2]string]int{} // of each part of a message: how often a recipient got it
	for _, r := range slices.Sorted(maps.Keys(l.pairs)) {
		p := l.pairs[r]
		got := map[string]int{}
		for _, a := range p.arrivals {
			got[a.QueueID]++
		}
		delete(got, "") // it shows none
		for id, n := range got {
			part := [2]string{id, r[strings.LastIndexByte(r, '@')+1:]}
			most[part] = max(most[part], n)
		}
		for len(c.Histogram) <= len(p.arrivals) {
			c.Histogram = append(c.Histogram, 0)
		}
		c.Histogram[len(p.arrivals)]++
		cut := 0
		for _, a := range p.arrivals {
			if interrupted(a) {
				cut++
			}
		}
		extra, excused := max(0, len(p.arrivals)-1), len(p.unknown)+p.unread+cut
		c.Extra += extra
		c.Bound += excused
		if extra <= excused {
			continue
		}
		if c.TooMany++; c.TooMany <= casesMax {
			c.Cases = append(c.Cases, fmt.Sprintf("too many copies %s: %d beyond the first, excused %d (%d dots without a reply, %d 250s unread, %d interrupted): %s",
				r, extra, excused, len(p.unknown), p.unread, cut, p.story()))
		}
	}
	for _, n := range most {
		c.Again += n - 1
	}
	return c
}

// story tells when and from whom the copies of a pair came.
func (p *pair) story() string {
	var s string
	for i, a := range p.arrivals {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%s from %s as %s", a.At.Format("15:04:05.000"), a.Peer, a.QueueID)
	}
	return s
}
