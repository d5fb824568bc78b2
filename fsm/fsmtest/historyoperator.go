package fsmtest

import (
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func (h *History) bounce() fsm.BouncePolicy {
	return pick(h, []fsm.BouncePolicy{fsm.BounceAligned, fsm.BounceHold, fsm.BounceAlways, fsm.BounceAlways})
}

// issue is a leader that reports to a sender, or finds that it may not. What it looked
// at may be old.
func (h *History) issue() error {
	var owing []fsm.Message
	for m := range h.state.Owing(0) {
		owing = append(owing, m)
	}
	if len(owing) == 0 {
		return nil
	}
	m := pick(h, owing)
	a := fsm.IssueReport{Message: m.ID, Reason: "it is automatic"}
	for k, st := range m.Recipients {
		if st.Report != 0 && (a.Kind == 0 || a.Kind == st.Report) {
			a.Kind = st.Report
			a.Recipients = append(a.Recipients, k)
		}
	}
	if h.source.Choose("old news", 6) == 0 {
		a.Kind = a.Kind%fsm.ReportRelayed + 1
	}
	if h.source.Choose("issued", 4) > 0 {
		to := m.Envelope.From.Mailbox
		d := fsm.OutboundDomain(mail.Domain(to.Host))
		if _, relayed := h.state.Domain(mail.Domain(to.Host)); relayed != (h.source.Choose("another domain", 8) == 0) {
			d = mail.Domain(to.Host)
		}
		a.Reason = ""
		a.Report = fsm.Accept{
			Envelope: mail.Envelope{Recipients: []mail.Recipient{{Path: mail.ForwardPath{Mailbox: to}, Domain: d}}},
			Body:     mail.NewBody([]byte("report")).Ref(h.mint()),
		}
		h.issued = append(h.issued, a.Report.Body.ID)
	}
	if a.Kind == fsm.ReportFailure && !a.Report.Body.ID.IsZero() {
		h.told[m.ID] = true
	}
	err := h.do(a)
	for range 2 { // it got no answer
		if err != nil || h.source.Choose("again", 4) > 0 {
			break
		}
		err = h.do(a)
	}
	return err
}

func (h *History) operate() error {
	id := pick(h, h.known())
	switch h.source.Choose("operator", 5) {
	case 0, 1:
		return h.do(fsm.Hold{ID: id, Reason: "looks odd"})
	case 2, 3:
		return h.do(fsm.Release{ID: id})
	}
	if m, ok := h.state.Message(id); ok {
		h.removed[m.ID] = true
	}
	return h.do(fsm.Remove{ID: id})
}

func (h *History) domain() error {
	n := pick(h, relayDomains)
	switch h.source.Choose("domain command", 8) {
	case 5, 6, 7:
		return h.do(fsm.RecordPolicy{Domain: n, Policy: fsm.STSPolicy{
			ID: strings.Repeat("a", 16*h.source.Choose("id", 4)), Text: strings.Repeat("mx: mail.test\n", 300*h.source.Choose("policy", 3)), Fetched: int64(h.index),
		}})
	case 3:
		return h.do(fsm.ResumeDomain{Name: n})
	case 0:
		return h.do(fsm.RemoveDomain{Name: n})
	case 1:
		return h.do(fsm.FlushDomain{Name: n})
	case 2:
		d := fsm.Domain{Name: n, MX: true, Bounce: h.bounce(), DelayWarning: fsm.Millis(300_000 * h.source.Choose("warning", 3))}
		if h.source.Choose("mta-sts", 2) == 1 {
			d.TLS.Mode = fsm.TLSMTASTS
		}
		if h.source.Choose("schedule", 3) > 0 {
			d.ConnectionsMax = h.source.Choose("connections", 2)
			d.Schedule.Lifetime = fsm.Millis(600_000 * h.source.Choose("lifetime", 3))
			if h.source.Choose("retry", 2) == 1 {
				d.Schedule.RetryMin, d.Schedule.RetryMax = 90_000, 400_000
			}
		}
		return h.do(fsm.PutDomain{Domain: d})
	}
	return h.do(fsm.PutDomain{Domain: fsm.Domain{Name: n, Targets: []fsm.Target{{Host: "192.0.2.25", Port: 25}}}})
}

func (h *History) nextHop() error {
	seen := h.source.Choose("seen", 6)
	return h.do(fsm.ReportNextHop{
		Node: pick(h, nodes), Domain: pick(h, relayDomains), Up: seen < 2, Refused: seen > 3, Detail: "seen",
	})
}

// tick is a minute, at times more than the life of a record.
func (h *History) tick() error {
	n := []int{1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 6, 6, 6, 75}[h.source.Choose("ticks", 15)]
	for range n {
		if err := h.do(fsm.Tick{Elapsed: fsm.Millis(30_000 + 10_000*h.source.Choose("elapsed", 5))}); err != nil {
			return err
		}
	}
	return nil
}

// start is a node's, at times from an older data directory.
func (h *History) start() error {
	return h.do(fsm.RecordStart{
		Server: fsm.ServerID(pick(h, nodes)) + "/" + pick(h, []fsm.ServerID{"1", "2"}), Number: uint64(1 + h.source.Choose("start", 6)),
	})
}

// nonsense is what only a defect or an enemy proposes.
func (h *History) nonsense() error {
	id := pick(h, h.known())
	return h.do(pick(h, []fsm.Action{
		nil,
		fsm.Accept{},
		fsm.Accept{Body: mail.BodyRef{ID: mail.QueueID{0xfe}}},
		fsm.Tick{Elapsed: -1},
		fsm.GrantLeases{},
		fsm.GrantLeases{Holder: "n1", Domain: "a.test"},
		fsm.ExpireLeases{},
		fsm.RenewLeases{Begun: []mail.QueueID{id, id}},
		fsm.RecordOutcomes{},
		fsm.RecordOutcomes{Token: fsm.Token(h.index) + 10, Messages: []fsm.MessageOutcomes{{ID: id}}},
		fsm.RecordOutcomes{Token: 1, Messages: []fsm.MessageOutcomes{{ID: id, Recipients: []fsm.RecipientOutcome{
			{Recipient: -1, Outcome: fsm.Delivered}, {Recipient: 99, Outcome: fsm.Failed}, {Outcome: 9}, {Outcome: fsm.Deferred, Tried: true},
		}}}},
		fsm.PutDomain{},
		fsm.PutDomain{Domain: fsm.Domain{Name: fsm.OutboundDomain("x.test"), MX: true}},
		fsm.IssueReport{},
		fsm.IssueReport{Message: id, Kind: fsm.ReportFailure, Recipients: []int{99}},
		fsm.IssueReport{Message: id, Kind: 9, Recipients: []int{0}},
		fsm.PutSettings{Settings: fsm.Settings{FingerprintLife: 3_600_000, RecordLife: 60_000}},
		fsm.ReportNextHop{Domain: "a.test"},
		fsm.ReportNextHop{Node: "n1", Domain: "a.test", Up: true, Refused: true},
		fsm.RecordStart{Server: "n1/1"},
		fsm.RecordStart{Server: "n1", Number: 1},
		fsm.RecordStart{Server: "/", Number: 1},
	}))
}
