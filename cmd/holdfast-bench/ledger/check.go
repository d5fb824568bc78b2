package ledger

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"
)

// casesMax bounds the cases of each kind that a Report names one by one.
const casesMax = 20

// A Report is what Check found. All numbers count pairs of a message and a
// recipient, except Duplicates, which counts copies.
type Report struct {
	// Accepted pairs have at least one 250.
	Accepted int `json:"accepted"`
	// Delivered pairs are accepted and arrived intact, at least once.
	Delivered int `json:"delivered"`
	// Lost pairs are accepted and never arrived, and neither was their sender told
	// nor are they held. Of those that never arrived, Told and Held count the two.
	Lost int `json:"lost"`
	Told int `json:"told,omitempty"`
	Held int `json:"held,omitempty"`
	// Altered pairs, accepted or not, arrived at least once with other octets,
	// another reverse-path or another NOTIFY than they were sent with.
	Altered int `json:"altered"`
	// Duplicates counts the copies beyond the first of each pair.
	Duplicates int `json:"duplicates"`
	// Refused pairs arrived although every attempt was refused, or before any attempt had
	// come to its dot but those that were refused, or, where every attempt was answered,
	// under a queue id that no 250 named.
	Refused int `json:"delivered_though_refused"`
	// Unexpected arrivals, and refusals, have a recipient that was never sent to.
	Unexpected int `json:"unexpected"`
	// Unanswered pairs have no 250, but an attempt without a reply; of those,
	// UnansweredDelivered arrived. Either is allowed.
	Unanswered          int `json:"unanswered"`
	UnansweredDelivered int `json:"unanswered_delivered"`
	// NotAccepted pairs were refused at each attempt, and did not arrive.
	NotAccepted int `json:"not_accepted"`

	// Cases describes the first few of each fault, sorted.
	Cases []string `json:"cases,omitempty"`
}

// OK reports whether every law held.
func (r Report) OK() bool {
	return r.Lost == 0 && r.Altered == 0 && r.Refused == 0 && r.Unexpected == 0
}

// String is the line that every run ends with.
func (r Report) String() string {
	return fmt.Sprintf("accepted=%d delivered=%d lost=%d altered=%d duplicates=%d",
		r.Accepted, r.Delivered, r.Lost, r.Altered, r.Duplicates)
}

// Missing returns how many accepted pairs are still to end: those that have not
// arrived, but for what a primary refused, of which those whose senders are still to
// be told. It is cheap enough to be asked while mail drains.
func (l *Ledger) Missing() (missing, accepted int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r, p := range l.pairs {
		if len(p.ok) > 0 {
			accepted++
			if l.open(r, p) {
				missing++
			}
		}
	}
	return missing, accepted
}

// open reports whether an accepted pair is still to end. It needs mu.
func (l *Ledger) open(recipient string, p *pair) bool {
	if len(p.arrivals) > 0 {
		return false
	}
	return p.refusals == 0 || l.due(recipient, p) == "" && len(p.notices) == 0
}

// MissingRecipients returns the first few of them, sorted.
func (l *Ledger) MissingRecipients() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var missing []string
	for r, p := range l.pairs {
		if len(p.ok) > 0 && l.open(r, p) {
			missing = append(missing, r)
		}
	}
	sort.Strings(missing)
	return missing[:min(len(missing), casesMax)]
}

// Check judges all that was recorded so far.
func (l *Ledger) Check() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	var c checker
	for _, r := range slices.Sorted(maps.Keys(l.pairs)) {
		c.pair(r, l.pairs[r])
	}
	return c.report
}

type checker struct {
	report Report
	named  map[string]int // cases named so far, by kind
}

func (c *checker) fault(kind, recipient, detail string) {
	if c.named == nil {
		c.named = make(map[string]int)
	}
	if c.named[kind]++; c.named[kind] <= casesMax {
		c.report.Cases = append(c.report.Cases, strings.TrimSpace(kind+" "+recipient+" "+detail))
	}
}

func (c *checker) pair(recipient string, p *pair) {
	r := &c.report
	if !p.sent && len(p.ok)+p.fail+len(p.unknown) == 0 {
		if n := len(p.arrivals) + p.refusals; n > 0 {
			r.Unexpected += n
			c.fault("unexpected", recipient, fmt.Sprintf("%d times", n))
		}
		return
	}
	r.Duplicates += max(0, len(p.arrivals)-1)

	var intact, altered bool
	for _, a := range p.arrivals {
		if detail := p.difference(a); detail != "" {
			if !altered {
				c.fault("altered", recipient, detail)
			}
			altered = true
		} else {
			intact = true
		}
	}
	if altered {
		r.Altered++
	}
	if detail := p.refusedDelivery(); detail != "" {
		r.Refused++
		c.fault("delivered though refused", recipient, detail)
	}
	switch {
	case len(p.ok) > 0:
		r.Accepted++
		switch {
		case intact:
			r.Delivered++
		case len(p.arrivals) > 0:
		case p.failed() > 0:
			r.Told++
		case p.held > 0:
			r.Held++
		default:
			r.Lost++
			c.fault("lost", recipient, "queue id "+strings.Join(p.ok, " "))
		}
	case len(p.unknown) > 0:
		r.Unanswered++
		if len(p.arrivals) > 0 {
			r.UnansweredDelivered++
		}
	case len(p.arrivals) == 0:
		r.NotAccepted++
	}
}

// difference says how an arrival differs from what was sent, "" if it does not.
func (p *pair) difference(a Arrival) string {
	if !p.sent {
		return "arrived though no content was ever sent"
	}
	if a.ReversePath != p.reversePath {
		return fmt.Sprintf("sent from <%s>, arrived from <%s>", p.reversePath, a.ReversePath)
	}
	if a.Notify != nil && !sameNotify(*a.Notify, p.notify) {
		return fmt.Sprintf("sent with NOTIFY=%s, arrived with NOTIFY=%s", p.notify, *a.Notify)
	}
	if slices.Contains(a.Cuts, p.octets) {
		return ""
	}
	cuts := make([]string, len(a.Cuts))
	for i, cut := range a.Cuts {
		cuts[i] = cut.String()
	}
	return fmt.Sprintf("sent %s, arrived %s", p.octets, strings.Join(cuts, " or "))
}

// sameNotify compares lists of keywords, which have no order (RFC 3461 section 4.1).
func sameNotify(a, b string) bool {
	words := func(list string) []string {
		return slices.Sorted(slices.Values(strings.Split(strings.ToUpper(list), ",")))
	}
	return slices.Equal(words(a), words(b))
}

// refusedDelivery says what arrived that had been refused, "" if nothing did.
func (p *pair) refusedDelivery() string {
	if len(p.arrivals) == 0 {
		return ""
	}
	// A repeat of what was refused gets the id of what was taken all the same, and so
	// time alone tells the two apart.
	for _, a := range p.arrivals {
		if n := p.refusedBefore(a); n > 0 {
			return fmt.Sprintf("refused %d times, arrived at %s without having been sent again", n, a.At.Format("15:04:05.000"))
		}
	}
	if len(p.unknown) > 0 {
		return ""
	}
	if len(p.ok) == 0 {
		return fmt.Sprintf("refused %d times, arrived %d times", p.fail, len(p.arrivals))
	}
	// The queue id tells which attempt arrived. It can be told only where the 250 named
	// one.
	if slices.Contains(p.ok, "") {
		return ""
	}
	for _, a := range p.arrivals {
		if a.QueueID != "" && !slices.Contains(p.ok, a.QueueID) {
			return fmt.Sprintf("accepted as %s, arrived as %s", strings.Join(p.ok, " "), a.QueueID)
		}
	}
	return ""
}

// refusedBefore counts the dots before an arrival, if all of them were refused; where
// one was not, it is 0.
func (p *pair) refusedBefore(a Arrival) (n int) {
	at := a.At
	if at.Nanosecond() == 0 {
		at = at.Add(time.Second) // a date of RFC 5322: it may have been the end of that second
	}
	for _, d := range p.dots {
		switch {
		case a.At.IsZero() || d.at.IsZero():
			return 0 // who does not say when proves nothing
		case d.at.After(at):
		case d.refused:
			n++
		default:
			return 0
		}
	}
	return n
}
