package sim

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/fsm"
)

// Copies watches what reaches the primary for breaches of what Holdfast says of
// second copies: a message whose dot may have been taken is left alone for
// doubt_wait, and each copy too many belongs to a doubt that was counted.
type copies struct {
	mu    sync.Mutex
	last  map[copyKey]time.Time
	count map[copyKey]uint64
	early []string // copies that came within doubt_wait of the one before
}

type copyKey struct{ recipient, queueID string }

// A part is what one dot hands over of a message: its recipients of one domain.
type part struct{ queueID, domain string }

func partOf(k copyKey) part {
	return part{k.queueID, strings.ToLower(k.recipient[strings.LastIndexByte(k.recipient, '@')+1:])}
}

// extra counts the dots by which parts of messages came again.
func (c *copies) extra() (n uint64) {
	most := map[part]uint64{}
	for key, count := range c.count {
		most[partOf(key)] = max(most[partOf(key)], count)
	}
	for _, count := range most {
		n += count - 1
	}
	return n
}

func (c *copies) see(a ledger.Arrival) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		c.last, c.count = map[copyKey]time.Time{}, map[copyKey]uint64{}
	}
	key := copyKey{a.Recipient, a.QueueID}
	now := time.Now()
	if before, seen := c.last[key]; seen {
		wait := time.Duration(fsm.DefaultSettings().DoubtWait) * time.Millisecond
		if now.Sub(before) < wait {
			c.early = append(c.early, fmt.Sprintf("%s (%s) %s after the copy before", a.Recipient, a.QueueID, now.Sub(before)))
		}
	}
	c.last[key] = now
	c.count[key]++
}

// check compares with what the queue counted: each part that came again was in doubt.
func (c *copies) check(t *testing.T, totals fsm.Totals) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.early {
		t.Errorf("a second dot within doubt_wait: %s", e)
	}
	if extra, doubts := c.extra(), totals.DoubtsReported+totals.DoubtsExpired; extra > doubts {
		t.Errorf("%d copies too many, and only %d doubts were counted", extra, doubts)
	}
}
