package sim

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// guarded puts the domain anew as an administrator of this version does: with a
// schedule and a ceiling, and so with a guard.
func (s *story) guarded(d mail.Domain) {
	s.t.Helper()
	ip := s.network.Host(primaryName).IP().String()
	s.do(fsm.PutDomain{Domain: fsm.Domain{
		Name: d, Targets: []fsm.Target{{Host: ip, Port: 25}}, ConnectionsMax: fsm.ConnectionsMaxDefault,
		Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault, Lifetime: fsm.LifetimeDefault},
	}})
}

// outage ends the primary, has letters given to all nodes in turn, and waits until
// the cluster knows that it is down.
func (s *story) outage(d mail.Domain, letters int, to func(n int) string) (ids []string) {
	s.t.Helper()
	s.PrimaryDown()
	for n := range letters {
		ids = append(ids, s.mustGive(nodeNames[n%len(nodeNames)], letterTo{to: to(n), text: fmt.Sprintf("%s %d during the outage", d, n)}, thenRead))
	}
	s.await(2*time.Minute, "the next hop is down", func() bool {
		for _, name := range nodeNames {
			if s.member(name).NextHop(d).State != fsm.NextHopDown {
				return false
			}
		}
		return true
	})
	return ids
}

// A primary comes back from an outage with an empty table of mailboxes, and says 550
// to every recipient. Three messages are spent to find out, whoever leads and however
// many nodes deliver; the rest waits behind an alarm, also when the primary is repaired,
// until the administrator has it go on. Then all of it arrives, once.
func TestAPrimaryThatForgotItsMailboxesIsSpared(t *testing.T) {
	tell(t, 700, func(t *testing.T, s *story) {
		const domain, letters = mail.Domain("example.org"), 60
		s.begin()
		s.guarded(domain)
		to := func(n int) string { return fmt.Sprintf("user%d@%s", n%7, domain) }
		s.primaryUp()
		for n := range 7 {
			s.awaitState(s.mustGive(nodeNames[n%3], letterTo{to: to(n), text: fmt.Sprintf("letter %d before", n)}, thenRead), 2*time.Minute, fsm.RecipientDelivered)
		}
		ids := s.outage(domain, letters, to)

		s.faults.Set(sink.Fault{Stage: sink.Rcpt, Action: sink.Refuse, Rate: 1})
		s.primaryUp()
		s.await(2*time.Minute, "the delivery is stopped", func() bool { return s.member("n1").NextHop(domain).Stopped })
		held := func() (n int) {
			for _, id := range ids {
				if m, _ := s.message(id); m.State() == fsm.RecipientHeld {
					n++
				}
			}
			return n
		}
		time.Sleep(30 * time.Minute)
		if n := held(); n == 0 || n > 3 {
			t.Errorf("%d of %d messages were spent", n, letters)
		}
		for _, name := range nodeNames {
			if !s.alarmed(name, admin.AlarmStopped) {
				t.Errorf("%s has no alarm", name)
			}
		}

		// It is repaired, and has even been away once more; nobody has said so.
		s.PrimaryDown()
		s.faults.Set()
		time.Sleep(time.Minute)
		s.primaryUp()
		time.Sleep(10 * time.Minute)
		if c := s.member("n2").Counts(domain); c.Queued < letters-3 {
			t.Errorf("%d of %d messages are queued before anybody has it go on", c.Queued, letters)
		}

		s.goOn(domain, ids)
		arrived := 0
		for n := range 7 {
			arrived += len(s.arrived.of(to(n)))
		}
		if arrived != 7+letters {
			t.Errorf("%d letters arrived, want each once: %d", arrived, 7+letters)
		}
	})
}

// goOn has a domain go on whose delivery was stopped, and releases what its primary had
// refused of these messages, until all is delivered.
func (s *story) goOn(domain mail.Domain, ids []string) {
	s.t.Helper()
	s.do(fsm.ResumeDomain{Name: domain})
	s.await(5*time.Minute, "all but what was refused is delivered", func() bool { return s.member("n3").Counts(domain).Queued == 0 })
	for _, id := range ids {
		if m, _ := s.message(id); m.State() == fsm.RecipientHeld {
			s.do(fsm.Release{ID: m.ID})
		}
	}
	s.await(5*time.Minute, "all is delivered", s.empty)
}

// A primary comes back and goes, and comes back, with much mail queued for it: what
// greets it is one message over one connection, and there are never more connections
// than the ceiling, whatever the nodes do.
func TestAFlappingPrimaryIsNotRunOver(t *testing.T) {
	tell(t, 701, func(t *testing.T, s *story) {
		const domain, letters, ceiling = mail.Domain("example.org"), 240, 4
		s.begin()
		ip := s.network.Host(primaryName).IP().String()
		s.do(fsm.PutDomain{Domain: fsm.Domain{
			Name: domain, Targets: []fsm.Target{{Host: ip, Port: 25}}, ConnectionsMax: ceiling,
			Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault},
		}})
		to := func(n int) string { return fmt.Sprintf("user%d@%s", n, domain) }
		s.outage(domain, letters, to)
		s.SetPace(500 * time.Millisecond)
		var returned atomic.Bool
		var greeted sync.Map // how many messages were out when the first one arrived
		s.arriving = func(a ledger.Arrival) {
			s.arrived.see(a)
			if returned.CompareAndSwap(true, false) {
				greeted.Store(a.QueueID, s.member("n1").Counts(domain).Leased)
			}
		}
		most, returns := 0, 0
		for flap := 0; flap < 100 && !s.empty(); flap++ {
			returned.Store(true)
			returns++
			s.primaryUp()
			for range 40 {
				time.Sleep(500 * time.Millisecond)
				most = max(most, int(s.primary.Stats().ConnectionsMost))
			}
			s.PrimaryDown()
			time.Sleep(20 * time.Second)
		}
		s.primaryUp()
		s.await(30*time.Minute, "all is delivered", s.empty)
		most = max(most, int(s.primary.Stats().ConnectionsMost))
		if most > ceiling {
			t.Errorf("%d connections, and %d are the ceiling", most, ceiling)
		}
		if most < 2 {
			t.Errorf("never more than %d connection: nothing was shown", most)
		}
		seen := 0
		greeted.Range(func(id, out any) bool {
			seen++
			if out.(int) != 1 {
				t.Errorf("%d messages were out when the first one arrived, %s", out, id)
			}
			return true
		})
		if seen == 0 || returns < 2 {
			t.Errorf("%d returns, %d first messages: nothing was shown", returns, seen)
		}
		for n := range letters {
			if len(s.arrived.of(to(n))) == 0 {
				t.Errorf("letter %d did not arrive", n)
			}
		}
	})
}

// A primary that takes one connection at a time gets one, though three nodes have mail
// for it: also while it returns, and where one of them cannot reach it.
//
// It holds this defect: each node had a connection of its own to a primary, however low
// the ceiling.
func TestRegressionOneConnectionForThreeNodes(t *testing.T) {
	tell(t, 703, func(t *testing.T, s *story) {
		const domain, letters = mail.Domain("example.org"), 60
		s.begin()
		ip := s.network.Host(primaryName).IP().String()
		s.do(fsm.PutDomain{Domain: fsm.Domain{
			Name: domain, Targets: []fsm.Target{{Host: ip, Port: 25}}, ConnectionsMax: 1,
			Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault},
		}})
		to := func(n int) string { return fmt.Sprintf("user%d@%s", n, domain) }
		s.SetPace(200 * time.Millisecond)
		for round, away := range []string{"", "n1", "n3"} {
			if away != "" {
				s.network.Cut(away, primaryName)
			}
			s.outage(domain, letters/3, func(n int) string { return to(round*letters/3 + n) })
			s.primaryUp()
			s.await(30*time.Minute, "all is delivered", s.empty)
			if most := s.primary.Stats().ConnectionsMost; most != 1 {
				t.Errorf("without %q: %d connections at a time", away, most)
			}
			s.network.HealAll()
		}
		for n := range letters {
			if got := len(s.arrived.of(to(n))); got != 1 {
				t.Errorf("letter %d arrived %d times", n, got)
			}
		}
	})
}

// A domain whose policy demands TLS has a primary that does not offer it: its mail waits
// on all nodes, with an alarm, and none of it goes in the clear. When the policy is
// changed it is delivered, and the alarm ends.
func TestMailWaitsForTheTLSThatItsDomainDemands(t *testing.T) {
	tell(t, 702, func(t *testing.T, s *story) {
		const domain = mail.Domain("example.org")
		s.begin()
		ip := s.network.Host(primaryName).IP().String()
		d := fsm.Domain{Name: domain, Targets: []fsm.Target{{Host: ip, Port: 25}}, ConnectionsMax: 20, TLS: fsm.TLSPolicy{Mode: fsm.TLSRequire}}
		s.do(fsm.PutDomain{Domain: d})
		s.primaryUp()
		var ids []string
		for n := range 9 {
			ids = append(ids, s.mustGive(nodeNames[n%3], letterTo{to: fmt.Sprintf("user%d@%s", n, domain), text: fmt.Sprintf("letter %d", n)}, thenRead))
		}
		alarmed := func() (n int) {
			for _, name := range nodeNames {
				if s.alarmed(name, "tls-policy") {
					n++
				}
			}
			return n
		}
		s.await(5*time.Minute, "a node has an alarm", func() bool { return alarmed() > 0 })
		time.Sleep(time.Hour)
		if c := s.member("n1").Counts(domain); c.Queued != len(ids) || alarmed() == 0 {
			t.Errorf("%+v, %d alarms", c, alarmed())
		}
		d.TLS = fsm.TLSPolicy{}
		s.do(fsm.PutDomain{Domain: d})
		for _, id := range ids {
			s.awaitState(id, 5*time.Minute, fsm.RecipientDelivered)
		}
		if n := alarmed(); n != 0 {
			t.Errorf("%d nodes have an alarm and no policy", n)
		}
	})
}
