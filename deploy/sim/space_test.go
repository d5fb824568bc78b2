package sim

import (
	"fmt"
	"testing"
	"time"
)

// fill sets how much of a node's disk is free, in per cent, and waits until the
// others have heard of it.
func (s *story) fill(name string, free int64) {
	s.disks[name].free.Store(free)
	time.Sleep(10 * time.Second)
}

// mustRefuse: the node says 452 4.3.1 before it is given anything.
func (s *story) mustRefuse(name string) {
	s.t.Helper()
	a := s.give(name, letterTo{to: "dora@example.org", text: "too much"}, thenVanish)
	if a.code != 452 || a.stage != "mail" {
		s.t.Errorf("%s: %+v", name, a)
	}
}

// One voter is low on space: it takes no mail itself, and the others go on, also
// when it leads, since it hands leadership over. Two of three are low: nobody
// takes mail. With room again all do.
func TestLowDisks(t *testing.T) {
	for _, leads := range []bool{true, false} {
		t.Run(fmt.Sprintf("leads=%v", leads), func(t *testing.T) {
			tell(t, 51, func(t *testing.T, s *story) {
				s.begin()
				leader, others := s.leader()
				low := leader
				if !leads {
					low = others[0]
				}
				term := s.node(low).node.Member().Node().Term()
				s.fill(low, 14)
				now, _ := s.leader()
				if (now != leader) != leads {
					t.Errorf("%s led, %s leads, low is %s", leader, now, low)
				}
				s.awaitReady(nodeNames...)
				if after := s.node(low).node.Member().Node().Term(); after > term+3 {
					t.Errorf("term %d, was %d: leadership does not come to rest", after, term)
				}
				s.mustRefuse(low)
				for _, name := range othersThan(low) {
					s.mustGive(name, letterTo{to: "eve@example.org", text: "through " + name}, thenVanish)
				}
				// The low one still takes what the others push to it.
				s.await(time.Minute, "three copies", func() bool { return len(s.holders("through "+othersThan(low)[0])) == 3 })

				second := othersThan(low)[0]
				s.fill(second, 14)
				for _, name := range nodeNames {
					s.mustRefuse(name)
				}
				s.fill(low, 50)
				s.fill(second, 50)
				for i, name := range nodeNames {
					s.mustGive(name, letterTo{to: fmt.Sprintf("frank%d@example.org", i), text: "room again"}, thenVanish)
				}
			})
		})
	}
}

// A disk that is nearly full takes no bodies from other nodes, and mail goes on
// with the two copies of the others. All disks nearly full: nobody accepts mail,
// and what was accepted before is delivered.
func TestFullDisks(t *testing.T) {
	tell(t, 52, func(t *testing.T, s *story) {
		s.begin()
		leader, others := s.leader()
		s.mustGive(leader, letterTo{to: "dora@example.org", text: "before"}, thenVanish)
		full := others[0]
		s.fill(full, 9)
		text := "without the full one"
		s.mustGive(leader, letterTo{to: "eve@example.org", text: text}, thenVanish)
		time.Sleep(time.Minute)
		if on := s.holders(text); len(on) != 2 {
			t.Errorf("on %v", on)
		}
		for _, name := range nodeNames {
			s.fill(name, 9)
		}
		for _, name := range nodeNames {
			s.mustRefuse(name)
		}
		s.primaryUp()
		for _, to := range []string{"dora@example.org", "eve@example.org"} {
			if n := s.copiesOf(letterTo{to: to}); n != 1 {
				t.Errorf("%d copies for %s", n, to)
			}
		}
	})
}
