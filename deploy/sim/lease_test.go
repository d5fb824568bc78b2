package sim

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// peerName returns the node that a connection to the primary came from.
func (w *World) peerName(address string) string {
	host, _, _ := net.SplitHostPort(address)
	for _, name := range nodeNames {
		if w.network.Host(name).IP().String() == host {
			return name
		}
	}
	return ""
}

// begunOn counts the disks whose log has an entry by which the holder named the
// message as begun.
func (w *World) begunOn(holder string, id mail.QueueID) int {
	count := 0
	for _, name := range nodeNames {
		for c := range w.commands(name) {
			r, ok := c.Action.(fsm.RenewLeases)
			if ok && r.Holder == fsm.NodeName(holder) && slices.Contains(r.Begun, id) {
				count++
				break
			}
		}
	}
	return count
}

// Each dot that reaches the primary, whatever breaks, was named before: a
// majority of the logs says that this holder may have begun this message. And
// where a recipient gets a second copy, a message says so: it is marked possible
// duplicate, or nobody has read its 250.
func TestEachDotIsNamedAndEachSecondCopyMarked(t *testing.T) {
	for seed := uint64(0); seed < 3; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tell(t, 300+seed, func(t *testing.T, s *story) {
				s.begin()
				var lock sync.Mutex
				var unnamed []string
				s.arriving = func(a ledger.Arrival) {
					s.arrived.see(a)
					id, err := mail.ParseQueueID(a.QueueID)
					holder := s.peerName(a.Peer)
					if n := s.begunOn(holder, id); err != nil || n < 2 {
						lock.Lock()
						defer lock.Unlock()
						unnamed = append(unnamed, fmt.Sprintf("%s by %s is named in %d logs (%v)", a.QueueID, holder, n, err))
					}
				}
				s.primaryUp()
				s.faults.Set(sink.Fault{Stage: sink.AfterDot, Action: sink.Drop, Rate: 0.05})
				torment, done := context.WithTimeout(s.ctx, 4*time.Minute)
				defer done()
				sent := make(chan error, 1)
				go func() {
					_, err := s.Send(s.ctx, 150, 4, 5*time.Second)
					sent <- err
				}()
				names, err := s.torment(torment, faults, hasty)
				if err != nil {
					t.Fatal(names, err)
				}
				s.network.HealAll()
				s.faults.Set()
				s.primaryUp()
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				s.drain(s.ctx, t)
				for _, text := range unnamed {
					t.Error(text)
				}
				s.checkSecondCopies()
				if report := s.ledger.Check(); !report.OK() {
					t.Errorf("%+v", report)
				}
			})
		})
	}
}

// checkSecondCopies fails the test for each recipient that got more than one copy when
// no message tells of it: one that came again under its own id is marked, and of two
// messages one was not settled.
func (s *story) checkSecondCopies() {
	s.t.Helper()
	ids := map[string][]string{}
	for _, a := range s.arrived.all {
		ids[a.Recipient] = append(ids[a.Recipient], a.QueueID)
	}
	seconds := 0
	for recipient, copies := range ids {
		if len(copies) == 1 {
			continue
		}
		seconds++
		times, unsettled := map[string]int{}, false
		for _, id := range copies {
			m, ok := s.message(id)
			unsettled = unsettled || ok && !m.Settled
			if times[id]++; times[id] == 2 && !(ok && m.PossibleDuplicate) {
				s.t.Errorf("%s got %v, and %s is not marked", recipient, copies, id)
			}
		}
		if len(times) > 1 && !unsettled {
			s.t.Errorf("%s got %v, and every message was settled", recipient, copies)
		}
	}
	s.t.Logf("%d recipients, %d with more than one copy", len(ids), seconds)
}

// onlyPart returns the only part of a message.
func (s *story) onlyPart(id string) fsm.Part {
	m, ok := s.message(id)
	if !ok {
		return fsm.Part{}
	}
	return m.Parts[0]
}

// operator is what a person does to one message.
type operator struct {
	name string
	acts []fsm.Action
	// Copies that must arrive in the end, when the dot was or was not sent
	// before.
	afterDot, beforeDot int
	held                bool // it is held at the end
}

func operators(id mail.QueueID) []operator {
	hold, release, remove := fsm.Hold{ID: id, Reason: "test"}, fsm.Release{ID: id}, fsm.Remove{ID: id}
	return []operator{
		{"hold, release", []fsm.Action{hold, release}, 1, 1, false},
		{"hold, release, hold", []fsm.Action{hold, release, hold}, 1, 0, true},
		{"remove", []fsm.Action{remove}, 1, 0, false},
		{"hold, remove", []fsm.Action{hold, remove}, 1, 0, false},
	}
}

// Within one lease, with the dot sent and the reply on its way, nothing that an
// operator does lets anybody send a second one.
func TestOperatorWithinALeaseAfterTheDot(t *testing.T) {
	for i := range operators(mail.QueueID{}) {
		t.Run(operators(mail.QueueID{})[i].name, func(t *testing.T) {
			tell(t, 20, func(t *testing.T, s *story) {
				s.begin()
				id := s.mustGive("n1", dora, thenRead)
				op := operators(s.queueID(id))[i]
				s.SetPace(5 * time.Minute)
				s.primaryUp()
				s.await(5*time.Minute, "it is begun", func() bool { return s.onlyPart(id).Begun })
				time.Sleep(2 * time.Second) // the dot is sent
				for _, act := range op.acts {
					s.do(act)
					time.Sleep(time.Second)
				}
				time.Sleep(3 * time.Minute)
				s.SetPace(0) // whoever comes second would be quick
				time.Sleep(12 * time.Minute)
				if n := len(s.arrived.of(dora.to)); n != op.afterDot {
					t.Errorf("%d copies arrived, want %d", n, op.afterDot)
				}
				m, _ := s.message(id)
				want := fsm.RecipientDelivered
				if slices.ContainsFunc(op.acts, func(a fsm.Action) bool { _, ok := a.(fsm.Remove); return ok }) {
					want = fsm.RecipientRemoved
					if m.Recipients[0].DeliveredLate == 0 {
						t.Errorf("it was delivered after it was removed, and nobody noted that: %+v", m)
					}
				}
				if m.State() != want {
					t.Errorf("it is %s, want %s", m.State(), want)
				}
			})
		})
	}
}

// Within one lease and before the dot: the holder is cut off from the others in
// the moment of the grant, before it could have named the message as begun. It
// must not send the dot on what it knew, and what the operator did stands.
func TestOperatorWithinALeaseBeforeTheDot(t *testing.T) {
	tried := 0
	for i := range operators(mail.QueueID{}) {
		for _, away := range []time.Duration{5 * time.Second, 3 * time.Minute} {
			for seed := uint64(0); seed < 2; seed++ {
				t.Run(fmt.Sprintf("%s/back after %s/%d", operators(mail.QueueID{})[i].name, away, seed), func(t *testing.T) {
					tell(t, 400+seed, func(t *testing.T, s *story) {
						s.begin()
						id := s.mustGive("n1", dora, thenRead)
						op := operators(s.queueID(id))[i]
						s.primaryUp()
						for s.onlyPart(id).Lease == 0 {
							time.Sleep(100 * time.Microsecond)
						}
						holder := string(s.onlyPart(id).Holder)
						s.cutOff(holder)
						others := othersThan(holder)
						time.Sleep(4 * time.Second) // they notice
						s.await(time.Minute, "the others have a leader", func() bool {
							return s.nodes[others[0]].node.Member().Ready() == nil && s.nodes[others[1]].node.Member().Ready() == nil
						})
						view, _ := s.member(others[0]).Message(s.queueID(id))
						if view.Parts[0].Begun {
							t.Skip("it was named too soon")
						}
						tried++
						for _, act := range op.acts {
							ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
							if _, err := s.nodes[others[0]].node.Member().Do(ctx, act); err != nil {
								t.Fatal(err)
							}
							cancel()
						}
						time.Sleep(away)
						s.network.HealAll()
						time.Sleep(6 * time.Minute)
						if n := len(s.arrived.of(dora.to)); n != op.beforeDot {
							t.Errorf("%d copies arrived, want %d", n, op.beforeDot)
						}
						if got := s.totals().Marked; got != 0 {
							t.Errorf("%d messages are marked, and no dot was ever sent twice or in doubt", got)
						}
					})
				})
			}
		}
	}
	if tried == 0 {
		t.Error("the story was never told: the message was always named too soon")
	}
}

// After a dot without a reply the message is left alone for doubt_wait, whatever
// the operator does.
func TestOperatorInDoubtWait(t *testing.T) {
	flush := fsm.FlushDomain{Name: "example.org"}
	for name, op := range map[string]struct {
		acts   func(mail.QueueID) []fsm.Action
		copies int
	}{
		"nothing":       {func(mail.QueueID) []fsm.Action { return nil }, 2},
		"flush":         {func(mail.QueueID) []fsm.Action { return []fsm.Action{flush, flush} }, 2},
		"hold, release": {func(id mail.QueueID) []fsm.Action { return []fsm.Action{fsm.Hold{ID: id}, fsm.Release{ID: id}, flush} }, 2},
		"hold":          {func(id mail.QueueID) []fsm.Action { return []fsm.Action{fsm.Hold{ID: id}} }, 1},
		"remove":        {func(id mail.QueueID) []fsm.Action { return []fsm.Action{fsm.Remove{ID: id}} }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			tell(t, 21, func(t *testing.T, s *story) {
				s.begin()
				id := s.mustGive("n1", dora, thenRead)
				s.faults.Set(sink.Fault{Stage: sink.AfterDot, Action: sink.Drop, Rate: 1})
				s.primaryUp()
				s.await(5*time.Minute, "in doubt", func() bool { return s.onlyPart(id).DoubtUntil > 0 })
				s.faults.Set()
				for _, act := range op.acts(s.queueID(id)) {
					s.do(act)
				}
				// The doubt outlives its leader.
				leader, _ := s.leader()
				s.Kill(leader)
				time.Sleep(10 * time.Second)
				s.start(leader)
				time.Sleep(30 * time.Minute)
				got := s.arrived.of(dora.to)
				if len(got) != op.copies {
					t.Fatalf("%d copies, want %d", len(got), op.copies)
				}
				if len(got) == 2 && got[1].At.Sub(got[0].At) < 10*time.Minute {
					t.Errorf("the second dot came %s after the first", got[1].At.Sub(got[0].At))
				}
				m, _ := s.message(id)
				if totals := s.totals(); !m.PossibleDuplicate || totals.DoubtsReported != 1 || totals.DoubtsExpired != 0 {
					t.Errorf("marked: %v, counted: %+v", m.PossibleDuplicate, totals)
				}
			})
		})
	}
}

// The holder has sent the dot and is cut off while the primary thinks about its
// reply; leadership moves each minute. Its lease ends, and still nobody sends a
// second dot within doubt_wait; when the holder comes back with the reply there
// is none at all. If it comes back too late, the second copy is marked and the
// first is noted.
func TestHolderCutOffWhileThePrimaryThinks(t *testing.T) {
	for _, c := range []struct {
		thinks, away, moves time.Duration
		copies              int
	}{
		// Each leader starts anew with the lease's time: with a move each minute
		// the lease does not even expire.
		{time.Minute, 2 * time.Minute, time.Minute, 1},
		{9 * time.Minute, 570 * time.Second, time.Minute, 1},
		{3 * time.Minute, 4 * time.Minute, 80 * time.Second, 1},
		{9 * time.Minute, 570 * time.Second, 80 * time.Second, 1},
		{9 * time.Minute, 570 * time.Second, 3 * time.Minute, 1},
		{3 * time.Minute, 16 * time.Minute, 4 * time.Minute, 2},
	} {
		t.Run(fmt.Sprintf("thinks %s, cut off %s, moves %s", c.thinks, c.away, c.moves), func(t *testing.T) {
			tell(t, 22, func(t *testing.T, s *story) {
				s.begin()
				id := s.mustGive("n1", dora, thenRead)
				s.SetPace(c.thinks)
				s.primaryUp()
				s.await(5*time.Minute, "it is begun", func() bool { return s.onlyPart(id).Begun })
				time.Sleep(2 * time.Second) // the dot is sent
				began := time.Now()
				holder := string(s.onlyPart(id).Holder)
				s.cutOff(holder)
				s.SetPace(0)
				for n := 0; time.Since(began) < c.away; n++ {
					time.Sleep(min(c.moves, c.away-time.Since(began)))
					victim := othersThan(holder)[n%2]
					if leader := s.Leader(); leader != "" && leader != holder {
						victim = leader
					}
					s.Kill(victim)
					time.Sleep(100 * time.Millisecond)
					s.start(victim)
				}
				s.network.HealAll()
				s.awaitState(id, time.Hour, fsm.RecipientDelivered)
				if n := s.copiesOf(dora); n != c.copies {
					t.Errorf("%d copies, want %d", n, c.copies)
				}
				got := s.arrived.of(dora.to)
				totals := s.totals()
				if c.moves > time.Minute && totals.DoubtsExpired == 0 {
					t.Errorf("the lease did not expire: the story is about something else")
				}
				if c.copies == 2 {
					if totals.DeliveredLate != 1 || totals.Marked != 1 {
						t.Errorf("the late report is not noted: %+v", totals)
					}
					// The arrival of the first is written down when the primary has
					// thought; its dot came before began.
					last := got[0].At
					for _, a := range got {
						if a.At.After(last) {
							last = a.At
						}
					}
					if last.Sub(began) < 10*time.Minute {
						t.Errorf("the second dot came %s after the first", last.Sub(began))
					}
				}
				if uint64(c.copies-1) > totals.DoubtsReported+totals.DoubtsExpired {
					t.Errorf("%d copies, counted %+v", c.copies, totals)
				}
			})
		})
	}
}

// lastEntry returns the newest entry in the log on a disk whose action the
// caller picks, 0 for none.
func (w *World) lastEntry(name string, picks func(fsm.Action) bool) fsm.Index {
	first, last := w.disks[name].raft.Bounds()
	for i := last; i >= first && i > 0; i-- {
		entry, ok := w.disks[name].raft.Entry(i)
		if !ok || entry.Type != raft.LogCommand {
			continue
		}
		if c, err := fsm.DecodeCommand(entry.Data); err == nil && picks(c.Action) {
			return fsm.Index(i)
		}
	}
	return 0
}

// The leader decides to end a lease while a renewal of it is in its log and not
// applied: the ExpireLeases that follows is void. A holder that was told that
// its lease is renewed has it.
func TestExpireLeasesBehindARenewalIsVoid(t *testing.T) {
	told := 0
	// How long a renewal is on its way depends on the disks. Three are always tried.
	for n, ahead := range []time.Duration{10, 20, 30, 15, 25, 5, 8, 12, 18, 22} {
		if n >= 3 && told > 0 {
			break
		}
		ahead *= time.Millisecond
		t.Run(ahead.String(), func(t *testing.T) {
			tell(t, 24, func(t *testing.T, s *story) {
				s.begin()
				leader, others := s.leader()
				s.network.Cut(leader, primaryName) // somebody else is to hold it
				id := s.mustGive(leader, dora, thenRead)
				s.SetPace(8 * time.Minute)
				s.primaryUp()
				s.await(5*time.Minute, "it is begun", func() bool { return s.onlyPart(id).Begun })
				holder, token := string(s.onlyPart(id).Holder), s.onlyPart(id).Lease
				if !slices.Contains(others, holder) {
					t.Fatalf("%s holds it", holder)
				}
				// The leader looks once a second, and proposes its ticks when it does.
				log := s.disks[leader].raft
				isTick := func(a fsm.Action) bool { _, ok := a.(fsm.Tick); return ok }
				var look time.Time
				for before := s.lastEntry(leader, isTick); s.lastEntry(leader, isTick) == before; look = time.Now() {
					_, end := log.Bounds()
					for last := end; last == end; _, last = log.Bounds() {
						time.Sleep(time.Millisecond)
					}
				}
				// A renewal is applied, and from then on the holder is cut off.
				renewal := func() fsm.Index { l, _ := s.member(leader).Lease(token); return l.Renewal }
				before := renewal()
				for renewal() == before {
					time.Sleep(time.Millisecond)
				}
				applied, last := time.Now(), renewal()
				s.cutOff(holder)
				// The leader first sees that at its next look, and ends the lease at the
				// first look that is more than 61 s after that one.
				for look.Before(applied) {
					look = look.Add(time.Second)
				}
				time.Sleep(time.Until(look.Add(62*time.Second - ahead)))
				if renewal() != last {
					t.Fatal("the lease has gone or was renewed")
				}
				result, err := s.nodes[leader].node.Member().Do(s.ctx, fsm.RenewLeases{
					Holder: fsm.NodeName(holder), Token: token, Request: fsm.RequestID{Boot: 1, Number: 1}, Begun: []mail.QueueID{s.queueID(id)},
				})
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				renewed := result.Verdict == fsm.Done && len(result.Messages) == 0
				expired := s.lastEntry(leader, func(a fsm.Action) bool {
					e, ok := a.(fsm.ExpireLeases)
					return ok && e.Renewal == last
				}) != 0
				t.Logf("renewed: %v, and an expiry of the renewal before is in the log: %v", renewed, expired)
				if renewed && s.onlyPart(id).Lease != token {
					t.Errorf("the holder was told that its lease is renewed, and it ended: %+v", s.onlyPart(id))
				}
				if renewed && expired {
					told++
				}
				s.network.HealAll()
				s.awaitState(id, 20*time.Minute, fsm.RecipientDelivered)
				if n := s.copiesOf(dora); n != 1 {
					t.Errorf("%d copies", n)
				}
			})
		})
	}
	if told == 0 {
		t.Error("the story was never told: no renewal and expiry were on their way together")
	}
	t.Logf("told %d times", told)
}

// A link breaks for about as long as a lease lasts, so that the renewal and the
// leader's ExpireLeases are on their way together; and the leader itself is cut
// off between its decision and its proposal. There is one dot.
func TestRenewalAndExpiryTogether(t *testing.T) {
	for _, who := range []string{"holder", "leader"} {
		for away := 46 * time.Second; away <= 66*time.Second; away += 10 * time.Second {
			t.Run(fmt.Sprintf("%s cut off %s", who, away), func(t *testing.T) {
				tell(t, uint64(away.Seconds()), func(t *testing.T, s *story) {
					s.begin()
					id := s.mustGive("n1", dora, thenRead)
					s.SetPace(8 * time.Minute)
					s.primaryUp()
					s.await(5*time.Minute, "it is begun", func() bool { return s.onlyPart(id).Begun })
					time.Sleep(2 * time.Second)
					s.SetPace(0)
					for range 3 {
						victim := string(s.onlyPart(id).Holder)
						if who == "leader" || victim == "" {
							victim, _ = s.leader()
						}
						s.cutOff(victim)
						time.Sleep(away)
						s.network.HealAll()
						time.Sleep(time.Duration(s.random.IntN(10_000)) * time.Millisecond)
					}
					s.awaitState(id, 10*time.Minute, fsm.RecipientDelivered)
					if n := s.copiesOf(dora); n != 1 {
						t.Errorf("%d copies", n)
					}
				})
			})
		}
	}
}

// A node that is stopped cleanly hands its leases back: whoever comes next does
// not wait for them to expire. Transactions under way are finished, and nothing
// is sent twice.
func TestCleanStopUnderLoad(t *testing.T) {
	for _, which := range []string{"leader", "follower"} {
		t.Run(which, func(t *testing.T) {
			tell(t, 23, func(t *testing.T, s *story) {
				s.begin()
				sent := make(chan error, 1)
				go func() {
					_, err := s.Send(s.ctx, 400, 6, 300*time.Millisecond)
					sent <- err
				}()
				time.Sleep(3 * time.Second)
				s.SetPace(5 * time.Second)
				for round := range 4 {
					victim, others := s.leader()
					if which == "follower" {
						victim = others[round%2]
					}
					// It alone reaches the primary: two nodes may else have all the
					// connections for minutes. No transaction is under way that this breaks.
					s.network.HealAll()
					for _, other := range othersThan(victim) {
						s.network.Cut(other, primaryName)
					}
					if round == 0 {
						s.primaryUp()
					}
					held := func() (n int) {
						view := s.member(othersThan(victim)[0])
						for _, l := range view.Leases() {
							// One that was never renewed may be one that its holder never
							// heard of: the answer was lost with a leader. It expires.
							if l.Holder == fsm.NodeName(victim) && l.Renewal > fsm.Index(l.Token) {
								n += len(l.Messages)
							}
						}
						return n
					}
					s.await(2*time.Minute, victim+" holds a lease", func() bool {
						return held() > 1
					})
					if err := s.Stop(victim); err != nil {
						t.Errorf("stop %s: %v", victim, err)
					}
					// Soon after an election at most, and long before they would expire.
					s.await(10*time.Second, "the leases of "+victim+" are handed back", func() bool { return held() == 0 })
					s.network.Cut(victim, primaryName)
					s.start(victim)
					s.awaitReady(victim)
				}
				s.network.HealAll()
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				s.drain(s.ctx, t)
				report := s.ledger.Check()
				totals := s.totals()
				if !report.OK() || report.Duplicates != 0 || totals.Marked != 0 {
					t.Errorf("%+v %+v", report, totals)
				}
			})
		})
	}
}
