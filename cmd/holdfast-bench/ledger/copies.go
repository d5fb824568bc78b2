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
	// AgainAs are the queue ids of these, sorted.
	AgainAs []string `json:"again_as,omitempty"`
	// TooMany counts pairs with more copies than what happened to them excuses. Each is
	// a fault, even where the sum is below the bound. That they came under two queue ids
	// is none: a node that was cut off may commit what it closed without a reply after
	// the sender has read the 250 to his next attempt.
	TooMany int      `json:"too_many"`
	Cases   []string `json:"cases,omitempty"`
}

// Interrupted reports whether the node that delivered a copy was kept from having it
// recorded in time, so that another may follow. Behind the last copy none did: of that
// one it reports whether the node was kept from delivering it in time, so that another
// was sent meanwhile.
type Interrupted func(a Arrival, last bool) bool

// CheckCopies judges second copies by the bound that Holdfast publishes. A letter may
// become another message, under another queue id, for each of its dots to which the
// sender had no reply. A message may arrive once more for each of its copies whose 250
// nobody may have read, and for each that a node delivered which was interrupted.
func (l *Ledger) CheckCopies(interrupted Interrupted) Copies {
	l.mu.Lock()
	defer l.mu.Unlock()
	var c Copies
	most := map[[2]string]int{} // of each part of a message: how often a recipient got it
	for _, r := range slices.Sorted(maps.Keys(l.pairs)) {
		p := l.pairs[r]
		for len(c.Histogram) <= len(p.arrivals) {
			c.Histogram = append(c.Histogram, 0)
		}
		c.Histogram[len(p.arrivals)]++
		e := excuse(p.arrivals, p.unread, len(p.unknown), interrupted)
		for id, n := range e.copies {
			part := [2]string{id, r[strings.LastIndexByte(r, '@')+1:]}
			if id != "" { // it shows none
				most[part] = max(most[part], n)
			}
		}
		c.Extra += max(0, len(p.arrivals)-1)
		c.Bound += e.bound()
		if !e.tooMany {
			continue
		}
		if c.TooMany++; c.TooMany <= casesMax {
			c.Cases = append(c.Cases, fmt.Sprintf("too many copies %s: %v: %s", r, e, p.story()))
		}
	}
	for part, n := range most {
		c.Again += n - 1
		if n > 1 {
			c.AgainAs = append(c.AgainAs, part[0])
		}
	}
	slices.Sort(c.AgainAs)
	c.AgainAs = slices.Compact(c.AgainAs)
	return c
}

// Excuses are what may have caused the copies of one thing.
type excuses struct {
	copies               map[string]int // by queue id
	unknown, unread, cut int
	tooMany              bool
}

func (e excuses) bound() int { return e.unknown + e.unread + e.cut }

func (e excuses) String() string {
	return fmt.Sprintf("%d under %d ids, excused %d (%d dots without a reply, %d 250s unread, %d interrupted)",
		sum(e.copies), len(e.copies), e.bound(), e.unknown, e.unread, e.cut)
}

func sum(all map[string]int) (n int) {
	for _, one := range all {
		n += one
	}
	return n
}

// excuse judges copies: of those under one queue id, each but the last may have one cause
// of its own, and the last may be late. unknown is how many dots the sender had no reply
// to.
func excuse(arrivals []Arrival, unread []Unread, unknown int, interrupted Interrupted) excuses {
	e := excuses{copies: map[string]int{}, unknown: unknown}
	byID := map[string][]Arrival{}
	for _, a := range arrivals {
		byID[a.QueueID] = append(byID[a.QueueID], a)
		e.copies[a.QueueID]++
	}
	e.tooMany = len(byID)-1 > unknown
	for id, copies := range byID {
		slices.SortStableFunc(copies, func(a, b Arrival) int { return a.At.Compare(b.At) })
		causes := 0
		for i, a := range copies {
			last := i == len(copies)-1
			switch {
			case interrupted(a, last):
				e.cut++
			case !last && slices.ContainsFunc(unread, func(u Unread) bool {
				return u.QueueID == id && (u.Arrived.IsZero() || u.Arrived.Equal(a.At))
			}):
				e.unread++
			default:
				continue
			}
			causes++
		}
		e.tooMany = e.tooMany || len(copies)-1 > causes
	}
	return e
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
