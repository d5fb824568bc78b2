package fsm_test

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// waitingFor returns a State with so many messages for a.test, each deferred
// once, under these settings.
func waitingFor(t testing.TB, count int, settings fsm.Settings) *fsm.State {
	t.Helper()
	s := fsm.New()
	do := func(a fsm.Action) fsm.Index {
		t.Helper()
		if r := apply(s, a); r.Verdict != fsm.Done {
			t.Fatalf("%T: %+v", a, r)
		}
		return s.Applied()
	}
	do(fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true}})
	do(fsm.PutSettings{Settings: settings})
	var ids []mail.QueueID
	for n := range count {
		a := acceptOf(1)
		binary.BigEndian.PutUint64(a.Body.ID[8:], uint64(n+1))
		binary.BigEndian.PutUint64(a.Body.Digest[:], uint64(n+1))
		do(a)
		if ids = append(ids, a.Body.ID); len(ids) < 1000 && n+1 < count {
			continue
		}
		r := fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(do(fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: ids}))}
		for _, id := range ids {
			r.Messages = append(r.Messages, fsm.MessageOutcomes{ID: id, Recipients: []fsm.RecipientOutcome{{Outcome: fsm.Deferred, Tried: true}}})
		}
		do(r)
		ids = nil
	}
	if c := s.Counts("a.test"); c.Waiting != count {
		t.Fatalf("%+v, want %d waiting", c, count)
	}
	return s
}

// A domain is flushed that has more waiting messages than one entry may make due:
// each entry that follows, of whatever kind, makes as many due, the oldest first.
// A replica that starts from a snapshot of any moment in between goes on where it
// stands, and so does one that reads it under settings that bound nothing.
//
// It holds this defect: a flush of a domain with a million waiting messages was one entry
// that took seconds, in which nothing else was applied.
func TestRegressionWaitsEndInSteps(t *testing.T) {
	settings := fsm.DefaultSettings()
	settings.WaitsPerEntry = 3
	s := waitingFor(t, 10, settings)
	var replicas []*fsm.State
	commands := []fsm.Action{
		fsm.FlushDomain{Name: "a.test"}, fsm.Tick{Elapsed: 5}, fsm.Settle{}, fsm.Hold{}, fsm.Tick{},
	}
	for n, want := range []int{3, 6, 9, 10, 10} {
		c := fsm.Command{Node: "n1", Action: commands[n]}
		r, effects := s.Apply(s.Applied()+1, c)
		if due := s.Counts("a.test").Due; due != want {
			t.Errorf("%d due after %T, want %d", due, c.Action, want)
		}
		if told := len(effects) > 0; told != (n < 4) {
			t.Errorf("effects of %T: %v", c.Action, effects)
		}
		if err := s.Check(); err != nil {
			t.Error(err)
		}
		for i, replica := range replicas {
			if again, _ := replica.Apply(s.Applied(), c); again.Verdict != r.Verdict || !bytes.Equal(encoded(t, replica), encoded(t, s)) {
				t.Errorf("the replica of step %d differs after step %d", i, n)
			}
		}
		replica, err := fsm.Decode(bytes.NewReader(encoded(t, s)))
		if err != nil {
			t.Fatal(err)
		}
		replicas = append(replicas, replica)
	}
	var before mail.QueueID
	for id := range s.Due("a.test") {
		if id.Compare(before) <= 0 {
			t.Errorf("%s after %s", id, before)
		}
		before = id
	}
}

// Without a bound, as before there was one, one entry ends all waits; and what a
// bound has left over, the entry that takes the bound away.
func TestWaitsEndAtOnce(t *testing.T) {
	s := waitingFor(t, 10, fsm.DefaultSettings())
	apply(s, fsm.FlushDomain{Name: "a.test"})
	if due := s.Counts("a.test").Due; due != 10 {
		t.Errorf("%d due, want all", due)
	}
	bounded := fsm.DefaultSettings()
	bounded.WaitsPerEntry = 1
	s = waitingFor(t, 10, bounded)
	apply(s, fsm.FlushDomain{Name: "a.test"})
	apply(s, fsm.PutSettings{Settings: fsm.DefaultSettings()})
	if due := s.Counts("a.test").Due; due != 10 {
		t.Errorf("%d due, want all", due)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// Two domains share what one entry may do; a domain that is flushed again while
// it is at it begins anew, and one that is removed is forgotten.
func TestWaitsOfDomainsEnd(t *testing.T) {
	settings := fsm.DefaultSettings()
	settings.WaitsPerEntry = 4
	s := waitingFor(t, 10, settings)
	apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "b.test", MX: true}})
	apply(s, fsm.FlushDomain{Name: "a.test"})
	apply(s, fsm.FlushDomain{Name: "b.test"})
	apply(s, fsm.FlushDomain{Name: "a.test"})
	if due := s.Counts("a.test").Due; due != 10 {
		t.Errorf("%d due, want 10", due)
	}
	settings.WaitsPerEntry = 1
	s = waitingFor(t, 1, settings)
	apply(s, fsm.FlushDomain{Name: "a.test"}) // and may look for more
	var id mail.QueueID
	for id = range s.Due("a.test") {
	}
	apply(s, fsm.Remove{ID: id})
	if r := apply(s, fsm.RemoveDomain{Name: "a.test"}); r.Verdict != fsm.Done {
		t.Error(r)
	}
	if err := s.Check(); err != nil {
		t.Error(err)
	}
}

// BenchmarkFlush shows the longest Apply from the flush of a domain with 200,000
// waiting messages to the last of them being due, with and without the bound that
// leaders set, and the longest of a Tick with which as many waits end.
func BenchmarkFlush(b *testing.B) {
	const count = 200_000
	for name, bound := range map[string]int{"all-at-once": 0, "bounded": fsm.WaitsPerEntry} {
		b.Run(name, func(b *testing.B) {
			settings := fsm.DefaultSettings()
			settings.WaitsPerEntry = bound
			for range b.N {
				s := waitingFor(b, count, settings)
				longest, entries := time.Duration(0), 0
				for a := fsm.Action(fsm.FlushDomain{Name: "a.test"}); s.Counts("a.test").Due < count; a = (fsm.Settle{}) {
					began := time.Now()
					apply(s, a)
					longest = max(longest, time.Since(began))
					entries++
				}
				b.ReportMetric(float64(longest.Microseconds())/1000, "longest-apply-ms")
				b.ReportMetric(float64(entries), "entries")
			}
		})
	}
	b.Run("tick", func(b *testing.B) {
		for range b.N {
			s := waitingFor(b, count, fsm.DefaultSettings())
			longest := time.Duration(0)
			for s.Counts("a.test").Due < count {
				began := time.Now()
				apply(s, fsm.Tick{Elapsed: 60_000})
				longest = max(longest, time.Since(began))
			}
			b.ReportMetric(float64(longest.Microseconds())/1000, "longest-apply-ms")
		}
	})
}
