package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// refusedEvery is how often a letter has recipients that the primary refuses for good.
const refusedEvery = 6

// tellAll is the policy of a domain whose senders are told what was refused.
const tellAll = "always"

// policies are what each relay domain does about what is refused for good: in one of
// them senders are told, in the others what the seed says.
func policies(seed uint64) map[string]string {
	all := map[string]string{}
	for i, domain := range domains() {
		all[domain] = tellAll
		if i > 0 {
			all[domain] = []string{"hold", tellAll, "aligned"}[(seed+uint64(i))%3]
		}
	}
	return all
}

// telling are the domains whose senders are told.
func telling(policies map[string]string) []string {
	var all []string
	for domain, policy := range policies {
		if policy == tellAll {
			all = append(all, domain)
		}
	}
	return all
}

func (c *cast) refused(r ledger.Refusal) error {
	return errors.Join(c.arrived.Refusal(r), c.book.Refusal(r))
}

// reportsUp brings the smarthost up, which notes whom a report tells of what.
func (c *cast) reportsUp() error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(addressReports, primaryPort).String())
	if err != nil {
		return err
	}
	c.reports = sink.New(sink.Options{
		Hostname: "smarthost.test", Message: c.told,
		Arrival: func(ledger.Arrival) error { return nil },
		Unread:  func(u ledger.Unread) { _ = c.arrived.Unread(u) },
	})
	c.reportServed = make(chan error, 1)
	go func() { c.reportServed <- c.reports.Serve(l) }()
	return nil
}

// told notes a report.
func (c *cast) told(m sink.Message) error {
	notices, err := m.Notices()
	if err != nil {
		c.diary.breach("L9", "%v", err)
	}
	var errs []error
	for _, n := range notices {
		errs = append(errs, c.arrived.Notice(n), c.book.Notice(n))
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
		i := slices.IndexFunc(r.cast.fleet.Nodes, func(n *fleet.Node) bool { return n.Name == s.Node })
		if _, err := r.cast.fleet.Holdfast(ctx, r.cast.fleet.Nodes[i], "domain", "resume", d.Name); err == nil {
			r.diary.say("%s had been stopped, and was resumed", d.Name)
		}
	}
}

// A desk is the operator's: it looks at what is held when the queue drains.
type desk struct {
	run      *run
	resting  map[string][]heldRecipient // by queue id: what stays held, as it should
	released int
}

// showWorkers is how many messages are looked at at a time.
const showWorkers = 4

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
		Messages []struct {
			QueueID string `json:"queue_id"`
		} `json:"messages"`
	}
	if err := json.Unmarshal(out, &list); err != nil {
		return 0, fmt.Errorf("queue list: %w", err)
	}
	if d.resting == nil {
		d.resting = map[string][]heldRecipient{}
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
