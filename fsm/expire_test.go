package fsm_test

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestExpiryIsBounded: one Tick holds so many messages, the next one goes on, the
// oldest first, and nobody is told more than once.
func TestExpiryIsBounded(t *testing.T) {
	const perTick, count = 2000, 4100
	s := fsm.New()
	apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true, Schedule: fsm.Schedule{Lifetime: 60_000}}})
	var last mail.QueueID
	for n := range count {
		a := acceptOf(1)
		binary.BigEndian.PutUint64(a.Body.ID[8:], uint64(n+1))
		binary.BigEndian.PutUint64(a.Body.Digest[:], uint64(n+1))
		if r := apply(s, a); r.Verdict != fsm.Done {
			t.Fatal(r)
		}
		last = a.Body.ID
	}
	for n, want := range []int{perTick, 2 * perTick, count, count} {
		apply(s, fsm.Tick{Elapsed: 60_000})
		if c := s.Counts("a.test"); c.Held != want || c.Due != count-want {
			t.Errorf("after tick %d: %+v, want %d held", n, c, want)
		}
		if m, _ := s.Message(last); (m.State() == fsm.RecipientHeld) != (want == count) {
			t.Errorf("after tick %d the newest is %s", n, m.State())
		}
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	if got := s.Totals().Expired; got != count {
		t.Errorf("%d expired, want %d", got, count)
	}
}

// TestRegressionExpiryOfDomainsIsBounded: they share what one Tick does; and what waits for its
// retry expires as what is due does.
//
// It holds this defect: what one tick expires was bounded for each domain alone, and not
// over all.
func TestRegressionExpiryOfDomainsIsBounded(t *testing.T) {
	const each = 1500
	s := fsm.New()
	for d, name := range []mail.Domain{"a.test", "b.test"} {
		apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: name, MX: true, Schedule: fsm.Schedule{Lifetime: 60_000, RetryMin: 3_600_000, RetryMax: 3_600_000}}})
		var ids []mail.QueueID
		for n := range each {
			a := acceptOf(1)
			a.Body.ID[0], a.Body.Digest[8] = byte(d+1), byte(d+1)
			binary.BigEndian.PutUint64(a.Body.ID[8:], uint64(n+1))
			binary.BigEndian.PutUint64(a.Body.Digest[:], uint64(n+1))
			a.Envelope.Recipients = slices.Clone(a.Envelope.Recipients)
			a.Envelope.Recipients[0].Path.Host, a.Envelope.Recipients[0].Domain = string(name), name
			if r := apply(s, a); r.Verdict != fsm.Done {
				t.Fatal(r)
			}
			if ids = append(ids, a.Body.ID); len(ids) == 500 {
				apply(s, fsm.GrantLeases{Holder: "n1", Domain: name, Messages: ids})
				r := fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(s.Applied())}
				for _, id := range ids {
					r.Messages = append(r.Messages, fsm.MessageOutcomes{ID: id, Recipients: []fsm.RecipientOutcome{{Outcome: fsm.Deferred, Tried: true}}})
				}
				apply(s, r)
				ids = nil
			}
		}
	}
	for n, want := range []int{2000, 2 * each} {
		apply(s, fsm.Tick{Elapsed: 60_000})
		a, b := s.Counts("a.test"), s.Counts("b.test")
		if a.Held+b.Held != want || a.Waiting+b.Waiting != 2*each-want {
			t.Errorf("after tick %d: %+v and %+v, want %d held", n, a, b, want)
		}
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// TestRetriesAreSpread: what was deferred together comes back over a quarter of the
// wait, and never before it nor after that quarter; and not in the same order again.
func TestRetriesAreSpread(t *testing.T) {
	const count = 400
	s := fsm.New()
	apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true, Schedule: fsm.Schedule{RetryMin: 80_000, RetryMax: 320_000}}})
	var ids []mail.QueueID
	for n := range count {
		a := acceptOf(1)
		a.Body.ID = mail.MintQueueID(uint64(n+1), [10]byte{9: byte(n * 37), 8: byte(n * 11)})
		binary.BigEndian.PutUint64(a.Body.Digest[:], uint64(n+1))
		apply(s, a)
		ids = append(ids, a.Body.ID)
	}
	first := make(map[mail.QueueID]fsm.Millis)
	for n, wait := range []fsm.Millis{80_000, 160_000, 320_000, 320_000} {
		apply(s, fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: ids})
		r := fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(s.Applied())}
		for _, id := range ids {
			r.Messages = append(r.Messages, fsm.MessageOutcomes{ID: id, Recipients: []fsm.RecipientOutcome{{Outcome: fsm.Deferred, Tried: true}}})
		}
		apply(s, r)
		parts, moved := make(map[fsm.Millis]int), 0
		for _, id := range ids {
			m, _ := s.Message(id)
			after := m.Parts[0].RetryAt - s.Now()
			if after < wait || after > wait+wait/4 {
				t.Fatalf("attempt %d is followed by a wait of %d, want %d and up to a quarter", n, after, wait)
			}
			share := (after - wait) * 1000 / wait
			parts[share/25]++
			if n == 0 {
				first[id] = share
			} else if d := share - first[id]; d > 10 || d < -10 {
				moved++
			}
		}
		for part := range fsm.Millis(10) {
			if parts[part] < count/40 {
				t.Errorf("attempt %d: %d of %d messages in part %d of 10", n, parts[part], count, part)
			}
		}
		if n > 0 && moved < count/2 {
			t.Errorf("attempt %d: only %d of %d have another share than at first", n, moved, count)
		}
		for s.Counts("a.test").Due < count {
			apply(s, fsm.Tick{Elapsed: 60_000})
		}
	}
}

// TestAnotherScheduleIsNoOtherNextHop: what is known of a next hop stays when only
// the schedule changes.
func TestAnotherScheduleIsNoOtherNextHop(t *testing.T) {
	s := fsm.New()
	d := fsm.Domain{Name: "a.test", MX: true}
	apply(s, fsm.PutDomain{Domain: d})
	for _, n := range []fsm.NodeName{"n1", "n2"} {
		apply(s, fsm.ReportNextHop{Node: n, Domain: "a.test", Detail: "refused"})
	}
	d.Schedule, d.ConnectionsMax = fsm.Schedule{RetryMin: 1000, RetryMax: 2000, Lifetime: 3000}, 5
	apply(s, fsm.PutDomain{Domain: d})
	if hop := s.NextHop("a.test"); hop.State != fsm.NextHopDown || hop.Detail != "refused" {
		t.Errorf("%+v", hop)
	}
	if got, _ := s.Domain("a.test"); got.Schedule != d.Schedule || got.ConnectionsMax != 5 {
		t.Errorf("%+v", got)
	}
	d.MX, d.Targets = false, []fsm.Target{{Host: "192.0.2.1", Port: 25}}
	apply(s, fsm.PutDomain{Domain: d})
	if hop := s.NextHop("a.test"); hop.State != fsm.NextHopUp || hop.Detail != "" {
		t.Errorf("%+v", hop)
	}
}

// TestImpossibleSchedules: they would make waits that never end, or none.
func TestImpossibleSchedules(t *testing.T) {
	const week, year = 7 * 24 * 3600 * 1000, 366 * 24 * 3600 * 1000
	for _, c := range []fsm.Schedule{
		{RetryMin: 1}, {RetryMax: 1}, {RetryMin: -1, RetryMax: -1}, {RetryMin: 2, RetryMax: 1}, {RetryMin: 1, RetryMax: week + 1}, {Lifetime: -1}, {Lifetime: year + 1},
	} {
		s := fsm.New()
		if r := apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true, Schedule: c}}); r.Verdict != fsm.Invalid {
			t.Errorf("%+v: %+v", c, r)
		}
	}
	for _, n := range []int{-1, 1001} {
		s := fsm.New()
		if r := apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true, ConnectionsMax: n}}); r.Verdict != fsm.Invalid {
			t.Errorf("%d connections: %+v", n, r)
		}
	}
}
