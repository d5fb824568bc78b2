package fsmtest

import (
	"net/netip"
	"slices"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

type proposed struct {
	fsm.Accept
	at fsm.Millis
}

func (h *History) mint() mail.QueueID {
	h.minted++
	// Clocks of nodes differ: ids do not ascend.
	ms := 1_700_000_000_000 + 10*h.minted - uint64(h.source.Choose("clock", 50))
	return mail.MintQueueID(ms, [10]byte{byte(h.minted >> 8), byte(h.minted)})
}

// send is a new transaction, of one of few contents, so that they meet again.
func (h *History) send() error {
	b := mail.NewBody([]byte(pick(h, []string{"one", "two", "three"})))
	from, _ := mail.ParseReversePath(pick(h, []string{"", "s@x.test", "s@x.test", "s@a.test"}), false)
	e := mail.Envelope{From: from, EightBit: h.source.Choose("8bit", 6) == 0, Trace: mail.Trace{
		Hello: "x.test", Client: netip.MustParseAddr("192.0.2.7"), Node: "n.test", Protocol: "ESMTP", Received: int64(h.minted),
	}}
	for _, local := range locals[:1+h.source.Choose("recipients", 3)] {
		d := relayDomains[min(h.source.Choose("domain", 12)/5, 2)]
		p, _ := mail.ParseForwardPath(local+"@"+string(d), false)
		e.Recipients = append(e.Recipients, mail.Recipient{Path: p, Domain: d})
	}
	if h.source.Choose("parameters", 6) == 0 {
		e.Return, e.EnvelopeID = mail.ReturnHeaders, "x"
		e.Recipients[0].Original = "rfc822;o@x.test"
	}
	if h.source.Choose("notify", 3) == 0 {
		for i := range e.Recipients {
			e.Recipients[i].Notify = pick(h, []mail.Notify{mail.NotifyNever, mail.NotifySuccess, mail.NotifyFailure, mail.NotifyDelay | mail.NotifySuccess, mail.NotifyDelay | mail.NotifyFailure})
		}
	}
	return h.proposeNew(fsm.Accept{Envelope: e, Body: b.Ref(h.mint())})
}

// sendAgain is a sender that repeats its message, under a new id. It may name
// the recipients in another order.
func (h *History) sendAgain() error {
	if len(h.accepts) == 0 {
		return nil
	}
	a := pick(h, h.accepts[max(0, len(h.accepts)-8):]).Accept
	a.Body.ID = h.mint()
	if h.source.Choose("reverse", 2) == 1 {
		a.Envelope.Recipients = slices.Clone(a.Envelope.Recipients)
		slices.Reverse(a.Envelope.Recipients)
	}
	return h.proposeNew(a)
}

// proposeAgain is a node that asks again with the same id, or an entry of an
// earlier attempt that commits late. No attempt lives longer than minutes; one
// that outlived the record would deliver the message twice.
func (h *History) proposeAgain() error {
	if len(h.accepts) == 0 {
		return nil
	}
	if a := pick(h, h.accepts); h.state.Now()-a.at < 1_800_000 {
		return h.propose(a.Accept)
	}
	return nil
}

func (h *History) proposeNew(a fsm.Accept) error {
	h.accepts = append(h.accepts, proposed{a, h.state.Now()})
	return h.propose(a)
}

func (h *History) propose(a fsm.Accept) error {
	r, err := h.apply(a, h.someRead()...)
	if err == nil && (r.Verdict == fsm.Done || r.Verdict == fsm.Repeat) && h.source.Choose("reply arrives", 3) > 0 {
		h.answered = append(h.answered, r.ID)
		h.unread = append(h.unread, r.ID)
	}
	return err
}

// someRead are ids whose 250 the client proves to have read only now.
func (h *History) someRead() []mail.QueueID {
	n := h.source.Choose("read", 3)
	n = min(n, len(h.unread))
	read := h.unread[:n:n]
	h.unread = h.unread[n:]
	return read
}

func (h *History) settle() error { return h.do(fsm.Settle{}, h.someRead()...) }

// known returns ids that the queue knows, or did, among them aliases and reports, and
// one that nobody has.
func (h *History) known() []mail.QueueID {
	ids := []mail.QueueID{{0xff}}
	for _, a := range h.accepts[max(0, len(h.accepts)-knownRecent):] {
		ids = append(ids, a.Body.ID)
	}
	return append(ids, h.issued[max(0, len(h.issued)-knownRecent/4):]...)
}
