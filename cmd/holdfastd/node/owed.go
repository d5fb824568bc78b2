package node

import (
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// owedAlarmAfter is how long a message may owe its sender a report before that is an
	// alarm. One that can be made is made within seconds.
	owedAlarmAfter = 15 * time.Minute
	// owedLooksMax bounds the messages that one look is about, the oldest first. Who owes
	// for long is among them sooner or later.
	owedLooksMax = 200
)

// An owed knows since when messages owe their senders reports, as far as this node has
// seen it. Every node looks, so that each says the same, whoever leads. The zero value is
// ready to use.
type owed struct {
	mu    sync.Mutex
	since map[mail.QueueID]debt // at most owedLooksMax
	all   int
}

// A debt is one message's.
type debt struct {
	since time.Time
	why   string // why the last report was not made; "" where this node has made none
}

// look takes what is owed now.
func (o *owed) look(view *fsm.State, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	old := o.since
	o.since, o.all = nil, view.OwingCount()
	for m := range view.Owing(0) {
		if len(o.since) == owedLooksMax {
			break
		}
		if o.since == nil {
			o.since = make(map[mail.QueueID]debt)
		}
		d, known := old[m.ID]
		if !known {
			d = debt{since: now}
		}
		o.since[m.ID] = d
	}
}

// failed notes why a report about a message was not made.
func (o *owed) failed(id mail.QueueID, why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if d, known := o.since[id]; known {
		d.why = why.Error()
		o.since[id] = d
	}
}

// alarms returns one where something has been owed for long, about what has been owed
// for the longest time.
func (o *owed) alarms(cluster string, now time.Time) []admin.Alarm {
	o.mu.Lock()
	defer o.mu.Unlock()
	var id mail.QueueID
	var oldest debt
	for i, d := range o.since {
		if oldest.since.IsZero() || d.since.Before(oldest.since) || d.since.Equal(oldest.since) && i.Compare(id) < 0 {
			id, oldest = i, d
		}
	}
	if oldest.since.IsZero() || now.Sub(oldest.since) < owedAlarmAfter {
		return nil
	}
	why := oldest.why
	if why == "" {
		why = "the leader's log says why"
	}
	return []admin.Alarm{{
		Name: "reports-owed", Scope: "cluster " + cluster, Since: oldest.since,
		Cause:  fmt.Sprintf("%d messages owe their senders reports, %s among them, and none could be made about it: %s. Their mail is kept until then.", o.all, id, why),
		Remedy: fmt.Sprintf(`look at "holdfast queue show %s"; see that a node that has its content runs, and that reports to other hosts leave the queue; or tell the sender yourself, and "holdfast queue remove" it`, id),
	}}
}
