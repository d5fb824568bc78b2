package fsmtest

import (
	"slices"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

type partKey struct {
	id     mail.QueueID
	domain mail.Domain
}

// A grant is a lease as its holder sees it.
type grant struct {
	token    fsm.Token
	holder   fsm.NodeName
	domain   mail.Domain
	renewals []fsm.Index // committed, the token first
	messages map[mail.QueueID]*task
	ids      []mail.QueueID // keys of messages, in order
}

// A task is one message in a lease: what the holder knows and did.
type task struct {
	right    bool // it may act: the lease, as far as an honest leader knows, stands
	begun    bool // a committed renewal named it
	dot      bool // it sent the final dot
	reported *fsm.MessageOutcomes
}

// pull is a grant, mostly of what is due, at times of anything: plans are made
// of what was.
func (h *History) pull() error {
	g := fsm.GrantLeases{Holder: pick(h, nodes), Domain: pick(h, destinations)}
	from := slices.Collect(h.state.Due(g.Domain))
	if h.source.Choose("stale plan", 3) == 0 {
		from = h.known()
	}
	for range min(len(from), 1+h.source.Choose("lease", 4)) {
		g.Messages = append(g.Messages, pick(h, from))
	}
	return h.grant(g)
}

func (h *History) grant(g fsm.GrantLeases) error {
	r, err := h.apply(g)
	if err != nil || len(r.Messages) == 0 {
		return err
	}
	held := &grant{
		token: fsm.Token(h.index), holder: g.Holder, domain: g.Domain,
		renewals: []fsm.Index{h.index}, messages: make(map[mail.QueueID]*task),
	}
	for _, id := range r.Messages {
		held.ids = append(held.ids, id)
		held.messages[id] = &task{right: true}
	}
	h.grants = append(h.grants, held)
	return h.look()
}

// someGrant prefers the newest, whose leases mostly stand.
func (h *History) someGrant() *grant {
	if len(h.grants) == 0 {
		return nil
	}
	from := h.grants
	if h.source.Choose("recent", 4) > 0 {
		from = from[max(0, len(from)-3):]
	}
	return pick(h, from)
}

func (h *History) renew() error {
	g := h.someGrant()
	if g == nil {
		return nil
	}
	var begun []mail.QueueID
	for _, id := range g.ids {
		if h.source.Choose("begin", 2) == 1 {
			begun = append(begun, id)
		}
	}
	return h.renewAs(g, begun)
}

func (h *History) renewAs(g *grant, begun []mail.QueueID) error {
	r := fsm.RenewLeases{
		Holder: g.holder, Token: g.token, Request: fsm.RequestID{Boot: 1, Number: uint64(h.index)}, Begun: begun,
	}
	res, err := h.apply(r)
	if err != nil || res.Verdict != fsm.Done {
		return err
	}
	if l, ok := h.state.Lease(g.token); ok && l.Renewal == h.index {
		g.renewals = append(g.renewals, h.index)
	}
	for _, id := range r.Begun {
		if !slices.Contains(res.Messages, id) {
			g.messages[id].begun = true
		}
	}
	return nil
}

// dot is a holder that sends the final dot. No command: the primary has it.
func (h *History) dot() error {
	g := h.someGrant()
	if g == nil {
		return nil
	}
	h.sendDot(g, pick(h, g.ids))
	return h.look()
}

func (h *History) sendDot(g *grant, id mail.QueueID) {
	t := g.messages[id]
	if !t.right || !t.begun || t.dot || t.reported != nil {
		return
	}
	t.dot = true
	h.dots[partKey{id, g.domain}]++
	h.say("   dot of %s under %d", id, g.token)
}

// attempt is a holder that goes straight for the dot of one message.
func (h *History) attempt() error {
	d := pick(h, []mail.Domain{relayDomains[0], relayDomains[1], destinations[len(destinations)-1]})
	due := slices.Collect(h.state.Due(d))
	if len(due) == 0 {
		return nil
	}
	id := pick(h, due)
	granted := len(h.grants)
	if err := h.grant(fsm.GrantLeases{Holder: pick(h, nodes), Domain: d, Messages: []mail.QueueID{id}}); err != nil {
		return err
	}
	if len(h.grants) == granted {
		return nil // the next hop is guarded, or stopped
	}
	g := h.grants[len(h.grants)-1]
	if err := h.renewAs(g, []mail.QueueID{id}); err != nil {
		return err
	}
	h.sendDot(g, id)
	return h.look()
}

// report is what a holder says of one message, once and for all. It may come
// long after the lease.
func (h *History) report() error {
	g := h.someGrant()
	if g == nil {
		return nil
	}
	id := pick(h, g.ids)
	t := g.messages[id]
	if t.reported != nil {
		return nil
	}
	o := fsm.MessageOutcomes{ID: id}
	for _, k := range h.positions(id, g.domain) {
		q := fsm.RecipientOutcome{Recipient: k}
		switch {
		case t.dot && h.source.Choose("reply read", 3) > 0:
			q.Outcome, q.Tried, q.Reply = fsm.Delivered, true, mail.Reply{Code: 250, Text: "taken"}
			q.Relayed = h.source.Choose("relayed", 2) == 1
		case t.dot:
			q.Outcome, q.Tried = fsm.InDoubt, true
		default:
			switch h.source.Choose("outcome", 4) {
			case 0:
				q.Outcome, q.Tried, q.Reply = fsm.Deferred, true, mail.Reply{Code: 451, Enhanced: mail.EnhancedCode{4, 3, 0}, Text: "later"}
			case 1:
				q.Outcome, q.Tried, q.Reply = fsm.Failed, true, mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{5, 1, 1}, Text: "no"}
			case 2:
				q.Outcome = fsm.Deferred
			default:
				continue // not listed
			}
		}
		o.Recipients = append(o.Recipients, q)
	}
	t.reported = &o
	return h.sendReport(g, t)
}

// reportAgain is a holder that got no answer.
func (h *History) reportAgain() error {
	if g := h.someGrant(); g != nil {
		if t := g.messages[pick(h, g.ids)]; t.reported != nil {
			return h.sendReport(g, t)
		}
	}
	return nil
}

func (h *History) sendReport(g *grant, t *task) error {
	t.right = false
	return h.do(fsm.RecordOutcomes{Holder: g.holder, Token: g.token, Messages: []fsm.MessageOutcomes{*t.reported}})
}

func (h *History) positions(id mail.QueueID, d mail.Domain) []int {
	var positions []int
	if m, ok := h.state.Message(id); ok {
		for k, r := range m.Envelope.Recipients {
			if r.Domain == d {
				positions = append(positions, k)
			}
		}
	}
	return positions
}

// expire is a leader's timer. With the last renewal the holder's right is over,
// as the leader waited for it; with an earlier one a renewal was in flight when
// the timer fired, and the holder goes on.
func (h *History) expire() error {
	g := h.someGrant()
	if g == nil {
		return nil
	}
	renewal := g.renewals[len(g.renewals)-1]
	if h.source.Choose("in flight", 2) == 1 {
		renewal = g.renewals[0]
	}
	if renewal == g.renewals[len(g.renewals)-1] {
		for _, t := range g.messages {
			t.right = false
		}
	}
	return h.do(fsm.ExpireLeases{Token: g.token, Renewal: renewal})
}
