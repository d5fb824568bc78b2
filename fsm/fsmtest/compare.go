package fsmtest

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Compare reports the first difference between the twin and s.
func (w *Twin) Compare(s *fsm.State) error {
	var messages []fsm.Message
	for m := range s.Messages(mail.QueueID{}) {
		messages = append(messages, m)
	}
	if err := differ("messages", messages, w.view()); err != nil {
		return err
	}
	for _, m := range w.messages {
		for _, id := range append([]mail.QueueID{m.body.ID}, m.aliases...) {
			found, ok := s.Message(id)
			if !ok || !s.Known(id) || found.ID != m.body.ID {
				return fmt.Errorf("%s is not found as %s", id, m.body.ID)
			}
			if want := id == m.body.ID && m.live(); s.Live(id) != want {
				return fmt.Errorf("live %s is %v, want %v", id, s.Live(id), want)
			}
		}
	}
	if s.Now() != w.now || s.Settings() != w.settings {
		return fmt.Errorf("log time %d, settings %+v, want %d and %+v", s.Now(), s.Settings(), w.now, w.settings)
	}
	var owing []mail.QueueID
	for m := range s.Owing(0) {
		owing = append(owing, m.ID)
	}
	if err := differ("what owes reports", owing, w.owing()); err != nil {
		return err
	}
	names := slices.Sorted(maps.Keys(w.domains))
	var domains []fsm.Domain
	for _, n := range names {
		d := w.domains[n]
		domains = append(domains, d.config)
		var due []mail.QueueID
		for _, m := range w.messages {
			if w.grantable(m, n) {
				due = append(due, m.body.ID)
			}
		}
		if err := cmp.Or(
			differ("due of "+string(n), slices.Collect(s.Due(n)), due),
			differ("next hop of "+string(n), s.NextHop(n), d.hop),
			differ("counts of "+string(n), s.Counts(n), w.Counts(n)),
			differ("known good of "+string(n), knownOf(s, n), w.knownOf(n)),
			differ("policy of "+string(n), policyOf(s, n), d.policy),
		); err != nil {
			return err
		}
	}
	if got := s.Destinations(); len(got) > 0 || len(domains) > 0 {
		if err := differ("domains", got, domains); err != nil {
			return err
		}
	}
	if got := s.Leases(); len(got) > 0 || len(w.leases()) > 0 {
		if err := differ("leases", got, w.leases()); err != nil {
			return err
		}
	}
	starts := make(map[fsm.ServerID]uint64)
	for server, numbers := range w.starts {
		starts[server] = slices.Max(numbers)
	}
	if err := differ("starts", maps.Collect(s.Starts()), starts); err != nil {
		return err
	}
	return differ("totals", s.Totals(), w.totals())
}

// The local parts of a history's recipients.
var locals = []string{"p", "q", "r"}

func policyOf(s *fsm.State, n mail.Domain) *fsm.STSPolicy {
	if p, ok := s.STSPolicy(n); ok {
		return &p
	}
	return nil
}

func knownOf(s *fsm.State, n mail.Domain) (known []string) {
	for _, local := range locals {
		p, _ := mail.ParseForwardPath(local+"@"+string(n), false)
		if s.KnownGood(n, mail.Recipient{Path: p, Domain: n}) {
			known = append(known, local)
		}
	}
	return known
}

func (w *Twin) knownOf(n mail.Domain) (known []string) {
	for _, local := range locals {
		if w.knows(w.domains[n], local) {
			known = append(known, local)
		}
	}
	return known
}

func (w *Twin) owing() (owing []mail.QueueID) {
	for _, m := range w.messages {
		if slices.ContainsFunc(m.status, func(st fsm.RecipientStatus) bool { return st.Report != 0 }) {
			owing = append(owing, m.body.ID)
		}
	}
	return owing
}

func differ(what string, got, want any) error {
	if reflect.DeepEqual(got, want) {
		return nil
	}
	return fmt.Errorf("%s\n got %+v\nwant %+v", what, got, want)
}

func (w *Twin) view() []fsm.Message {
	var messages []fsm.Message
	for _, m := range w.messages {
		v := fsm.Message{
			ID: m.body.ID, Entry: m.entry, Envelope: m.envelope, Body: m.body, Node: m.node, Accepted: m.at,
			Settled: m.settled, PossibleDuplicate: m.doubtful,
			Recipients: m.status, Aliases: m.aliases,
			Finished: !m.live(), Ended: m.ended, EndedAt: m.endedAt,
		}
		for _, r := range m.envelope.Recipients {
			if slices.ContainsFunc(v.Parts, func(p fsm.Part) bool { return p.Domain == r.Domain }) {
				continue
			}
			p := m.parts[r.Domain]
			part := fsm.Part{
				Domain: r.Domain, Queued: m.has(r.Domain, fsm.RecipientQueued), Held: m.has(r.Domain, fsm.RecipientHeld),
				Lease: p.lease, Begun: p.begun, RetryAt: p.retryAt, DoubtUntil: p.doubt, Attempts: p.attempts,
			}
			if life := w.lifetime(r.Domain); life > 0 && part.Queued > 0 {
				part.ExpiresAt = max(m.at, p.released) + life
			}
			if p.lease != 0 {
				part.Holder = p.holder
			}
			v.Parts = append(v.Parts, part)
		}
		messages = append(messages, v)
	}
	slices.SortFunc(messages, func(a, b fsm.Message) int { return a.ID.Compare(b.ID) })
	return messages
}

func (w *Twin) leases() []fsm.Lease {
	byToken := make(map[fsm.Token]*fsm.Lease)
	for _, m := range w.messages {
		for d, p := range m.parts {
			if p.lease == 0 {
				continue
			}
			l := byToken[p.lease]
			if l == nil {
				l = &fsm.Lease{Token: p.lease, Holder: p.holder, Domain: d, Renewal: p.renewal}
				byToken[p.lease] = l
			}
			l.Messages = append(l.Messages, m.body.ID)
		}
	}
	var leases []fsm.Lease
	for _, t := range slices.Sorted(maps.Keys(byToken)) {
		leases = append(leases, *byToken[t])
	}
	return leases
}

func (w *Twin) totals() fsm.Totals {
	t := w.counted
	t.Messages = len(w.messages)
	t.Leases = len(w.leases())
	for _, m := range w.messages {
		t.Aliases += len(m.aliases)
		if m.live() {
			t.Live++
			t.LiveBytes += m.body.Size
		}
		if !m.settled {
			t.Unsettled++
		}
		if m.doubtful {
			t.Marked++
		}
		if m.print != "" {
			t.Fingerprints++
		}
	}
	return t
}
