package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/fsm"
)

// A desk is the operator's: it looks at what is held when the queue drains.
type desk struct {
	run      *run
	resting  map[string][]heldRecipient // by queue id: what stays held, as it should
	released int
}

// showWorkers is how many messages are looked at at a time.
const showWorkers = 4

// A listedMessage is what "holdfast queue list" says of one.
type listedMessage struct {
	QueueID string `json:"queue_id"`
}

// A heldMessage is what "holdfast queue show" says of one.
type heldMessage struct {
	Recipients []heldRecipient `json:"recipients"`
}

type heldRecipient struct {
	Path   string `json:"path"`
	State  string `json:"state"`
	Reply  string `json:"reply"`
	Reason string `json:"reason"`
	Report string `json:"report"` // that its sender is still to get
}

// attend looks at all held messages, and releases those that were refused while the
// primary had not taken anything since it came back: nobody is told of these, since it
// may have been a primary without mailboxes (fsm's guard). It returns how many have to
// go on: those released, those whose senders are still to be told, and those that
// should not be held at all.
func (d *desk) attend(ctx context.Context) (busy int, err error) {
	c := d.run.cast
	at := c.leader(ctx)
	if at < 0 {
		return 0, errors.New("nobody leads")
	}
	out, err := c.fleet.Holdfast(ctx, c.fleet.Nodes[at], "queue", "list", "--state", "held", "--limit", "100000", "-o", "json")
	if err != nil {
		return 0, err
	}
	var list struct {
		Messages []listedMessage `json:"messages"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return 0, fmt.Errorf("queue list: %w", err)
	}
	if d.resting == nil {
		d.resting = map[string][]heldRecipient{}
	}
	for id := range d.resting {
		if !slices.ContainsFunc(list.Messages, func(m listedMessage) bool { return m.QueueID == id }) {
			delete(d.resting, id) // it is held no more
		}
	}
	looks := make(chan string)
	var mu sync.Mutex
	var working sync.WaitGroup
	for range showWorkers {
		working.Go(func() {
			for id := range looks {
				rests, released, why := d.look(ctx, c.fleet.Nodes[at], id)
				mu.Lock()
				if rests == nil {
					busy++
				} else {
					d.resting[id] = rests
				}
				if released {
					d.released++
				}
				err = errors.Join(err, why)
				mu.Unlock()
			}
		})
	}
	for _, m := range list.Messages {
		mu.Lock()
		_, known := d.resting[m.QueueID]
		mu.Unlock()
		if !known {
			looks <- m.QueueID
		}
	}
	close(looks)
	working.Wait()
	return busy, err
}

// look looks at one message. It returns what of it is held and stays so, nil if
// something of it has to go on, and whether it was released.
func (d *desk) look(ctx context.Context, n *fleet.Node, id string) (rests []heldRecipient, released bool, err error) {
	c := d.run.cast
	out, err := c.fleet.Holdfast(ctx, n, "queue", "show", id, "-o", "json")
	if err != nil {
		return nil, false, err
	}
	var m heldMessage
	if err := json.Unmarshal(out, &m); err != nil {
		return nil, false, fmt.Errorf("queue show: %w", err)
	}
	for i, r := range m.Recipients {
		m.Recipients[i].Path = strings.Trim(r.Path, "<>")
	}
	rests = []heldRecipient{}
	wanted, owing := false, false
	for _, r := range m.Recipients {
		if r.State != "held" {
			continue
		}
		owing = owing || r.Report != ""
		switch {
		case d.run.book.Refused(r.Path) && !d.run.book.Due(r.Path):
			rests = append(rests, r)
		default:
			wanted = true
		}
	}
	if !wanted {
		return rests, false, nil
	}
	if owing {
		return nil, false, nil
	}
	for _, r := range m.Recipients {
		if r.State == "held" && !d.run.book.Refused(r.Path) {
			return nil, false, fmt.Errorf("%s: <%s> is held, and nobody refused it: %s %s", id, r.Path, r.Reply, r.Reason)
		}
		if r.State == "held" && d.run.book.Due(r.Path) && r.Reason != fsm.ReasonUnproven {
			return nil, false, fmt.Errorf("%s: <%s> is held, and its sender is owed no report: %s %s", id, r.Path, r.Reply, r.Reason)
		}
	}
	if _, err := c.fleet.Holdfast(ctx, n, "queue", "release", id); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// record notes what is held at the end.
func (d *desk) record() error {
	var errs []error
	for id, all := range d.resting {
		for _, r := range all {
			errs = append(errs, d.run.arrived.Held(ledger.Held{Recipient: r.Path, QueueID: id, Reason: r.Reason, At: time.Now()}))
		}
	}
	return errors.Join(errs...)
}

// resume has domains go on that refused too much of what they took before, as an
// operator would.
func (r *run) resume(ctx context.Context, s fleet.Status) {
	for _, d := range s.Domains {
		if !d.Stopped {
			continue
		}
		if n := r.book.RefusedOf(d.Name); n < fsm.GuardSpentMax && !r.cast.peer.primary() {
			r.diary.breach("L8", "%s was stopped, and the primary has refused it %d recipients in all", d.Name, n)
		}
		i := slices.IndexFunc(r.cast.fleet.Nodes, func(n *fleet.Node) bool { return n.Name == s.Node })
		if _, err := r.cast.fleet.Holdfast(ctx, r.cast.fleet.Nodes[i], "domain", "resume", d.Name); err == nil {
			r.diary.say("%s had been stopped, and was resumed", d.Name)
		}
	}
}

const (
	// drainTime is how long mail may take to arrive when all is mended. A primary that is
	// up again is found within 30 s, and what is in doubt waits for doubtTime and a tick of
	// the log, which is a minute.
	drainTime = 150 * time.Second
	// reportsTime is that of reports. One whose content a node could not read is tried again
	// after 5 minutes and up to a quarter more, and a tick.
	reportsTime = 8 * time.Minute
)

// drain waits until everything has arrived and the queue is empty everywhere.
func (r *run) drain(ctx context.Context) error {
	begin := time.Now()
	desk := &desk{run: r}
	var emptySince time.Time
	var last error // before the time was over
	lost := errors.New("no node has it any more")
	late := fmt.Errorf("mail waits after %v", drainTime)
	draining, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	err := r.cast.await(draining, reportsTime, func(ctx context.Context) (why error) {
		defer func() {
			if ctx.Err() == nil {
				last = why
			}
		}()
		all := r.cast.statuses(ctx)
		if len(all) < r.o.nodes {
			return fmt.Errorf("%d of %d nodes answer", len(all), r.o.nodes)
		}
		missing, accepted := r.book.Missing()
		for i, s := range all {
			if !s.Queue.Idle() {
				emptySince = time.Time{}
				if time.Since(begin) > drainTime && !s.OnlyReports() {
					cancel(late)
				}
				return fmt.Errorf("%s: %v; %d of %d have not arrived", r.cast.fleet.Nodes[i].Name, s.Queue, missing, accepted)
			}
		}
		if busy, err := desk.attend(ctx); err != nil || busy > 0 {
			emptySince = time.Time{}
			return errors.Join(err, fmt.Errorf("%d held messages that should not rest; %d of %d have not arrived", busy, missing, accepted))
		}
		if missing == 0 {
			return nil
		}
		if emptySince.IsZero() {
			emptySince = time.Now()
		}
		if time.Since(emptySince) > 15*time.Second {
			cancel(lost)
		}
		return fmt.Errorf("%d of %d have not arrived", missing, accepted)
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, lost):
		r.diary.say("the queue is empty, and mail is missing: %v", err)
	case err != nil:
		r.diary.breach("L8", "the queue does not drain: %v; last: %v", err, last)
	default:
		r.diary.say("the queue has drained, after %.1f s", time.Since(begin).Seconds())
	}
	if err != nil {
		// What is held all the same is not lost.
		if _, err := desk.attend(ctx); err != nil {
			r.diary.say("what is held at the end was not looked at: %v", err)
		}
	}
	r.released = desk.released
	return desk.record()
}
