package sim

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// A 250 means that a majority has the body on stable storage: cut the power of
// all three in the moment in which the client reads it, and the body is on two
// disks; bring any two back, and the message is delivered.
func TestPowerCutOfAllRightAfterA250(t *testing.T) {
	for seed := uint64(0); seed < 18; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tell(t, 100+seed, func(t *testing.T, s *story) {
				s.begin()
				var given []letterTo
				for i := range 4 {
					l := letterTo{to: fmt.Sprintf("dora%d@example.org", i), text: fmt.Sprintf("letter %d of power cut %d", i, seed)}
					s.mustGive(nodeNames[(i+int(seed))%3], l, thenVanish)
					given = append(given, l)
				}
				for _, name := range nodeNames {
					s.PowerCut(name)
				}
				for _, l := range given {
					if on := s.holders(l.text); len(on) < 2 {
						t.Errorf("%q got a 250 and is on the disks of %v only", l.text, on)
					}
				}
				// One of them never comes back, or much later.
				away := nodeNames[seed%3]
				s.start(othersThan(away)...)
				s.primaryUp()
				for _, l := range given {
					s.await(time.Hour, l.to+" is delivered", func() bool { return len(s.arrived.of(l.to)) > 0 })
				}
				s.start(away)
				s.awaitReady(nodeNames...)
				s.settleDown()
				for _, l := range given {
					if n := len(s.arrived.of(l.to)); n != 1 {
						t.Errorf("%d copies of %q", n, l.text)
					}
				}
			})
		})
	}
}

// A watched ledger calls back at each 250.
type watched struct {
	*ledger.Ledger
	accepted func()
}

func (w watched) Outcome(o ledger.Outcome) error {
	err := w.Ledger.Outcome(o)
	if o.Result == ledger.OK {
		w.accepted()
	}
	return err
}

// All nodes are killed or lose their power, at seeded moments, some of them
// right after a 250, while mail comes and goes; nothing that got a 250 is lost.
func TestAllNodesCrashAtOnce(t *testing.T) {
	for seed := uint64(0); seed < 6; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			tell(t, 200+seed, func(t *testing.T, s *story) {
				s.begin()
				took := make(chan struct{}, 1)
				s.record = watched{s.ledger, func() {
					select {
					case took <- struct{}{}:
					default:
					}
				}}
				ctx, cancel := context.WithTimeout(s.ctx, time.Hour)
				defer cancel()
				sent := make(chan error, 1)
				go func() {
					_, err := s.Send(ctx, 120, 4, 500*time.Millisecond)
					sent <- err
				}()
				if seed%2 == 1 {
					s.primaryUp()
				}
				for range 4 {
					time.Sleep(time.Duration(s.random.IntN(8_000)) * time.Millisecond)
					if s.random.IntN(2) == 0 {
						select { // right after a 250
						case <-took:
						default:
						}
						select {
						case <-took:
						case <-time.After(time.Minute):
						}
					}
					s.crash(nodeNames...)
					order := slices.Clone(nodeNames)
					s.random.Shuffle(3, func(i, j int) { order[i], order[j] = order[j], order[i] })
					time.Sleep(time.Duration(s.random.IntN(3_000)) * time.Millisecond)
					for _, name := range order {
						s.start(name)
						time.Sleep(time.Duration(s.random.IntN(3_000)) * time.Millisecond)
					}
				}
				s.primaryUp()
				if err := <-sent; err != nil {
					t.Fatal(err)
				}
				s.drain(ctx, t)
				report := s.ledger.Check()
				if !report.OK() || report.Accepted == 0 {
					t.Errorf("%+v", report)
				}
			})
		})
	}
}

// crash kills the nodes or cuts their power, as the seed will have it.
func (s *story) crash(names ...string) {
	for _, name := range names {
		if s.random.IntN(2) == 0 {
			s.Kill(name)
		} else {
			s.PowerCut(name)
		}
	}
}

func (s *story) bodies(name string) int { return s.nodes[name].node.Status(s.ctx).Spool.Bodies }

// When everything is delivered the disks hold no body any more, on all three
// nodes and soon, with the floor behind it. A node that was away during
// delivery and deletion comes back and goes on; so does the whole cluster after
// a restart, whichever two nodes come up.
func TestBodiesAreFreedAndNobodyMissesThem(t *testing.T) {
	for _, away := range nodeNames {
		t.Run("away="+away, func(t *testing.T) {
			tell(t, 13, func(t *testing.T, s *story) {
				s.begin()
				for i := range 30 {
					s.mustGive(nodeNames[i%3], letterTo{to: fmt.Sprintf("dora%d@example.org", i), text: fmt.Sprint("letter ", i)}, thenVanish)
				}
				for _, name := range nodeNames {
					s.await(time.Minute, name+" holds all bodies", func() bool { return s.bodies(name) == 30 })
				}
				s.Kill(away)
				s.primaryUp()
				left := othersThan(away)
				for _, name := range left {
					s.await(10*time.Minute, name+" has freed all bodies", func() bool { return s.bodies(name) == 0 })
					raft := s.nodes[name].node.Member().Node()
					last := raft.CommitIndex()
					s.await(10*time.Minute, "the floor of "+name+" follows", func() bool { return raft.Floor() >= last })
				}
				s.start(away)
				s.awaitReady(away)
				s.await(10*time.Minute, away+" has freed all bodies", func() bool { return s.bodies(away) == 0 })
				s.mustGive(away, letterTo{to: "eve@example.org", text: "after the return"}, thenVanish)

				s.PrimaryDown()
				for i, pair := range [][]string{left, {away, left[0]}, {left[1], away}} {
					for _, name := range nodeNames {
						s.Kill(name)
					}
					s.start(pair...)
					s.awaitReady(pair...)
					s.mustGive(pair[0], letterTo{to: fmt.Sprintf("frank%d@example.org", i), text: fmt.Sprint("with two of three ", i)}, thenVanish)
					for _, name := range nodeNames {
						if s.nodes[name] == nil {
							s.start(name)
							s.awaitReady(name)
						}
					}
				}
				s.primaryUp()
				s.await(time.Hour, "all is delivered", s.empty)
				for _, name := range nodeNames {
					s.await(10*time.Minute, name+" has freed all bodies", func() bool { return s.bodies(name) == 0 })
				}
				if got := s.totals().Accepted; got != 34 {
					t.Errorf("%d messages, want 34", got)
				}
			})
		})
	}
}

// A node is away while mail is delivered and its bodies are deleted, and lags
// behind when all restart: the entries that it lacks name bodies which nobody
// has any more, and still it must be brought up to date.
func TestFullRestartAfterBodiesWereFreedGoesOnCommitting(t *testing.T) {
	for _, lost := range []int{0, 1} { // which of the two that know it all stays away
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			tell(t, 14, func(t *testing.T, s *story) {
				s.begin()
				leader, others := s.leader()
				behind := others[1]
				s.Kill(behind)
				for i := range 20 {
					s.mustGive(leader, letterTo{to: fmt.Sprintf("dora%d@example.org", i), text: fmt.Sprint("letter ", i)}, thenVanish)
				}
				s.primaryUp()
				know := othersThan(behind)
				for _, name := range know {
					s.await(10*time.Minute, name+" has freed all bodies", func() bool { return s.bodies(name) == 0 })
				}
				for _, name := range know {
					s.PowerCut(name)
				}
				s.start(know[1-lost], behind)
				s.awaitReady(know[1-lost], behind)
				s.mustGive(behind, letterTo{to: "eve@example.org", text: "and it goes on"}, thenVanish)
				s.await(time.Hour, "all is delivered", func() bool { return len(s.arrived.of("eve@example.org")) == 1 })
				for i := range 20 {
					if n := len(s.arrived.of(fmt.Sprintf("dora%d@example.org", i))); n != 1 {
						t.Errorf("letter %d arrived %d times", i, n)
					}
				}
			})
		})
	}
}

// While no primary takes mail, each 250 leaves the body on a majority of the
// disks, whatever is cut or killed meanwhile: at no moment after it are there
// fewer than two.
func TestEvery250LeavesTwoCopies(t *testing.T) {
	tell(t, 15, func(t *testing.T, s *story) {
		s.begin()
		var given []letterTo
		for i := range 60 {
			switch i % 6 {
			case 1:
				s.cutOff(nodeNames[s.random.IntN(3)])
			case 3:
				s.network.HealAll()
			case 5:
				name := nodeNames[s.random.IntN(3)]
				s.PowerCut(name)
				s.start(name)
			}
			l := letterTo{to: fmt.Sprintf("dora%d@example.org", i), text: fmt.Sprintf("<<letter number %d>>", i)}
			s.giveUntilTaken(l, thenVanish, nodeNames...)
			given = append(given, l)
			for _, l := range given {
				if on := s.holders(l.text); len(on) < 2 {
					t.Fatalf("%q is on the disks of %v only", l.text, on)
				}
			}
		}
		s.network.HealAll()
		s.await(time.Minute, "all disks hold all", func() bool {
			for _, l := range given {
				if len(s.holders(l.text)) < 3 {
					return false
				}
			}
			return true
		})
		if got := s.totals(); got.Live != len(given) || got.Accepted != uint64(len(given)) {
			t.Errorf("%d messages are live and %d were made, want %d (%+v)", got.Live, got.Accepted, len(given), got)
		}
	})
}
