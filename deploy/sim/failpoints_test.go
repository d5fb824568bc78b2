package sim

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

var rounds = flag.Int("rounds", 1, "how many seeds TestFailpoints plays at each failpoint")

// What has to happen so that a node comes to a moment.
type occasion int

const (
	mailComesAndGoes occasion = iota
	leaderDies                // so that there is an election
	nodeWasAway               // and misses bodies that the others do not push any more
)

// A moment is a failpoint, and what nodes have to do to come to it.
type moment struct {
	name string
	when occasion
}

// moments are all of them, in the order in which a message meets them. docs/testing.md
// says what each lies between.
var moments = []moment{
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
	{"log: segment freed", mailComesAndGoes},
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
	{"term: written", leaderDies},
	{"vote: to be written", leaderDies},
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

// trailingEntries are so few that a snapshot frees segments of the log.
const trailingEntries = 16

// lullMax is shorter than a follower waits for a leader.
const lullMax = 500 * time.Millisecond

// A trap waits for the moment at which a node is to lose its power.
type trap struct {
	moment string
	passes int         // moments to let pass
	sprung chan string // the node that came to it
	cut    chan struct{}
	over   chan struct{}
	place  chan int // holds one token: how many may still pass, trapOpen or trapSprung
}

// What a trap's token says where it is not how many may pass.
const (
	trapOpen   = -1 // it is not set
	trapSprung = -2
)

func newTrap(moment string, passes int) *trap {
	tr := &trap{moment: moment, passes: passes, sprung: make(chan string), cut: make(chan struct{}), over: make(chan struct{}), place: make(chan int, 1)}
	tr.place <- trapOpen
	return tr
}

// set has the trap look.
func (tr *trap) set() {
	<-tr.place
	tr.place <- tr.passes
}

// at is called by nodes. It keeps the caller until the node has no power, and whoever
// comes to the moment behind it, on any node: what waits for them all must not go on.
func (tr *trap) at(node, moment string) {
	if moment != tr.moment {
		return
	}
	left := <-tr.place
	switch {
	case left > 0:
		tr.place <- left - 1
		return
	case left == trapOpen:
		tr.place <- left
		return
	}
	tr.place <- trapSprung
	if left != trapSprung {
		select {
		case tr.sprung <- node:
		case <-tr.over: // nobody looks any more
		}
	}
	select {
	case <-tr.cut:
	case <-tr.over:
	}
}

// A loss is what a moment costs.
type loss int

const (
	// onePower: the node that came to the moment loses its power.
	onePower loss = iota
	// allPower: all nodes do, and the disk of one of the others is gone for good. What
	// two of three still have is all there is.
	allPower
)

func (l loss) String() string { return [...]string{"one power", "all power and a disk"}[l] }

// A trapStory is a story in which there is a loss when a node is caught.
type trapStory struct {
	*story
	trap   *trap
	loss   loss
	lull   time.Duration // between the moment and the loss
	caught string        // the node
	gone   string        // the one without a disk, "" for none

	mu   sync.Mutex
	came map[string]map[string]bool // of recipients: the queue ids that their letter came under
}

// pass lets time pass. Who loses power meanwhile comes back later.
func (s *trapStory) pass(d time.Duration) {
	s.t.Helper()
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case s.caught = <-s.trap.sprung:
		// Who does not wait for what he should goes on meanwhile.
		time.Sleep(s.lull)
		back := []string{s.caught}
		s.PowerCut(s.caught)
		if s.loss == allPower {
			others := othersThan(s.caught)
			for _, name := range others {
				s.PowerCut(name)
			}
			s.gone = others[s.random.IntN(len(others))]
			s.Wipe(s.gone)
			back = s.left()
		}
		close(s.trap.cut)
		time.Sleep(time.Duration(1+s.random.IntN(8_000)) * time.Millisecond)
		s.start(back...)
		<-timer.C
	}
}

// left returns the nodes that still have a disk.
func (s *trapStory) left() []string { return othersThan(s.gone) }

// again starts a node that was ended, unless it has no disk or runs already.
func (s *trapStory) again(name string) {
	s.t.Helper()
	if name != s.gone && s.node(name) == nil {
		s.start(name)
	}
}

// TestFailpoints cuts power at each failpoint, in the middle of mail that comes and
// goes, and brings it back: that of the node which came there, and that of all nodes
// with a disk that is lost for good. Nothing is lost or altered, nobody's repeat is a
// second message, there are no more second copies than are accounted for, and at the
// end the nodes have the same queue and no body.
func TestFailpoints(t *testing.T) {
	passed, played := 0, 0
	for i, m := range moments {
		for _, l := range []loss{onePower, allPower} {
			for round := range *rounds {
				played++
				name := fmt.Sprintf("%s/%s/%d", m.name, l, round)
				if t.Run(name, func(t *testing.T) { meet(t, uint64(500+i+1000*round), m, l) }) {
					passed++
				}
			}
		}
	}
	fmt.Printf("failpoints=%d stories=%d failed=%d\n", len(moments), played, played-passed)
}

// meet tells the story of one loss at one moment.
func meet(t *testing.T, seed uint64, m moment, l loss) {
	tell(t, seed, func(t *testing.T, s *story) {
		passes := s.random.IntN(passesMost + 1)
		switch {
		case m.when == leaderDies:
			passes %= 2 // there are two that vote
		case m.name == "lease: granted":
			passes %= 2 // one lease may have all that waits
		case strings.HasPrefix(m.name, "floor: "):
			passes %= len(nodeNames) // each writes it once, at the least
		}
		led := new(reigns)
		s.log = slog.New(led.handler(s.log.Handler()))
		ts := &trapStory{story: s, trap: newTrap(m.name, passes), loss: l, came: map[string]map[string]bool{}}
		if s.random.IntN(2) == 0 {
			ts.lull = between(s.random, time.Millisecond, lullMax)
		}
		s.segments = true
		s.rhythm.Trailing = trailingEntries
		s.failpoint = func(node, at string) {
			if !slices.ContainsFunc(moments, func(m moment) bool { return m.name == at }) {
				t.Errorf("nodes tell of %q, and no story is about it", at)
			}
			ts.trap.at(node, at)
		}
		s.controls = rulesBroken(t)
		ts.live(m.when)
		led.check(t)
	})
}

// live plays the story, and judges it.
func (s *trapStory) live(when occasion) {
	defer close(s.trap.over)
	seen := new(copies)
	s.arriving = func(a ledger.Arrival) {
		seen.see(a)
		s.named(a)
	}
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
		send(lettersPerMoment)
		early := time.Duration(s.random.IntN(12_000)) * time.Millisecond // some letters have their 250 by then
		s.pass(early)
		s.trap.set()
		s.pass(15*time.Second - early)
		s.primaryUp()
		s.pass(15 * time.Second)
	case leaderDies:
		send(lettersPerMoment)
		s.pass(10 * time.Second)
		leader, _ := s.leader()
		s.trap.set()
		s.Kill(leader)
		s.pass(20 * time.Second)
		s.again(leader)
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
	s.awaitReady(s.left()...)
	if err := <-sent; err != nil {
		s.t.Fatal(err)
	}
	for deadline := time.Now().Add(drainTime); !s.drained() && time.Now().Before(deadline); {
		time.Sleep(time.Second)
	}
	if !s.drained() {
		s.t.Errorf("after %v something has not arrived, or is queued", drainTime)
	}
	s.atRest(s.ctx, s.t, s.gone)
	report := s.ledger.Check()
	s.t.Logf("%s after %d others, without %q: %s", s.caught, s.trap.passes, s.gone, report)
	if !report.OK() || report.Accepted == 0 || report.NotAccepted > 0 {
		s.t.Errorf("the ledger does not balance: %+v", report)
	}
	s.checkNames()
	seen.check(s.t, s.member(s.left()[0]).Totals())
}

// named notes under which queue id a letter came.
func (s *trapStory) named(a ledger.Arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.came[a.Recipient] == nil {
		s.came[a.Recipient] = map[string]bool{}
	}
	s.came[a.Recipient][a.QueueID] = true
}

// checkNames: a sender that had no reply, or could not read it, sent its letter again,
// and it is still one message.
func (s *trapStory) checkNames() {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for to, ids := range s.came {
		if len(ids) > 1 {
			s.t.Errorf("the letter for %s came under %d queue ids", to, len(ids))
		}
	}
}

func (s *trapStory) drained() bool {
	for _, name := range s.left() {
		if p := s.node(name); p == nil || p.node.Member().View().Totals().Live > 0 {
			return false
		}
	}
	missing, _ := s.ledger.Missing()
	return missing == 0
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
