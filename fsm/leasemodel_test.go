package fsm_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/fsmtest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The times of the lease protocol in milliseconds, as the product has them. Clocks
// run up to clockDrift in a thousand too fast or too slow.
const (
	modelLease   = 60_000
	modelRight   = modelLease - modelLease/100 // of a holder, from when it sent its request
	modelMargin  = 1000                        // that a leader waits beyond the lease
	modelDoubt   = 600_000
	clockDrift   = 10
	modelMails   = 3 // that are queued at a time
	modelMailMax = 12
	modelDomain  = mail.Domain("a.test")
	modelSeeds   = 500 // in which a broken rule must be found
	modelActions = 200 // of one run
)

// A leaseModel is what a History leaves out of the life of a lease: time. In a History
// the leader has always waited long enough, and a holder always knows whether it may
// act. Here each node has a clock of its own, that drifts; leaders wait and holders
// count by those alone; requests, commands and answers are late, lost and repeated;
// leaders change, and what a former one has proposed may yet be committed; holders
// crash, and are stopped between their look at the clock and the final dot.
//
// The nodes are written from docs/architecture.md; the queue is the real one. What
// really happened is written down beside it, in true time, and judged by check.
type leaseModel struct {
	source fsmtest.Source
	broken string // the rule that the nodes break
	state  *fsm.State
	index  fsm.Index
	now    int64 // true time
	nodes  []*modelNode
	leader *modelNode
	flight []*modelProposal // not committed
	told   []func()         // answers on their way
	quiet  bool             // no story is wanted
	story  []string

	ids       []mail.QueueID
	dots      map[partToken]*modelDot
	begun     map[partToken]bool     // named by a committed renewal
	doubtFrom map[mail.QueueID]int64 // when its last doubt began; absent if none
	delivered map[mail.QueueID]bool
}

// A modelNode is one host: it may lead, and holds leases.
type modelNode struct {
	name         fsm.NodeName
	rate, offset int64 // of its clock, the rate in thousandths
	boot         uint64

	seen   map[fsm.Token]modelSight // as leader
	ticked int64                    // by its clock, when it last proposed a Tick or became leader

	leases []*heldModel
}

type modelSight struct {
	renewal fsm.Index
	at      int64 // by its clock
}

// A heldModel is a lease as its holder knows it.
type heldModel struct {
	token  fsm.Token
	ids    []mail.QueueID
	tasks  map[mail.QueueID]*modelTask
	till   int64 // by the holder's clock: its right to act
	asked  int64 // when it last sent a renewal
	halfOf int64 // when the last renewal known to be committed was sent; 0: none was
	ended  bool
}

type modelTask struct {
	begun, stopped bool
	ready          bool // it looked, and is about to send the dot
	dot            bool
	report         *fsm.MessageOutcomes
}

type modelProposal struct {
	action fsm.Action
	answer func(fsm.Index, fsm.Result) // nil where nobody asks
}

type partToken struct {
	id    mail.QueueID
	token fsm.Token
}

// A modelDot is a final dot that was sent.
type modelDot struct {
	taken  bool // the primary has the message
	paused bool // the holder's right had ended
	doubt  bool // the lease ended without a report that it was delivered
}

func newLeaseModel(s *fsm.State, source fsmtest.Source, broken string) *leaseModel {
	m := &leaseModel{
		source: source, broken: broken, state: s, now: 1_000_000,
		dots: make(map[partToken]*modelDot), begun: make(map[partToken]bool),
		doubtFrom: make(map[mail.QueueID]int64), delivered: make(map[mail.QueueID]bool),
	}
	for _, name := range []fsm.NodeName{"n1", "n2", "n3"} {
		m.nodes = append(m.nodes, &modelNode{
			name: name, rate: 1000 - clockDrift + clockDrift*int64(source.Choose("rate", 3)),
			offset: 50_000 * int64(source.Choose("offset", 5)),
		})
	}
	return m
}

func (m *leaseModel) clock(n *modelNode) int64 { return n.offset + m.now*n.rate/1000 }

// run takes so many steps, and returns the first rule that it saw broken.
func (m *leaseModel) run(steps int) error {
	if err := m.apply(fsm.PutDomain{Domain: fsm.Domain{Name: modelDomain, Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}}}}); err != nil {
		return err
	}
	m.elect()
	acts := []func() error{
		m.pass, m.pass, m.pull, m.pull, m.renew, m.renew, m.attempt, m.attempt, m.pausedDot, m.reply, m.reply, m.giveBack, m.reportAgain,
		m.commit, m.commit, m.commit, m.hear, m.hear, m.hear, m.lose,
		m.look, m.tick, m.move, m.crash, m.operate,
		m.atOnce(m.pull), m.atOnce(m.renew), m.atOnce(m.renew), m.atOnce(m.reply), m.straight, m.straight, m.doubtful, m.renewTwice, m.takeover, m.takeover, m.minutes,
	}
	for range steps {
		if err := inOrder([]func() error{m.receive, acts[m.source.Choose("act", len(acts))], m.check}); err != nil {
			return err
		}
	}
	return m.end()
}

func (m *leaseModel) say(format string, args ...any) {
	if m.quiet {
		return
	}
	m.story = append(m.story, fmt.Sprintf("%8d ", m.now-1_000_000)+fmt.Sprintf(format, args...))
}

// Log returns the story so far.
func (m *leaseModel) Log() string { return strings.Join(m.story, "\n") }

func choose[T any](m *leaseModel, what string, from []T) T {
	return from[m.source.Choose(what, len(from))]
}

// receive keeps some messages queued.
func (m *leaseModel) receive() error {
	if m.state.Counts(modelDomain).Queued >= modelMails || len(m.ids) == modelMailMax {
		return nil
	}
	var id mail.QueueID
	id[0], id[15] = 1, byte(len(m.ids))
	path, _ := mail.ParseForwardPath("p@a.test", false)
	err := m.apply(fsm.Accept{
		Envelope: mail.Envelope{Recipients: []mail.Recipient{{Path: path, Domain: modelDomain}}},
		Body:     mail.NewBody(id[:]).Ref(id),
	})
	m.ids = append(m.ids, id)
	return err
}

// pass lets time pass: a moment, or about as long as something lasts.
func (m *leaseModel) pass() error {
	if m.source.Choose("looks", 2) == 0 { // as leaders do each second
		_ = m.look()
	}
	m.now += choose(m, "time", []int64{1, 20, 500, 2000, 10_000, 28_000, 45_000, 58_900, 60_500, 62_000, 660_000})
	return nil
}

// --- The leader.

// elect makes a node the leader. It knows nothing of how long leases have stood.
func (m *leaseModel) elect() {
	before := m.leader
	m.leader = choose(m, "leader", m.nodes)
	n := m.leader
	m.say("%s leads", n.name)
	if m.broken == "a leader counts from its own sight" && before != nil {
		n.seen = before.seen
	} else {
		n.seen = nil
	}
	if m.broken != "a leader's first tick counts from its beginning" || n.ticked == 0 {
		n.ticked = m.clock(n)
	}
}

func (m *leaseModel) move() error {
	if m.source.Choose("move", 2) == 0 {
		m.elect()
	}
	return nil
}

// look proposes the end of each lease that has stood unrenewed for long enough.
func (m *leaseModel) look() error {
	after := int64(modelLease + modelMargin)
	if m.broken == "a leader waits longer than a holder may act" {
		after = modelRight
	}
	n, seen := m.leader, make(map[fsm.Token]modelSight)
	for _, l := range m.state.Leases() {
		s, ok := n.seen[l.Token]
		if !ok || s.renewal != l.Renewal {
			s = modelSight{l.Renewal, m.clock(n)}
		}
		seen[l.Token] = s
		if m.clock(n)-s.at > after {
			m.propose(fsm.ExpireLeases{Token: l.Token, Renewal: l.Renewal}, nil)
		}
	}
	n.seen = seen
	return nil
}

func (m *leaseModel) tick() error {
	n := m.leader
	m.propose(fsm.Tick{Elapsed: fsm.Millis(m.clock(n) - n.ticked)}, nil)
	n.ticked = m.clock(n)
	return nil
}

// takeover is a leader that looks, waits for about the length of a lease, looks again,
// and gives away what it ended.
func (m *leaseModel) takeover() error {
	if err := m.atOnce(m.look)(); err != nil {
		return err
	}
	if m.source.Choose("moves", 3) == 0 {
		m.elect()
	}
	m.now += choose(m, "wait", []int64{15_000, 22_000, 58_900, 60_500, 62_000})
	ends := []func() error{m.atOnce(m.look), m.atOnce(m.pull)}
	if m.source.Choose("crosses", 3) == 0 { // a renewal is committed before what the leader proposes
		ends = []func() error{m.look, m.atOnce(m.renew), m.commit, m.commit, m.atOnce(m.pull)}
	}
	return inOrder(ends)
}

func inOrder(acts []func() error) error {
	for _, act := range acts {
		if err := act(); err != nil {
			return err
		}
	}
	return nil
}

// minutes are some in which nothing happens but ticks, of one leader or several.
func (m *leaseModel) minutes() error {
	for range 1 + m.source.Choose("minutes", 16) {
		m.now += 40_000
		if m.source.Choose("moves", 2) == 0 {
			m.elect()
		}
		if err := inOrder([]func() error{m.atOnce(m.tick), m.atOnce(m.look)}); err != nil {
			return err
		}
	}
	return m.straight()
}

// --- The way to the log and back.

// atOnce makes an act one whose proposals are committed and answered at once.
func (m *leaseModel) atOnce(act func() error) func() error {
	return func() error {
		told := len(m.told)
		if err := m.atOnceUnheard(act); err != nil {
			return err
		}
		m.hearFrom(told)
		return nil
	}
}

// atOnceUnheard is atOnce without the answers.
func (m *leaseModel) atOnceUnheard(act func() error) error {
	from := len(m.flight)
	if err := act(); err != nil {
		return err
	}
	fresh := slices.Clone(m.flight[from:])
	m.flight = m.flight[:from]
	for _, p := range fresh {
		if err := m.applyAnd(p.action, p.answer); err != nil {
			return err
		}
	}
	return nil
}

// hearFrom delivers the answers from that one on.
func (m *leaseModel) hearFrom(first int) {
	answers := slices.Clone(m.told[first:])
	m.told = m.told[:first]
	for _, hear := range answers {
		hear()
	}
}

func (m *leaseModel) propose(a fsm.Action, answer func(fsm.Index, fsm.Result)) {
	m.flight = append(m.flight, &modelProposal{a, answer})
}

// commit commits one of the proposals, in whatever order; at times it stays, as the
// same command may be proposed again.
func (m *leaseModel) commit() error {
	if len(m.flight) == 0 {
		return nil
	}
	k := len(m.flight) - 1 - m.source.Choose("commits", min(len(m.flight), 6))
	p := m.flight[k]
	if m.source.Choose("repeated", 10) > 0 {
		m.flight = slices.Delete(m.flight, k, k+1)
	}
	return m.applyAnd(p.action, p.answer)
}

// lose drops a proposal, or an answer.
func (m *leaseModel) lose() error {
	if len(m.flight) > 0 && m.source.Choose("lost", 2) == 0 {
		k := m.source.Choose("proposal", len(m.flight))
		m.flight = slices.Delete(m.flight, k, k+1)
	} else if len(m.told) > 0 {
		k := m.source.Choose("answer", len(m.told))
		m.told = slices.Delete(m.told, k, k+1)
	}
	return nil
}

// hear delivers an answer, in whatever order.
func (m *leaseModel) hear() error {
	if len(m.told) > 0 {
		k := m.source.Choose("hears", len(m.told))
		told := m.told[k]
		m.told = slices.Delete(m.told, k, k+1)
		told()
	}
	return nil
}

func (m *leaseModel) apply(a fsm.Action) error { return m.applyAnd(a, nil) }

// applyAnd applies a command, writes down what really happened, and judges it.
func (m *leaseModel) applyAnd(a fsm.Action, answer func(fsm.Index, fsm.Result)) error {
	before := m.state.Snapshot()
	m.index++
	index := m.index
	r, _ := m.state.Apply(index, fsm.Command{Action: a})
	m.say("%d: %T%+v: %s %v %q", index, a, a, r.Verdict, r.Messages, r.Text)
	if answer != nil {
		m.told = append(m.told, func() { answer(index, r) })
	}
	switch a := a.(type) {
	case fsm.GrantLeases:
		for _, id := range r.Messages {
			if m.delivered[id] {
				return fmt.Errorf("%s is granted, and was delivered", id)
			}
			if from, ok := m.doubtFrom[id]; ok && m.now-from < modelDoubt*1000/(1000+clockDrift) {
				return fmt.Errorf("%s is granted %d ms after it came to be in doubt", id, m.now-from)
			}
		}
	case fsm.RenewLeases:
		for _, id := range a.Begun {
			if r.Verdict == fsm.Done && !slices.Contains(r.Messages, id) {
				m.begun[partToken{id, a.Token}] = true
			}
		}
	case fsm.RecordOutcomes:
		for _, o := range a.Messages {
			if err := m.reported(before, a, o); err != nil {
				return err
			}
		}
	}
	for _, id := range m.ids { // leases that this command ended
		was, _ := before.Message(id)
		is, _ := m.state.Message(id)
		token := was.Parts[0].Lease
		if token == 0 || is.Parts[0].Lease == token {
			continue
		}
		if _, expired := a.(fsm.ExpireLeases); expired && m.begun[partToken{id, token}] {
			m.doubtFrom[id] = m.now
		}
		if d := m.dots[partToken{id, token}]; d != nil && !m.delivered[id] {
			d.doubt = true
		}
	}
	return nil
}

// reported judges what a report changed, and writes down what it said.
func (m *leaseModel) reported(before *fsm.State, r fsm.RecordOutcomes, o fsm.MessageOutcomes) error {
	was, _ := before.Message(o.ID)
	is, _ := m.state.Message(o.ID)
	current := was.Parts[0].Lease == r.Token
	if !current && is.Parts[0].Lease != was.Parts[0].Lease {
		return fmt.Errorf("a report under lease %d ends lease %d of %s", r.Token, was.Parts[0].Lease, o.ID)
	}
	switch outcome := o.Recipients[0].Outcome; outcome {
	case fsm.Delivered:
		if is.State() != fsm.RecipientDelivered && is.Recipients[0].DeliveredLate == 0 {
			return fmt.Errorf("%s was reported delivered, and is %s", o.ID, is.State())
		}
		m.delivered[o.ID] = true
	case fsm.InDoubt:
		if !m.begun[partToken{o.ID, r.Token}] {
			return fmt.Errorf("%s is in doubt under lease %d, which never named it", o.ID, r.Token)
		}
		if is.Parts[0].DoubtUntil != was.Parts[0].DoubtUntil {
			m.doubtFrom[o.ID] = m.now
		}
	default:
		if w, i := was.Parts[0], is.Parts[0]; !current && (was.State() != is.State() || w != i) {
			return fmt.Errorf("%s is changed by a report under lease %d, which has ended: %+v, before %+v", o.ID, r.Token, i, w)
		}
	}
	return nil
}

// --- The holders.

func (m *leaseModel) pull() error {
	n := choose(m, "holder", m.nodes)
	from := slices.Collect(m.state.Due(modelDomain))
	if m.source.Choose("stale plan", 3) == 0 {
		from = m.ids
	}
	if len(from) == 0 {
		return nil
	}
	plan := []mail.QueueID{choose(m, "message", from)}
	if other := choose(m, "message", from); other != plan[0] {
		plan = append(plan, other)
	}
	sent, boot := m.clock(n), n.boot
	m.propose(fsm.GrantLeases{Holder: n.name, Domain: modelDomain, Messages: plan}, func(i fsm.Index, r fsm.Result) {
		if boot != n.boot || len(r.Messages) == 0 || n.lease(fsm.Token(i)) != nil {
			return
		}
		l := &heldModel{token: fsm.Token(i), ids: r.Messages, tasks: make(map[mail.QueueID]*modelTask), till: sent + modelRight}
		if m.broken == "the right counts from the request" {
			l.till = m.clock(n) + modelRight
		}
		for _, id := range r.Messages {
			l.tasks[id] = new(modelTask)
		}
		n.leases = append(n.leases, l)
	})
	return nil
}

func (n *modelNode) lease(t fsm.Token) *heldModel {
	for _, l := range n.leases {
		if l.token == t {
			return l
		}
	}
	return nil
}

// someLease chooses a holder and one of its leases, and a message in it.
func (m *leaseModel) someLease() (*modelNode, *heldModel, mail.QueueID) {
	n := choose(m, "holder", m.nodes)
	if len(n.leases) == 0 {
		return nil, nil, mail.QueueID{}
	}
	l := choose(m, "lease", n.leases[max(0, len(n.leases)-2):])
	return n, l, choose(m, "message", l.ids)
}

func (m *leaseModel) renew() error {
	n, l, id := m.someLease()
	if n == nil {
		return nil
	}
	names := []mail.QueueID{id}
	if m.source.Choose("all", 2) == 0 {
		names = l.ids
	}
	m.renewAs(n, l, names)
	return nil
}

// renewTwice is a holder whose second renewal is on its way when it hears of the first.
// They name nothing: what is named waits doubt_wait, whatever the holder believes.
func (m *leaseModel) renewTwice() error {
	if err := m.atOnce(m.pull)(); err != nil {
		return err
	}
	n, l, _ := m.someLease()
	if n == nil {
		return nil
	}
	told := len(m.told)
	if err := m.atOnceUnheard(func() error { m.renewAs(n, l, nil); return nil }); err != nil {
		return err
	}
	_ = m.look()
	m.now += choose(m, "time", []int64{20_000, 40_000})
	m.renewAs(n, l, nil)
	if m.source.Choose("lost", 2) == 0 {
		m.flight = m.flight[:len(m.flight)-1]
	}
	m.hearFrom(told)
	if m.source.Choose("goes on", 2) == 0 {
		return nil
	}
	return m.takeover()
}

func (m *leaseModel) renewAs(n *modelNode, l *heldModel, names []mail.QueueID) {
	sent := m.clock(n)
	l.asked = sent
	m.propose(fsm.RenewLeases{Holder: n.name, Token: l.token, Begun: names}, func(_ fsm.Index, r fsm.Result) {
		if r.Verdict != fsm.Done {
			l.ended = true
			return
		}
		sent := sent
		if m.broken == "an answer counts for its own request" {
			sent = l.asked
		}
		l.till, l.halfOf = max(l.till, sent+modelRight), max(l.halfOf, sent)
		for _, id := range names {
			l.tasks[id].begun = true
		}
		for _, id := range r.Messages {
			l.tasks[id].stopped, l.tasks[id].begun = true, false
		}
	})
}

// may is the right to work on a message.
func (m *leaseModel) may(n *modelNode, l *heldModel, t *modelTask) bool {
	over := t.report != nil
	if m.broken == "nothing is touched after its report" {
		over = false
	}
	return !l.ended && !t.stopped && !over && m.clock(n) < l.till
}

// ready looks whether the final dot may be sent.
func (m *leaseModel) ready(n *modelNode, l *heldModel, t *modelTask) bool {
	named := t.begun && l.halfOf > 0 && m.clock(n)-l.halfOf < modelLease/2
	if m.broken == "named before the dot" {
		named = true
	}
	return m.may(n, l, t) && named && !t.dot
}

// attempt looks, and sends the dot at once; or the host is stopped in between.
func (m *leaseModel) attempt() error {
	n, l, id := m.someLease()
	if n == nil || !m.ready(n, l, l.tasks[id]) {
		return nil
	}
	l.tasks[id].ready = true
	if m.source.Choose("stopped", 4) == 0 {
		m.say("%s is stopped before the dot of %s under %d", n.name, id, l.token)
		return nil
	}
	return m.dot(n, l, id)
}

// straight is a holder that goes straight for the dot.
func (m *leaseModel) straight() error {
	return inOrder([]func() error{m.atOnce(m.pull), m.atOnce(m.renew), m.attempt})
}

// doubtful is a holder that is not heard of again behind its dot, and others that go on.
func (m *leaseModel) doubtful() error {
	return inOrder([]func() error{m.straight, m.takeover, m.minutes, m.minutes})
}

// pausedDot is a host that goes on.
func (m *leaseModel) pausedDot() error {
	n, l, id := m.someLease()
	if n == nil || !l.tasks[id].ready || l.tasks[id].dot {
		return nil
	}
	return m.dot(n, l, id)
}

func (m *leaseModel) dot(n *modelNode, l *heldModel, id mail.QueueID) error {
	key := partToken{id, l.token}
	l.tasks[id].dot = true
	is, _ := m.state.Message(id)
	d := &modelDot{
		taken: m.source.Choose("taken", 4) > 0, paused: !m.may(n, l, l.tasks[id]),
		doubt: is.Parts[0].Lease != l.token, // it ended before
	}
	m.dots[key] = d
	m.say("%s sends the dot of %s under %d: %+v", n.name, id, l.token, *d)
	if !m.begun[key] {
		return fmt.Errorf("the dot of %s under %d is sent, and no committed renewal named it", id, l.token)
	}
	return nil
}

// reply is what the holder reads, or does not read, behind the dot.
func (m *leaseModel) reply() error {
	n, l, id := m.someLease()
	if n == nil || !l.tasks[id].dot || l.tasks[id].report != nil {
		return nil
	}
	o := fsm.RecipientOutcome{Tried: true}
	switch taken := m.dots[partToken{id, l.token}].taken; {
	case m.source.Choose("reply read", 3) == 0:
		o.Outcome = fsm.InDoubt
	case taken:
		o.Outcome = fsm.Delivered
	case m.source.Choose("for good", 4) == 0:
		o.Outcome = fsm.Failed
	default:
		o.Outcome = fsm.Deferred
	}
	return m.report(n, l, id, o)
}

// giveBack is a holder that does not come to a message, or whose next hop puts it off.
func (m *leaseModel) giveBack() error {
	n, l, id := m.someLease()
	if n == nil || l.tasks[id].ready || l.tasks[id].report != nil {
		return nil
	}
	return m.report(n, l, id, fsm.RecipientOutcome{Outcome: fsm.Deferred, Tried: m.source.Choose("tried", 2) == 1})
}

func (m *leaseModel) report(n *modelNode, l *heldModel, id mail.QueueID, o fsm.RecipientOutcome) error {
	l.tasks[id].report = &fsm.MessageOutcomes{ID: id, Recipients: []fsm.RecipientOutcome{o}}
	m.proposeReport(n, l, id)
	return nil
}

func (m *leaseModel) proposeReport(n *modelNode, l *heldModel, id mail.QueueID) {
	m.propose(fsm.RecordOutcomes{Holder: n.name, Token: l.token, Messages: []fsm.MessageOutcomes{*l.tasks[id].report}}, nil)
}

// reportAgain is a holder that got no answer.
func (m *leaseModel) reportAgain() error {
	if n, l, id := m.someLease(); n != nil && l.tasks[id].report != nil {
		m.proposeReport(n, l, id)
	}
	return nil
}

// crash takes a holder its memory.
func (m *leaseModel) crash() error {
	if m.source.Choose("crash", 4) > 0 {
		return nil
	}
	n := choose(m, "holder", m.nodes)
	n.leases, n.boot = nil, n.boot+1
	m.say("%s crashes", n.name)
	return nil
}

// --- The operator.

func (m *leaseModel) operate() error {
	id := choose(m, "message", m.ids)
	if m.source.Choose("removes", 8) == 0 {
		return m.apply(fsm.Remove{ID: id})
	}
	if m.source.Choose("both", 3) == 0 {
		for _, a := range []fsm.Action{fsm.Hold{ID: id}, fsm.Release{ID: id}} {
			if err := m.apply(a); err != nil {
				return err
			}
		}
		return m.atOnce(m.pull)()
	}
	return m.apply(choose(m, "operator", []fsm.Action{
		fsm.Hold{ID: id}, fsm.Release{ID: id}, fsm.Hold{ID: id}, fsm.Release{ID: id}, fsm.FlushDomain{Name: modelDomain},
	}))
}

// --- The rules.

// check judges the world as it is.
func (m *leaseModel) check() error {
	rights := make(map[mail.QueueID]fsm.Token)
	for _, n := range m.nodes {
		for _, l := range n.leases {
			for _, id := range l.ids {
				if !m.may(n, l, l.tasks[id]) {
					continue
				}
				if other, ok := rights[id]; ok { // I4
					return fmt.Errorf("%s may be sent under %d and under %d", id, other, l.token)
				}
				rights[id] = l.token
			}
		}
	}
	totals, extra := m.state.Totals(), 0
	for _, id := range m.ids {
		copies, doubts, pauses := 0, 0, 0
		for key, d := range m.dots {
			if key.id != id || !d.taken {
				continue
			}
			copies++
			if d.doubt {
				doubts++
			}
			if d.paused {
				pauses++
			}
		}
		if copies > 1+doubts+pauses { // I3
			return fmt.Errorf("%d copies of %s, with %d doubts and %d pauses", copies, id, doubts, pauses)
		}
		extra += max(0, copies-1)
		is, ok := m.state.Message(id)
		if !ok {
			return fmt.Errorf("%s is gone", id)
		}
		if copies > 1 && is.Parts[0].Lease == 0 && !is.PossibleDuplicate { // I5
			return fmt.Errorf("%d copies of %s, and it is not marked", copies, id)
		}
		if state := is.State(); m.delivered[id] && (state == fsm.RecipientQueued || state == fsm.RecipientHeld) {
			return fmt.Errorf("%s was delivered, and is %s", id, state)
		}
	}
	if uint64(extra) > totals.DoubtsExpired+totals.DoubtsReported { // the published bound
		return fmt.Errorf("%d extra copies, with %d and %d doubts counted", extra, totals.DoubtsExpired, totals.DoubtsReported)
	}
	return nil
}

// end has every node crash and a leader stay: then each queued message comes to be due
// again (L).
func (m *leaseModel) end() error {
	m.flight, m.told = nil, nil
	for _, n := range m.nodes {
		n.leases = nil
	}
	m.elect()
	for range 40 {
		m.now += 50_000
		if err := inOrder([]func() error{m.atOnce(m.look), m.atOnce(m.tick)}); err != nil {
			return err
		}
	}
	due := slices.Collect(m.state.Due(modelDomain))
	for _, id := range m.ids {
		if is, _ := m.state.Message(id); is.Parts[0].Queued > 0 && !slices.Contains(due, id) {
			return fmt.Errorf("%s is queued, and never comes to be due: %+v at %d", id, is.Parts[0], m.state.Now())
		}
	}
	return m.check()
}

// TestLeaseProtocol runs the model with every rule kept.
func TestLeaseProtocol(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newLeaseModel(fsm.New(), drawn{t}, "")
		if err := m.run(80); err != nil {
			t.Fatalf("%s\n\n%v", m.Log(), err)
		}
	})
	seeds := uint64(modelSeeds)
	if testing.Short() {
		seeds = 100
	}
	var paused, doubted, copied int
	for seed := range seeds {
		m := newLeaseModel(fsm.New(), newSeeded(seed), "")
		m.quiet = true
		if err := m.run(modelActions); err != nil {
			m = newLeaseModel(fsm.New(), newSeeded(seed), "")
			err = m.run(modelActions)
			t.Fatalf("seed %d:\n%s\n\n%v", seed, m.Log(), err)
		}
		copies := make(map[mail.QueueID]int)
		for key, d := range m.dots {
			if d.paused && d.taken {
				paused++
			}
			if d.doubt && d.taken {
				doubted++
			}
			if d.taken {
				if copies[key.id]++; copies[key.id] > 1 {
					copied++
				}
			}
		}
	}
	t.Logf("%d runs: %d dots of paused holders, %d in doubt, %d further copies", seeds, paused, doubted, copied)
	if paused == 0 || doubted == 0 || copied == 0 {
		t.Error("the runs have not what the rules are about")
	}
}

// TestLeaseProtocolControls takes the rules away one at a time, those of the queue and
// those of the nodes: each must be missed.
func TestLeaseProtocolControls(t *testing.T) {
	for _, rule := range []string{
		// of the queue
		"guard on expire",
		"check at grant",
		"fence",
		"hold keeps the lease",
		// of the nodes
		"a leader waits longer than a holder may act",
		"a leader counts from its own sight",
		"a leader's first tick counts from its beginning",
		"the right counts from the request",
		"an answer counts for its own request",
		"named before the dot",
		"nothing is touched after its report",
	} {
		t.Run(rule, func(t *testing.T) {
			for seed := range uint64(modelSeeds) {
				s, broken := fsm.New(), rule
				switch rule {
				case "guard on expire", "check at grant", "fence", "hold keeps the lease":
					s.Waive(rule)
					broken = ""
				}
				m := newLeaseModel(s, newSeeded(seed), broken)
				m.quiet = true
				if err := m.run(modelActions); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("no run of %d misses the rule", modelSeeds)
		})
	}
}
