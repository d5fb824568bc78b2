package fsmtest

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Source makes the choices of a history: one of 0 to n-1.
type Source interface {
	Choose(what string, n int) int
}

// A History drives a State with senders that repeat what they got no reply
// for, holders that act on their leases and report late, a leader whose timers
// race with renewals, and an operator. Beside the State it keeps what really
// happened: who may act, which final dots were sent, which 250 was read.
type History struct {
	state  *fsm.State
	twin   *Twin // nil where only the invariants are wanted
	source Source
	index  fsm.Index
	minted uint64
	log    []string
	// every says how many commands go by from one check to the next; 0 checks each, and
	// keeps the log.
	every uint64
	steps uint64

	kept       *fsm.State // an earlier snapshot, and its digest then
	keptDigest [sha256.Size]byte

	accepts  []proposed // every Accept ever proposed
	unread   []mail.QueueID
	grants   []*grant
	dots     map[partKey]int
	removed  map[mail.QueueID]bool
	told     map[mail.QueueID]bool // a report of a failure was queued
	answered []mail.QueueID        // ids that a 250 named
	issued   []mail.QueueID        // of reports
}

type proposed struct {
	fsm.Accept
	at fsm.Millis
}

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

// NewHistory returns a history of s, which must be empty.
func NewHistory(s *fsm.State, twin *Twin, source Source) *History {
	h := &History{state: s, twin: twin, source: source, dots: make(map[partKey]int), removed: make(map[mail.QueueID]bool), told: make(map[mail.QueueID]bool)}
	return h
}

// Sparsely has the rules checked after each so many commands only, and no log kept: most
// of the time of a history goes into these. It makes the same choices as without it, so
// that the same source shows step by step what it found.
func (h *History) Sparsely(every uint64) *History {
	h.every = every
	return h
}

// Steps is how many commands were applied.
func (h *History) Steps() uint64 { return h.steps }

// say adds to the log.
func (h *History) say(format string, args ...any) {
	if h.every == 0 {
		h.log = append(h.log, fmt.Sprintf(format, args...))
	}
}

// Log returns the commands so far.
func (h *History) Log() string { return strings.Join(h.log, "\n") }

var (
	relayDomains = []mail.Domain{"a.test", "b.test", "c.test"}
	destinations = append(slices.Clone(relayDomains), fsm.OutboundDomain("x.test"))
	nodes        = []fsm.NodeName{"n1", "n2", "n3"}
)

// Run takes so many steps, and reports the first rule that is broken.
func (h *History) Run(steps int) error {
	for _, d := range relayDomains[:2] {
		tls := fsm.TLSPolicy{Mode: pick(h, []fsm.TLSMode{fsm.TLSOpportunistic, fsm.TLSMTASTS})}
		if err := h.do(fsm.PutDomain{Domain: fsm.Domain{Name: d, MX: true, ConnectionsMax: h.source.Choose("guarded", 2), Bounce: h.bounce(), TLS: tls}}); err != nil {
			return err
		}
	}
	if err := h.do(fsm.PutSettings{Settings: fsm.Settings{
		DoubtWait: 120_000, FingerprintLife: 300_000, FingerprintMax: 3 + h.source.Choose("fingerprints", 20), RecordLife: 3_900_000,
		RetryMin: 60_000, RetryMax: 240_000, Voters: 3, WaitsPerEntry: h.source.Choose("waits per entry", 4),
	}}); err != nil {
		return err
	}
	acts := []func() error{
		h.send, h.send, h.sendAgain, h.sendAgain, h.proposeAgain, h.settle,
		h.pull, h.pull, h.attempt, h.attempt, h.renew, h.renew, h.dot, h.dot, h.report, h.report, h.report, h.reportAgain, h.expire, h.expire,
		h.issue, h.issue, h.operate, h.operate, h.domain, h.nextHop, h.tick, h.tick, h.tick, h.start, h.nonsense,
	}
	for range steps {
		if err := acts[h.source.Choose("act", len(acts))](); err != nil {
			return err
		}
	}
	return nil
}

func (h *History) do(a fsm.Action, settled ...mail.QueueID) error {
	_, err := h.apply(a, settled...)
	return err
}

// apply applies a command to the State and its twin, and checks every rule.
func (h *History) apply(a fsm.Action, settled ...mail.QueueID) (fsm.Result, error) {
	h.index += fsm.Index(1 + h.source.Choose("gap", 2))
	c := fsm.Command{Node: pick(h, nodes), Settled: settled, Action: a}
	h.steps++
	h.say("%d: %T%+v settled %v", h.index, a, a, settled)
	if h.every > 0 && h.steps%h.every != 0 {
		r, _ := h.state.Apply(h.index, c)
		if h.twin != nil {
			h.twin.Apply(h.index, c)
		}
		return r, nil
	}
	before := h.state.Snapshot()
	if err := h.keepSnapshot(before); err != nil {
		return fsm.Result{}, err
	}
	r, effects := h.state.Apply(h.index, c)
	h.say("   %s %v %v %q %v", r.Verdict, r.ID, r.Messages, r.Text, effects)
	if err := Step(before, h.index, c, r, effects, h.state); err != nil {
		return r, err
	}
	if h.twin != nil {
		want := h.twin.Apply(h.index, c)
		r.Text = ""
		if err := differ("result", r, want); err != nil {
			return r, err
		}
		if err := h.twin.Compare(h.state); err != nil {
			return r, err
		}
	}
	return r, h.world()
}

// keepSnapshot remembers a snapshot now and then, and looks whether the one
// before has changed under the commands since.
func (h *History) keepSnapshot(s *fsm.State) error {
	if h.every == 0 && h.index%8 != 0 {
		return nil
	}
	err := h.checkSnapshot()
	h.kept, h.keptDigest = s, s.Digest()
	return err
}

func (h *History) checkSnapshot() error {
	if h.kept == nil {
		return nil
	}
	if h.keptDigest != h.kept.Digest() {
		return fmt.Errorf("the snapshot after entry %d changed under later commands", h.kept.Applied())
	}
	if err := h.kept.Check(); err != nil {
		return fmt.Errorf("an index of the snapshot after entry %d changed under later commands: %w", h.kept.Applied(), err)
	}
	return nil
}

// look is world, where that is checked after each step.
func (h *History) look() error {
	if h.every > 0 {
		return nil
	}
	return h.world()
}

// world checks what the State must be worth to those outside.
func (h *History) world() error {
	rights := make(map[partKey]fsm.Token)
	extra := 0
	for _, g := range h.grants {
		for _, id := range g.ids {
			key := partKey{id, g.domain}
			if !g.messages[id].right {
				continue
			}
			if other, ok := rights[key]; ok { // I4
				return fmt.Errorf("leases %d and %d both give the right to send %s", other, g.token, id)
			}
			rights[key] = g.token
		}
	}
	for key, n := range h.dots {
		if n < 2 {
			continue
		}
		extra += n - 1
		m, ok := h.state.Message(key.id)
		if _, leased := rights[key]; ok && !leased && !m.PossibleDuplicate { // I5
			return fmt.Errorf("%s was sent %d times and is not marked", key.id, n)
		}
	}
	t := h.state.Totals()
	if uint64(extra) > t.DoubtsExpired+t.DoubtsReported { // I3: copies <= 1 + D
		return fmt.Errorf("%d extra copies, %d + %d doubts counted", extra, t.DoubtsExpired, t.DoubtsReported)
	}
	for _, id := range h.answered { // I1
		m, ok := h.state.Message(id)
		if !ok {
			continue // forgotten, which Step allows only after its end
		}
		for k, st := range m.Recipients {
			if st.State == fsm.RecipientFailed && !h.told[m.ID] || st.State == fsm.RecipientRemoved && !h.removed[m.ID] {
				return fmt.Errorf("%s got a 250; recipient %d is %s", id, k, st.State)
			}
		}
	}
	if t.FingerprintsDropped > 0 {
		return nil
	}
	prints := make(map[string]mail.QueueID)
	for m := range h.state.Messages(mail.QueueID{}) { // I8
		if m.Settled || m.Accepted+h.state.Settings().FingerprintLife <= h.state.Now() ||
			slices.ContainsFunc(m.Recipients, func(st fsm.RecipientStatus) bool { return st.State > fsm.RecipientDelivered }) {
			continue
		}
		p := Print(m.Envelope, m.Body)
		if other, ok := prints[p]; ok {
			return fmt.Errorf("%s and %s are the same message and both unsettled", other, m.ID)
		}
		prints[p] = m.ID
	}
	return nil
}

func pick[T any](h *History, from []T) T { return from[h.source.Choose("pick", len(from))] }

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

// knownRecent is how many accepts back a command may name a message.
const knownRecent = 32

// known returns ids that the queue knows, or did, among them aliases and reports, and
// one that nobody has.
func (h *History) known() []mail.QueueID {
	ids := []mail.QueueID{{0xff}}
	for _, a := range h.accepts[max(0, len(h.accepts)-knownRecent):] {
		ids = append(ids, a.Body.ID)
	}
	return append(ids, h.issued[max(0, len(h.issued)-knownRecent/4):]...)
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
