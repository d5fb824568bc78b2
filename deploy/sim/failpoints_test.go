package sim

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// What has to happen so that a node comes to a moment.
type occasion int

const (
	mailComesAndGoes occasion = iota
	leaderDies                // so that there is an election
	nodeWasAway               // and misses bodies that the others do not push any more
)

// moments are the failpoints, in the order in which a message meets them.
// docs/testing.md says what each lies between.
var moments = []struct {
	name string
	when occasion
}{
	{"accept: body read", mailComesAndGoes},
	{"spool: written", mailComesAndGoes},
	{"spool: synced", mailComesAndGoes},
	{"spool: segment begun", mailComesAndGoes},
	{"push: bodies taken", mailComesAndGoes},
	{"push: bodies stored", mailComesAndGoes},
	{"accept: body spread", mailComesAndGoes},
	{"leader: asked", mailComesAndGoes},
	{"log: written", mailComesAndGoes},
	{"log: synced", mailComesAndGoes},
	{"log: segment begun", mailComesAndGoes},
	{"follower: bodies here", mailComesAndGoes},
	{"follower: entries settled", mailComesAndGoes},
	{"apply: committed", mailComesAndGoes},
	{"apply: applied", mailComesAndGoes},
	{"leader: done", mailComesAndGoes},
	{"accept: committed", mailComesAndGoes},
	{"lease: granted", mailComesAndGoes},
	{"lease: received", mailComesAndGoes},
	{"lease: renewed", mailComesAndGoes},
	{"dot: permitted", mailComesAndGoes},
	{"outcome: known", mailComesAndGoes},
	{"outcome: recorded", mailComesAndGoes},
	{"floor: to be written", mailComesAndGoes},
	{"floor: written", mailComesAndGoes},
	{"reclaim: bodies deleted", mailComesAndGoes},
	{"spool: segment freed", mailComesAndGoes},
	{"snapshot: written", mailComesAndGoes},
	{"snapshot: there", mailComesAndGoes},
	{"term: to be written", leaderDies},
	{"vote: written", leaderDies},
	{"fetch: body here", nodeWasAway},
	{"fetch: body stored", nodeWasAway},
}

// lettersPerMoment are enough to fill segments; so many of a moment pass before
// the one that counts, at most.
const (
	lettersPerMoment = 40
	passesMost       = 3
)

// A trap waits for the moment at which a node is to lose its power.
type trap struct {
	moment string
	passes int         // moments to let pass
	sprung chan string // the node that came to it
	cut    chan struct{}
	over   chan struct{}
	place  chan int // holds one token: passes, or -1 when it is sprung or not set
}

func newTrap(moment string, passes int) *trap {
	tr := &trap{moment: moment, passes: passes, sprung: make(chan string), cut: make(chan struct{}), over: make(chan struct{}), place: make(chan int, 1)}
	tr.place <- -1
	return tr
}

// set has the trap look.
func (tr *trap) set() {
	<-tr.place
	tr.place <- tr.passes
}

// at is called by nodes. It keeps the caller until the node has no power.
func (tr *trap) at(node, moment string) {
	if moment != tr.moment {
		return
	}
	left := <-tr.place
	tr.place <- max(-1, left-1)
	if left != 0 {
		return
	}
	select {
	case tr.sprung <- node:
		<-tr.cut
	case <-tr.over: // nobody looks any more
	}
}

// A trapStory is a story in which a node loses its power when it is caught.
type trapStory struct {
	*story
	trap   *trap
	caught string // the node
}

// pass lets time pass. A node that is caught meanwhile loses its power, and comes
// back later.
func (s *trapStory) pass(d time.Duration) {
	s.t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case s.caught = <-s.trap.sprung:
		s.PowerCut(s.caught)
		close(s.trap.cut)
		time.Sleep(time.Duration(1+s.random.IntN(8_000)) * time.Millisecond)
		s.start(s.caught)
		<-timer.C
	}
}

// TestFailpoints cuts the power of a node at each failpoint, in the middle of mail
// that comes and goes, and brings it back. Nothing is lost or altered, and there
// are no more second copies than are accounted for.
func TestFailpoints(t *testing.T) {
	caught := 0
	for i, m := range moments {
		ok := t.Run(m.name, func(t *testing.T) {
			tell(t, uint64(500+i), func(t *testing.T, s *story) {
				passes := s.random.IntN(passesMost + 1)
				switch {
				case m.when == leaderDies:
					passes %= 2 // there are two that vote
				case strings.HasPrefix(m.name, "floor: "):
					passes %= len(nodeNames) // each writes it once, at the least
				}
				ts := &trapStory{story: s, trap: newTrap(m.name, passes)}
				s.segments, s.failpoint = true, ts.trap.at
				ts.live(m.when)
			})
		})
		if ok {
			caught++
		}
	}
	fmt.Printf("failpoints=%d failed=%d\n", len(moments), len(moments)-caught)
}

// live plays the story, and judges it.
func (s *trapStory) live(when occasion) {
	defer close(s.trap.over)
	seen := new(copies)
	s.arriving = seen.see
	s.begin()
	sent := make(chan error, 1)
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Hour)
	defer cancel()
	send := func(letters int) {
		go func() {
			_, err := s.Send(ctx, letters, 4, 2*time.Second)
			sent <- err
		}()
	}
	switch when {
	case mailComesAndGoes:
		s.trap.set()
		send(lettersPerMoment)
		s.pass(15 * time.Second)
		s.primaryUp()
		s.pass(15 * time.Second)
	case leaderDies:
		send(lettersPerMoment)
		s.pass(10 * time.Second)
		leader, _ := s.leader()
		s.trap.set()
		s.Kill(leader)
		s.pass(20 * time.Second)
		s.start(leader)
		s.primaryUp()
	case nodeWasAway:
		s.Kill("n3")
		send(lettersPerMoment)
		s.pass(time.Minute)
		for _, name := range []string{"n1", "n2"} { // they forget what they have in line for n3
			s.Kill(name)
			s.start(name)
			s.awaitReady("n1", "n2")
		}
		s.trap.set()
		s.start("n3")
		s.pass(2 * time.Minute)
		s.primaryUp()
	}
	for range 8 {
		s.snapshot()
		s.pass(10 * time.Second)
	}
	if s.caught == "" {
		s.t.Fatalf("no node came to %q so often", s.trap.moment)
	}
	s.awaitReady(nodeNames...)
	if err := <-sent; err != nil {
		s.t.Fatal(err)
	}
	s.drain(s.ctx, s.t)
	report := s.ledger.Check()
	s.t.Logf("%s after %d others: %s", s.caught, s.trap.passes, report)
	if !report.OK() || report.Accepted == 0 || report.NotAccepted > 0 {
		s.t.Errorf("the ledger does not balance: %+v", report)
	}
	seen.check(s.t, s.member(nodeNames[0]).Totals())
}

// snapshot has each node take one. Nobody waits for it.
func (s *trapStory) snapshot() {
	for _, name := range nodeNames {
		if p := s.node(name); p != nil {
			go func() {
				ctx, cancel := context.WithTimeout(s.ctx, 5*time.Second)
				defer cancel()
				_ = p.node.Member().Node().Snapshot(ctx) // there may be nothing new in it
			}()
		}
	}
}

// TestFailpointsAreListed: docs/testing.md says what each moment lies between.
func TestFailpointsAreListed(t *testing.T) {
	text, err := os.ReadFile("../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range moments {
		if !strings.Contains(string(text), "| `"+m.name+"` |") {
			t.Errorf("docs/testing.md does not list %q", m.name)
		}
	}
}
