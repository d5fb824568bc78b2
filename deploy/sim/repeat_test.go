package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
)

// refuseAllRecipients is a primary that knows nobody.
var refuseAllRecipients = sink.Fault{Stage: sink.Rcpt, Action: sink.Refuse, Rate: 1}

var dora = letterTo{to: "dora@example.org", text: "the letter to Dora"}

// acceptOf finds the newest Accept for a letter in the log on a disk.
func (w *World) acceptOf(name string, l letterTo) (fsm.Accept, bool) {
	for c := range w.commands(name) {
		if a, ok := c.Action.(fsm.Accept); ok && a.Envelope.Recipients[0].Path.String() == l.to {
			return a, true
		}
	}
	return fsm.Accept{}, false
}

// stranded gives a letter to the leader such that the Accept is in its log and
// in no other, and the leader is cut off. The others' disks hang while they are
// sent it, and they die before it is written. The answer comes over the channel.
// Where the sender gives up, it hangs up at that moment.
func (s *story) stranded(l letterTo, givesUp bool) (old string, others []string, answer chan attempt) {
	s.t.Helper()
	old, others = s.leader()
	c, err := s.dial(old)
	if err != nil {
		s.t.Fatal(err)
	}
	if a := c.open(l); a.code != 250 {
		s.t.Fatalf("%+v", a)
	}
	if a := c.transmit(l); a.code != 354 || a.err != nil {
		s.t.Fatalf("%+v", a)
	}
	for _, other := range others {
		s.nodes[other].raft.Block()
	}
	answer = make(chan attempt, 1)
	go func() {
		defer c.conn.Close()
		answer <- c.dot(thenRead)
	}()
	s.await(time.Second, "all hold the body", func() bool { return len(s.holders(l.text)) == 3 })
	s.await(time.Second, "the old leader has the entry", func() bool { _, ok := s.acceptOf(old, l); return ok })
	s.cutOff(old)
	s.crash(others...)
	s.start(others...)
	for _, other := range others {
		if _, ok := s.acceptOf(other, l); ok {
			s.t.Fatalf("%s has the entry too: the story is about something else", other)
		}
	}
	if givesUp {
		c.conn.Close()
	}
	return old, others, answer
}

// The old leader is cut off with our entry in its log; the sender tries the
// next node, and the log of the next node wins.
func TestRetryWhileOldLeaderIsCutOffNextLogWins(t *testing.T) {
	for _, healAfter := range []time.Duration{5 * time.Second, 20 * time.Second, 90 * time.Second} {
		for _, givesUp := range []bool{true, false} {
			t.Run(fmt.Sprintf("heal=%s/sender gives up=%v", healAfter, givesUp), func(t *testing.T) {
				tell(t, 1, func(t *testing.T, s *story) {
					s.begin()
					old, others, answer := s.stranded(dora, givesUp)
					began := time.Now()
					retry := s.giveUntilTaken(dora, thenVanish, others...)
					if took := time.Since(began); took < healAfter {
						time.Sleep(healAfter - took)
					}
					s.network.HealAll()
					first := <-answer
					if first.refused() {
						t.Errorf("the old leader answered %d %s: its entry might have been committed", first.code, first.text)
					}
					if first.accepted() && first.id != retry.id {
						t.Errorf("the old leader answered with %s, the retry with %s", first.id, retry.id)
					}
					s.awaitReady(old)
					s.primaryUp()
					if n := s.copiesOf(dora); n != 1 {
						t.Errorf("%d copies arrived, want 1 (the retry was not settled)", n)
					}
					if got := s.totals().Accepted; got != 1 {
						t.Errorf("%d messages were made, want 1", got)
					}
				})
			})
		}
	}
}

// As before, but the old leader's log wins: its entry is committed after all.
// What the next node said to the retry before that, 451 or nothing, changes
// nothing.
func TestRetryWhileOldLeaderIsCutOffOldLogWins(t *testing.T) {
	tell(t, 2, func(t *testing.T, s *story) {
		s.begin()
		old, others, answer := s.stranded(dora, true)
		// No two nodes reach one another: the retry is refused or not answered.
		s.network.Cut(others[0], others[1])
		for range 10 {
			a := s.give(others[0], dora, thenVanish)
			s.lawful(a)
			if a.accepted() {
				t.Fatalf("a node alone took a message: %+v", a)
			}
			time.Sleep(time.Second)
		}
		s.network.Heal(old, others[0])
		s.await(time.Minute, "the entry of the old leader is committed", func() bool {
			return s.member(others[0]).Totals().Accepted == 1
		})
		<-answer
		accept, _ := s.acceptOf(old, dora)
		if retry := s.giveUntilTaken(dora, thenVanish, others[0]); retry.id != accept.Body.ID.String() {
			t.Errorf("the retry was answered with %s, want the first copy's %s", retry.id, accept.Body.ID)
		}
		s.network.HealAll()
		s.awaitReady(nodeNames...)
		s.primaryUp()
		if n := s.copiesOf(dora); n != 1 {
			t.Errorf("%d copies arrived, want 1", n)
		}
	})
}

// The retry is committed, read and settled before the first node asks again
// with its own id: a second message, which nobody can recognise. It stays
// unsettled for good and can be found by that.
func TestLateFirstAcceptIsAnUnsettledStray(t *testing.T) {
	tell(t, 3, func(t *testing.T, s *story) {
		s.begin()
		_, others, answer := s.stranded(dora, true)
		retry := s.giveUntilTaken(dora, thenRead, others...)
		s.await(10*time.Second, "the retry is settled", func() bool { m, _ := s.message(retry.id); return m.Settled })
		s.network.HealAll()
		<-answer
		s.await(time.Minute, "the first node has asked again", func() bool { return s.totals().Accepted == 2 })
		s.primaryUp()
		n := s.copiesOf(dora)
		if totals := s.totals(); n != 2 || totals.Unsettled != 1 {
			t.Errorf("%d copies and %d unsettled messages, want 2 copies and 1 to account for the second", n, totals.Unsettled)
		}
	})
}

// The sender did not read the 250 and sends again through another node, after
// the accepting node was restarted: the answer depends on what became of the
// first copy.
func TestRetryOfAMessageInEachState(t *testing.T) {
	for _, state := range []string{"queued", "held", "held after a refusal", "delivered", "removed"} {
		t.Run(state, func(t *testing.T) {
			tell(t, 4, func(t *testing.T, s *story) {
				s.begin()
				_, others := s.leader()
				a, b := others[0], others[1]
				first := s.mustGive(a, dora, thenVanish)
				id := s.queueID(first)
				switch state {
				case "held":
					s.do(fsm.Hold{ID: id, Reason: "test"})
				case "held after a refusal":
					s.faults.Set(refuseAllRecipients)
					s.primaryUp()
					s.awaitState(first, 5*time.Minute, fsm.RecipientHeld)
				case "delivered":
					s.primaryUp()
					s.awaitState(first, 5*time.Minute, fsm.RecipientDelivered)
				case "removed":
					s.do(fsm.Remove{ID: id})
				}
				s.Kill(a)
				time.Sleep(3 * time.Second)
				s.start(a)
				s.awaitReady(a, b)
				again := s.mustGive(b, dora, thenVanish)
				want, copies := first, 1
				if state == "removed" {
					want = ""
				}
				if want != "" && again != want {
					t.Errorf("the retry of a %s message was answered with %s, want %s", state, again, want)
				}
				if state == "removed" && again == first {
					t.Errorf("the retry of a removed message got a 250 for nothing")
				}
				if m, ok := s.message(first); ok && m.Settled {
					t.Errorf("a 250 whose client sent QUIT with the dot was taken for read")
				}
				s.faults.Set()
				if m, _ := s.message(again); m.State() == fsm.RecipientHeld {
					s.do(fsm.Release{ID: id})
				}
				s.primaryUp()
				if n := s.copiesOf(dora); n != copies {
					t.Errorf("%d copies arrived, want %d", n, copies)
				}
			})
		})
	}
}

// The same bytes twice, the first 250 provably read: two messages, on one node
// as on two. Without proof: one.
func TestSameBytesTwice(t *testing.T) {
	for _, proven := range []bool{true, false} {
		for _, nodes := range []int{1, 2} {
			t.Run(fmt.Sprintf("read=%v/nodes=%d", proven, nodes), func(t *testing.T) {
				tell(t, 5, func(t *testing.T, s *story) {
					s.begin()
					f, want := thenVanish, 1
					if proven {
						f, want = thenRead, 2
					}
					a, b := "n1", "n1"
					if nodes == 2 {
						b = "n2"
					}
					first := s.mustGive(a, dora, f)
					if nodes == 2 && proven {
						// Another node learns of the proof from the log.
						s.await(10*time.Second, "settled", func() bool { m, _ := s.message(first); return m.Settled })
					}
					second := s.mustGive(b, dora, f)
					if (first == second) != !proven {
						t.Errorf("answered with %s, then with %s", first, second)
					}
					s.primaryUp()
					if n := s.copiesOf(dora); n != want {
						t.Errorf("%d copies arrived, want %d", n, want)
					}
				})
			})
		}
	}
}

// On one connection the second message follows at once, so its Accept must
// carry the first's proof itself, whatever else is under way.
func TestSameBytesTwiceOnOneConnection(t *testing.T) {
	tell(t, 6, func(t *testing.T, s *story) {
		s.begin()
		for _, node := range nodeNames {
			c, err := s.dial(node)
			if err != nil {
				t.Fatal(err)
			}
			code, _, _ := c.reply()
			if code != 220 {
				t.Fatal("no banner")
			}
			c.say("EHLO sender.test")
			ids := map[string]bool{}
			const rounds = 8
			l := letterTo{to: "twice-" + node + "@example.org", text: "the same each time at " + node}
			for range rounds {
				for _, line := range []string{"MAIL FROM:<joan@sender.test>", "RCPT TO:<" + l.to + ">"} {
					if code, text, err := c.say(line); code != 250 {
						t.Fatal(line, code, text, err)
					}
				}
				if a := c.transmit(l); a.code != 354 {
					t.Fatalf("%+v", a)
				}
				c.conn.Write([]byte(".\r\n"))
				code, text, err := c.reply()
				if code != 250 {
					t.Fatal(code, text, err)
				}
				ids[text] = true
			}
			c.conn.Close()
			if len(ids) != rounds {
				t.Errorf("%s: %d messages one after the other got %d ids", node, rounds, len(ids))
			}
		}
	})
}

// A sender whose connection breaks behind the dot, before the reply, tries again through
// each other node in turn, whichever came first, and without reading a reply: it is one
// message, under one id, before the primary has it and behind that.
func TestRetryThroughEachOtherNode(t *testing.T) {
	for i, first := range nodeNames {
		others := othersThan(first)
		for _, order := range [][]string{others, {others[1], others[0]}} {
			t.Run(fmt.Sprintf("%s, then %s", first, order), func(t *testing.T) {
				tell(t, 7+uint64(i), func(t *testing.T, s *story) {
					s.begin()
					s.loseBehindDot(first, dora)
					var accept fsm.Accept
					s.await(time.Minute, "it is queued", func() (ok bool) {
						// A follower may write an entry behind the leader that has applied it.
						accept, ok = s.acceptOf(first, dora)
						return ok && s.totals().Accepted == 1
					})
					retry := func(node string) {
						s.loseBehindDot(node, dora)
						if again := s.mustGive(node, dora, thenVanish); again != accept.Body.ID.String() {
							t.Errorf("%s answers with %s, want %s", node, again, accept.Body.ID)
						}
					}
					for _, node := range order {
						retry(node)
					}
					s.primaryUp()
					s.awaitState(accept.Body.ID.String(), 5*time.Minute, fsm.RecipientDelivered)
					for _, node := range append(order, first) {
						retry(node)
					}
					if n := s.copiesOf(dora); n != 1 {
						t.Errorf("%d copies arrived, want 1", n)
					}
					if got := s.totals(); got.Accepted != 1 || got.Repeats < 9 {
						t.Errorf("%d messages and %d repeats, want one message and each retry a repeat", got.Accepted, got.Repeats)
					}
				})
			})
		}
	}
}

// loseBehindDot gives a letter to a node and is gone before the reply to the dot.
func (s *story) loseBehindDot(node string, l letterTo) {
	s.t.Helper()
	c, err := s.dial(node)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.conn.Close()
	if a := c.open(l); a.code != 250 {
		s.t.Fatalf("%+v", a)
	}
	if a := c.transmit(l); a.code != 354 || a.err != nil {
		s.t.Fatalf("%+v", a)
	}
	if _, err := c.conn.Write([]byte(".\r\n")); err != nil {
		s.t.Fatal(err)
	}
}
