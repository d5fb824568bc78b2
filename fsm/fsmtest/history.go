package fsmtest

import (
	"crypto/sha256"
	"fmt"
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

// knownRecent is how many accepts back a command may name a message.
const knownRecent = 32
