package sim

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/fsm"
)

// hammer asks a node whether it takes mail for an address, again and again
// until the time is over, and returns how often it did. No answer may be a
// 5yz. It has no pause: the moments in which a node starts are short.
func (s *story) hammer(node string, l letterTo, until time.Time) (accepted int) {
	for time.Now().Before(until) {
		c, err := s.dial(node)
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		a := c.open(l)
		c.conn.Close()
		s.lawful(a)
		if a.code == 250 {
			accepted++
		}
	}
	return accepted
}

// A node that restarts must not speak for a cluster that it has not caught up
// with: it would refuse, for good, mail for a relay domain that it has yet to
// read about.
func TestRestartedNodeNeverRefusesARelayDomain(t *testing.T) {
	for _, victims := range [][]string{{"n1"}, {"n2"}, {"n1", "n3"}, {"n1", "n2", "n3"}} {
		for _, news := range []bool{false, true} {
			if news && len(victims) > 1 {
				continue // without a majority no domain can be added
			}
			t.Run(fmt.Sprintf("%v/domain added meanwhile=%v", victims, news), func(t *testing.T) {
				tell(t, 7, func(t *testing.T, s *story) {
					s.begin()
					for _, name := range victims {
						s.Kill(name)
					}
					l := dora
					if news {
						l.to = "dora@new.example"
						s.do(fsm.PutDomain{Domain: fsm.Domain{Name: "new.example", Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}}}})
					}
					until := time.Now().Add(20 * time.Second)
					var asking sync.WaitGroup
					accepted := make([]int, len(victims))
					for i, name := range victims {
						for range 3 {
							asking.Go(func() {
								if n := s.hammer(name, l, until); n > 0 {
									s.arrived.mu.Lock()
									accepted[i] += n
									s.arrived.mu.Unlock()
								}
							})
						}
					}
					time.Sleep(time.Second)
					s.start(victims...)
					asking.Wait()
					for i, n := range accepted {
						if n == 0 {
							t.Errorf("%s took nothing for 20 s after its start", victims[i])
						}
					}
				})
			})
		}
	}
}

// A node that was cut off and did not hear of a new relay domain must not
// refuse mail for it once the domain is there for everybody else.
//
// It holds this defect: a node whose log stood still said 550 for relay domains that it
// had not read of.
func TestRegressionCutOffNodeNeverRefusesANewRelayDomain(t *testing.T) {
	for _, oneWay := range []bool{false, true} {
		t.Run(fmt.Sprintf("one way=%v", oneWay), func(t *testing.T) {
			tell(t, 8, func(t *testing.T, s *story) {
				s.begin()
				leader, others := s.leader()
				victim := others[0]
				for _, other := range othersThan(victim) {
					s.network.CutOneWay(other, victim)
					if !oneWay {
						s.network.CutOneWay(victim, other)
					}
				}
				add := make(chan struct{})
				l := letterTo{to: "dora@new.example"}
				go func() {
					defer close(add)
					_, _ = s.node(leader).node.Member().Do(s.ctx, fsm.PutDomain{Domain: fsm.Domain{
						Name: "new.example", Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}}}})
				}()
				<-add
				heal := time.AfterFunc(10*time.Second, s.network.HealAll)
				defer heal.Stop()
				if s.hammer(victim, l, time.Now().Add(20*time.Second)) == 0 {
					t.Errorf("%s took nothing after it was back", victim)
				}
			})
		})
	}
}

// Without a quorum the banner is 421, an open session gets 451 before the body,
// nothing hangs, and nothing is refused for good. With the quorum back all is
// well.
func TestWithoutQuorum(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("others cut off=%v", cut), func(t *testing.T) {
			tell(t, 9, func(t *testing.T, s *story) {
				s.begin()
				leader, others := s.leader()
				for _, left := range []string{leader, others[0]} {
					l := letterTo{to: "dora@example.org", text: "at " + left}
					sessions := map[string]*client{}
					for _, at := range []string{"connected", "mail", "rcpt", "body"} {
						c, err := s.dial(left)
						if err != nil {
							t.Fatal(err)
						}
						defer c.conn.Close()
						sessions[at] = c
					}
					greet(t, sessions["connected"])
					greet(t, sessions["mail"], "MAIL FROM:<joan@sender.test>")
					greet(t, sessions["rcpt"], "MAIL FROM:<joan@sender.test>", "RCPT TO:<"+l.to+">")
					greet(t, sessions["body"], "MAIL FROM:<joan@sender.test>", "RCPT TO:<"+l.to+">")
					if a := sessions["body"].transmit(l); a.code != 354 {
						t.Fatalf("%+v", a)
					}
					for _, name := range othersThan(left) {
						if cut {
							s.network.Cut(left, name)
						} else {
							s.Kill(name)
						}
					}
					// At once: it does not know yet. It may refuse for now or
					// say nothing, but not for longer than a sender waits.
					began := time.Now()
					a := s.give(left, letterTo{to: l.to, text: "too early at " + left}, thenVanish)
					s.lawful(a)
					if a.accepted() {
						t.Errorf("%s took a message alone", left)
					}
					if took := time.Since(began); took > 2*time.Minute {
						t.Errorf("%s took %s to say %+v", left, took, a)
					}
					time.Sleep(10 * time.Second)
					if a := s.give(left, l, thenVanish); a.stage != "banner" || a.code != 421 {
						t.Errorf("the banner without a quorum: %+v", a)
					}
					for at, line := range map[string]string{
						"connected": "MAIL FROM:<joan@sender.test>", "rcpt": "DATA",
					} {
						if code, text, err := sessions[at].say(line); code != 451 {
							t.Errorf("an open session, %s: %d %s %v, want 451", at, code, text, err)
						}
					}
					// One that is in its transaction may go on up to DATA.
					if code, text, err := sessions["mail"].say("RCPT TO:<" + l.to + ">"); code != 451 && code != 250 {
						t.Errorf("an open session, RCPT: %d %s %v, want 250 or 451", code, text, err)
					} else if then, text, err := sessions["mail"].say("DATA"); then != 451 && (code != 451 || then != 503) {
						t.Errorf("an open session, DATA: %d %s %v, want 451", then, text, err)
					}
					// One that has the content in its hands gets a 4yz, or no answer where the
					// outcome is not known.
					began = time.Now()
					if a := sessions["body"].dot(thenVanish); a.accepted() || a.code >= 500 || errors.Is(a.err, errHangs) || time.Since(began) > 2*time.Minute {
						t.Errorf("an open session, the final dot: %+v after %s", a, time.Since(began))
					}
					s.network.HealAll()
					for _, name := range othersThan(left) {
						if !cut {
							s.start(name)
						}
					}
					s.awaitReady(nodeNames...)
					s.mustGive(left, l, thenVanish)
				}
			})
		})
	}
}

func greet(t *testing.T, c *client, lines ...string) {
	t.Helper()
	if code, text, err := c.reply(); code != 220 {
		t.Fatal(code, text, err)
	}
	for _, line := range append([]string{"EHLO sender.test"}, lines...) {
		if code, text, err := c.say(line); code != 250 {
			t.Fatal(line, code, text, err)
		}
	}
}

// The body was being received, or the dot was said, when the quorum went: the
// answer is 451 if nothing was appended, else none. It comes in time, and with
// the quorum back a retry is one message.
func TestQuorumLostWithinATransaction(t *testing.T) {
	for name, when := range map[string]time.Duration{
		"before the dot": -50 * time.Millisecond, "with the dot": 0,
		"while the body is copied": 25 * time.Millisecond, "while it is committed": 60 * time.Millisecond, "later": 90 * time.Millisecond,
	} {
		for _, node := range []string{"leader", "follower"} {
			t.Run(name+"/"+node, func(t *testing.T) {
				tell(t, 10, func(t *testing.T, s *story) {
					s.begin()
					at, others := s.leader()
					if node == "follower" {
						at = others[0]
					}
					c, err := s.dial(at)
					if err != nil {
						t.Fatal(err)
					}
					defer c.conn.Close()
					if a := c.open(dora); a.code != 250 {
						t.Fatalf("%+v", a)
					}
					if a := c.transmit(dora); a.code != 354 {
						t.Fatalf("%+v", a)
					}
					down := othersThan(at)
					go func() {
						time.Sleep(max(0, when))
						s.network.Cut(at, down[0])
						s.network.Cut(at, down[1])
					}()
					time.Sleep(max(0, -when))
					began := time.Now()
					first := c.dot(thenVanish)
					t.Logf("%d", first.code)
					s.lawful(first)
					if took := time.Since(began); took > 2*time.Minute {
						t.Errorf("the answer took %s", took)
					}
					unknown := s.nodes[at].node.Status(s.ctx).Counters.AcceptUnknown
					if first.silent() != (unknown == 1) {
						t.Errorf("the answer was %+v, and %d closes without a reply are counted", first, unknown)
					}
					// The sender goes on with the others.
					retry := s.giveUntilTaken(dora, thenVanish, down...)
					if first.accepted() && first.id != retry.id {
						t.Errorf("first %+v, then %+v", first, retry)
					}
					s.network.HealAll()
					s.awaitReady(nodeNames...)
					s.primaryUp()
					if n := s.copiesOf(dora); n != 1 {
						t.Errorf("%d copies, want 1: first %+v, then %+v", n, first, retry)
					}
				})
			})
		}
	}
}

// The leader is killed between append and answer: the client of a follower gets
// its answer from the next leader, or none; the retry is the same message.
func TestLeaderKilledBetweenAppendAndAnswer(t *testing.T) {
	for _, both := range []bool{false, true} {
		t.Run(fmt.Sprintf("without a quorum after it=%v", both), func(t *testing.T) {
			tell(t, 11, func(t *testing.T, s *story) {
				s.begin()
				leader, others := s.leader()
				at := others[0]
				c, answer := s.underWay(at, leader, dora)
				defer c.conn.Close()
				s.Kill(leader)
				if both {
					s.Kill(others[1])
				}
				first := <-answer
				switch {
				case first.refused():
					t.Errorf("the entry was appended, and the answer is %+v", first)
				case both && !first.silent():
					t.Errorf("without a quorum the answer is %+v, want none", first)
				case both:
					if n := s.nodes[at].node.Status(s.ctx).Counters.AcceptUnknown; n != 1 {
						t.Errorf("%d closes without a reply are counted, want 1", n)
					}
				case !first.accepted():
					t.Errorf("the next leader could have answered, and did not: %+v", first)
				}
				s.start(leader)
				if both {
					s.start(others[1])
				}
				s.awaitReady(nodeNames...)
				retry := s.giveUntilTaken(dora, thenVanish, others[1])
				if first.accepted() && retry.id != first.id {
					t.Errorf("%s, then %s", first.id, retry.id)
				}
				s.primaryUp()
				if n := s.copiesOf(dora); n != 1 {
					t.Errorf("%d copies, want 1", n)
				}
			})
		})
	}
}

// servers returns the Raft configuration as a node knows it.
func (s *story) servers(name string) []consensus.Server {
	return s.nodes[name].node.Member().Node().Servers()
}

// Three empty nodes found exactly one cluster, in whatever order and with
// whatever pauses they start, and restart before it is founded.
func TestThreeEmptyNodesFoundOneCluster(t *testing.T) {
	for seed := uint64(0); seed < 12; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tell(t, seed, func(t *testing.T, s *story) {
				order := slices.Clone(nodeNames)
				s.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
				for i, name := range order {
					s.start(name)
					if s.random.IntN(3) == 0 {
						// Torn, healed, or started twice before the others came.
						switch other := othersThan(name)[s.random.IntN(2)]; s.random.IntN(3) {
						case 0:
							s.network.Cut(name, other)
						case 1:
							s.network.CutOneWay(name, other)
						case 2:
							s.Kill(name)
							s.start(name)
						}
					}
					if i < 2 {
						time.Sleep(time.Duration(s.random.IntN(40_000)) * time.Millisecond)
						for _, n := range order[:i+1] {
							if s.nodes[n].node.Member().Node().HasState() {
								t.Fatalf("%d of three nodes founded a cluster", i+1)
							}
						}
					}
				}
				time.Sleep(time.Duration(s.random.IntN(5_000)) * time.Millisecond)
				s.network.HealAll()
				ctx := s.ctx
				if err := s.PutDomains(ctx); err != nil {
					t.Fatal(err)
				}
				s.awaitReady(nodeNames...)
				for _, name := range nodeNames {
					if got := s.servers(name); len(got) != 3 || !slices.Equal(got, s.servers("n1")) {
						t.Errorf("%s is in a cluster of %v", name, got)
					}
				}
				for _, name := range nodeNames {
					s.mustGive(name, letterTo{to: "dora@example.org", text: "first mail at " + name}, thenRead)
				}
			})
		})
	}
}

// A node that lost its disks founds nothing beside a cluster that lives, takes
// no part under its old id, and accepts no mail.
func TestWipedNodesFoundNothing(t *testing.T) {
	for _, wiped := range [][]string{{"n1"}, {"n3"}, {"n1", "n2"}, {"n2", "n3"}} {
		for _, cut := range []bool{false, true} {
			t.Run(fmt.Sprintf("%v/cut off from the rest=%v", wiped, cut), func(t *testing.T) {
				tell(t, 12, func(t *testing.T, s *story) {
					s.begin()
					s.mustGive("n2", dora, thenVanish)
					for _, name := range wiped {
						s.Kill(name)
						s.Wipe(name)
						for _, other := range nodeNames {
							if cut && !slices.Contains(wiped, other) {
								s.network.Cut(name, other)
							}
						}
					}
					s.start(wiped...)
					until := time.Now().Add(2 * time.Minute)
					for time.Now().Before(until) {
						for _, name := range wiped {
							a := s.give(name, letterTo{to: "dora@example.org", text: "to a wiped node"}, thenVanish)
							s.lawful(a)
							if a.code != 421 || a.stage != "banner" {
								t.Fatalf("a node without state says %+v", a)
							}
							if s.nodes[name].node.Member().Node().HasState() {
								t.Fatalf("%s has state: %v", name, s.servers(name))
							}
						}
						time.Sleep(time.Second)
					}
					if len(wiped) == 1 {
						for _, name := range othersThan(wiped[0]) {
							s.mustGive(name, letterTo{to: "dora@example.org", text: "two of three go on"}, thenVanish)
						}
						s.primaryUp()
						s.await(time.Hour, "two of three deliver", func() bool { return len(s.arrived.of(dora.to)) > 0 })
					}
				})
			})
		}
	}
}

// underWay gives a letter to one node, and returns when its Accept is in the leader's log.
// The answer to the dot comes over the channel.
func (s *story) underWay(at, leader string, l letterTo) (*client, <-chan attempt) {
	s.t.Helper()
	c, err := s.dial(at)
	if err != nil {
		s.t.Fatal(err)
	}
	if a := c.open(l); a.code != 250 {
		s.t.Fatalf("%+v", a)
	}
	if a := c.transmit(l); a.code != 354 {
		s.t.Fatalf("%+v", a)
	}
	answer := make(chan attempt, 1)
	go func() { answer <- c.dot(thenVanish) }()
	for {
		if _, ok := s.acceptOf(leader, l); ok {
			return c, answer
		}
		time.Sleep(100 * time.Microsecond)
	}
}
