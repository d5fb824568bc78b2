package tlspolicy

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Day counts the days of UTC since 1970.
type Day int32

// DayOf returns the day of a moment.
func DayOf(t time.Time) Day {
	const seconds = 24 * 60 * 60
	s := t.Unix()
	if s < 0 {
		s -= seconds - 1
	}
	return Day(s / seconds)
}

// Start returns the day's first moment.
func (d Day) Start() time.Time { return time.Unix(int64(d)*24*60*60, 0).UTC() }

// What Counts keeps. A next hop can have any number of names by MX, and what is
// beyond the limits is counted without the name of the hop, or of the domain.
const (
	CountsDaysMax     = 8
	countsDomainsMax  = 4096
	countsFailuresMax = 64
)

// Counts are the sessions of this node that RFC 8460 reports: per day, relay
// domain and source of the policy. They are safe for concurrent use.
type Counts struct {
	mu   sync.Mutex
	days map[Day]map[countsKey]*countsCell
}

type countsKey struct {
	domain mail.Domain
	source Source
}

type countsCell struct {
	succeeded uint64
	failed    map[FailureKey]uint64
}

// A FailureKey is what failures are told apart by.
type FailureKey struct {
	Result Result
	Host   string // "" for those that were not told apart any more
}

// A FailureCount is how often one failure was seen.
type FailureCount struct {
	FailureKey
	Sessions uint64
}

// A DomainCount is one policy's part of a report.
type DomainCount struct {
	Domain    mail.Domain
	Source    Source
	Succeeded uint64         // total-successful-session-count
	Failed    uint64         // total-failure-session-count
	Failures  []FailureCount // sorted; their sum is Failed
}

// Succeed counts a session that was as its policy wants it.
func (c *Counts) Succeed(day Day, domain mail.Domain, source Source) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cell(day, domain, source).succeeded++
}

// Fail counts a session that was not, whether it was used or not.
func (c *Counts) Fail(day Day, domain mail.Domain, f *Failure) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cell := c.cell(day, domain, f.Source)
	key := FailureKey{f.Result, f.Host}
	if _, ok := cell.failed[key]; !ok && len(cell.failed) >= countsFailuresMax {
		key.Host = ""
	}
	cell.failed[key]++
}

// cell is where to count. The caller holds mu.
func (c *Counts) cell(day Day, domain mail.Domain, source Source) *countsCell {
	if c.days == nil {
		c.days = make(map[Day]map[countsKey]*countsCell)
	}
	domains := c.days[day]
	if domains == nil {
		domains = make(map[countsKey]*countsCell)
		c.days[day] = domains
		for len(c.days) > CountsDaysMax {
			oldest := day
			for d := range c.days {
				oldest = min(oldest, d)
			}
			delete(c.days, oldest)
		}
	}
	key := countsKey{domain, source}
	if domains[key] == nil && len(domains) >= countsDomainsMax {
		key.domain = ""
	}
	if domains[key] == nil {
		domains[key] = &countsCell{failed: make(map[FailureKey]uint64)}
	}
	return domains[key]
}

// Days returns the days that something is known of, the oldest first.
func (c *Counts) Days() []Day {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Day, 0, len(c.days))
	for d := range c.days {
		out = append(out, d)
	}
	slices.Sort(out)
	return out
}

// Read returns what was counted on a day, sorted by domain and source.
func (c *Counts) Read(day Day) []DomainCount {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]DomainCount, 0, len(c.days[day]))
	for key, cell := range c.days[day] {
		n := DomainCount{Domain: key.domain, Source: key.source, Succeeded: cell.succeeded}
		for f, sessions := range cell.failed {
			n.Failures = append(n.Failures, FailureCount{f, sessions})
			n.Failed += sessions
		}
		slices.SortFunc(n.Failures, func(a, b FailureCount) int {
			return cmp.Or(cmp.Compare(a.Result, b.Result), cmp.Compare(a.Host, b.Host))
		})
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b DomainCount) int {
		return cmp.Or(cmp.Compare(a.Domain, b.Domain), cmp.Compare(a.Source, b.Source))
	})
	return out
}
