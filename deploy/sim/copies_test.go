package sim

import (
	"fmt"
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
	extra int      // copies of one accepted message beyond its first
	early []string // copies that came within doubt_wait of the one before
}

type copyKey struct{ recipient, queueID string }

func (c *copies) see(a ledger.Arrival) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		c.last = map[copyKey]time.Time{}
	}
	key := copyKey{a.Recipient, a.QueueID}
	now := time.Now()
	if before, seen := c.last[key]; seen {
		c.extra++
		wait := time.Duration(fsm.DefaultSettings().DoubtWait) * time.Millisecond
		if now.Sub(before) < wait {
			c.early = append(c.early, fmt.Sprintf("%s (%s) %s after the copy before", a.Recipient, a.QueueID, now.Sub(before)))
		}
	}
	c.last[key] = now
}

// check compares with what the queue counted. A doubt concerns the recipients of
// one domain in one message; letters have at most recipientsPerDomainMax.
func (c *copies) check(t *testing.T, totals fsm.Totals) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.early {
		t.Errorf("a second dot within doubt_wait: %s", e)
	}
	doubts := totals.DoubtsReported + totals.DoubtsExpired + totals.DeliveredLate
	if uint64(c.extra) > doubts*recipientsPerDomainMax {
		t.Errorf("%d copies too many, and only %d doubts were counted", c.extra, doubts)
	}
}

// recipientsPerDomainMax is the most recipients of one domain that a letter of
// the simulated sender has.
const recipientsPerDomainMax = 5
