package consensus

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// historyTime is how long one random history lasts, by the bubble's clock.
const historyTime = 120 * time.Second

// A history is a random life of a cluster: clients that accept and finish
// messages, and everything that can go wrong.
type history struct {
	c     *testCluster
	size  int
	calm  chan struct{} // closed when it ends
	tasks sync.WaitGroup

	// starting has a value while a member is started: by whoever misses it, one at a
	// time. It is a channel, for who waits for a mutex holds up the bubble's clock, which
	// the start may wait for.
	starting chan struct{}

	mu   sync.Mutex
	rand *rand.Rand
	live []mail.BodyRef // accepted, not finished

	changing bool // voters come and go: the last member is none at first

	commits, acks, kills, restarts, installs, elections, changes int
	stats                                                        Stats
}

func (h *history) intn(n int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rand.IntN(n)
}

func (h *history) between(low, high time.Duration) time.Duration {
	return low + time.Duration(h.intn(int(high-low)))
}

// pause sleeps; false when the history has ended.
func (h *history) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-h.calm:
		return false
	case <-timer.C:
		return true
	}
}

func (h *history) member() *testMember { return h.c.members[h.c.names[h.intn(h.size)]] }

// client accepts messages through any member, as smtpd does.
func (h *history) client() {
	for h.pause(h.between(50*time.Millisecond, 700*time.Millisecond)) {
		p := h.member().running()
		if p == nil {
			continue
		}
		ref := h.c.mint()
		var pushes sync.WaitGroup
		if h.intn(3) > 0 { // while it is being written
			pushes.Go(func() { _ = p.bodies.Put(ref) })
			h.pause(time.Microsecond)
		} else if p.bodies.Put(ref) != nil {
			continue
		}
		for _, name := range h.c.names {
			if name == p.member.name || h.intn(8) == 0 { // a push that got lost
				continue
			}
			pushes.Go(func() { _ = p.bodies.Push(ref, name) })
		}
		switch h.intn(3) {
		case 0: // before the others have it
		case 1: // while they write it
			h.pause(h.between(time.Millisecond, 6*time.Millisecond))
		default:
			pushes.Wait()
		}
		leader := h.c.currentLeader()
		if leader != nil && (leader == p.member || h.c.net.Reachable(p.member.name, leader.name)) {
			err := leader.accept(h.between(time.Second, 20*time.Second), ref)
			if err == nil {
				h.mu.Lock()
				h.acks++
				h.live = append(h.live, ref)
				h.mu.Unlock()
			}
		}
		pushes.Wait()
	}
}

// finisher finishes accepted messages.
func (h *history) finisher() {
	for h.pause(h.between(100*time.Millisecond, 500*time.Millisecond)) {
		h.mu.Lock()
		if len(h.live) == 0 || h.rand.IntN(10) == 0 {
			h.mu.Unlock()
			continue
		}
		i := h.rand.IntN(len(h.live))
		ref := h.live[i]
		h.mu.Unlock()
		leader := h.c.currentLeader()
		if leader == nil || leader.propose(5*time.Second, finishCommand(ref), nil) != nil {
			continue
		}
		h.mu.Lock()
		if i := slices.Index(h.live, ref); i >= 0 {
			h.live = slices.Delete(h.live, i, i+1)
		}
		h.mu.Unlock()
	}
}

// supervise restarts members that ended themselves, until done: also while the
// history is judged, since a write that is to fail may be the first one then.
func (h *history) supervise(done <-chan struct{}) {
	pause := func(d time.Duration) bool {
		select {
		case <-done:
			return false
		case <-time.After(d):
			return true
		}
	}
	for pause(500 * time.Millisecond) {
		for _, name := range h.c.names {
			p := h.c.members[name].running()
			if p == nil {
				continue
			}
			select {
			case <-p.node.Failed():
				h.stop(p.member)
				pause(time.Second)
				h.start(p.member)
			default:
			}
		}
	}
}

func (h *history) stop(m *testMember) {
	spoke := uint64(0)
	if p := m.running(); p != nil {
		spoke = p.node.Term()
		s := p.node.Stats()
		h.mu.Lock()
		h.stats.Exempt += s.Exempt
		h.stats.GateWaits += s.GateWaits
		h.stats.GateRefusals += s.GateRefusals
		h.stats.FloorRaises += s.FloorRaises
		h.stats.CutAtStart += s.CutAtStart
		h.kills++
		h.installs += p.fsm.restores() - p.restored
		h.mu.Unlock()
	}
	m.kill()
	// Whoever has spoken in a term has it on the disk, and its vote in it: else it
	// could vote twice.
	if kept := m.disk.Number("CurrentTerm"); kept < spoke {
		h.c.oracle.violation("%s: was in term %d, and its disk says %d", m.name, spoke, kept)
	}
}

func (h *history) start(m *testMember) {
	h.starting <- struct{}{}
	defer func() { <-h.starting }()
	if m.running() != nil {
		return
	}
	if err := m.start(); err != nil && !errors.Is(err, ErrBodyLost) {
		h.c.oracle.violation("start %s: %v", m.name, err)
	}
}

// nemesis does one bad thing after the other.
func (h *history) nemesis() {
	for h.pause(h.between(time.Second, 5*time.Second)) {
		a, b := h.member(), h.member()
		lasts := h.between(500*time.Millisecond, 8*time.Second)
		switch h.intn(14) {
		case 0, 1:
			h.c.net.Cut(a.name, b.name)
			h.pause(lasts)
			h.c.net.Heal(a.name, b.name)
		case 2:
			h.c.net.CutOneWay(a.name, b.name)
			h.pause(lasts)
			h.c.net.Heal(a.name, b.name)
		case 3:
			for _, name := range h.c.others(a.name) {
				h.c.net.Cut(a.name, name)
			}
			h.pause(lasts)
			h.c.net.HealAll()
		case 4:
			h.c.bodies.Network.Cut(a.name, b.name)
			h.pause(lasts)
			h.c.bodies.Network.Heal(a.name, b.name)
		case 5:
			for _, name := range h.c.others(a.name) {
				h.c.bodies.Network.Cut(a.name, name)
			}
			h.pause(lasts)
			h.c.bodies.Network.HealAll()
		case 6:
			a.bodyDisk.SetFull(true)
			h.pause(lasts)
			a.bodyDisk.SetFull(false)
		case 7, 8:
			h.stop(a)
			h.pause(lasts)
			h.start(a)
		case 9:
			if leader := h.c.currentLeader(); leader != nil {
				h.stop(leader)
				h.pause(lasts)
				h.start(leader)
			}
		case 10:
			if p := a.running(); p != nil {
				p.store.FailNext(1)
			}
		case 11:
			h.restartMajority()
		case 12, 13:
			h.crashElection(a, lasts)
		}
	}
}

// crashElection makes an election, in which the power of a member fails while it
// writes its term, or its vote.
func (h *history) crashElection(a *testMember, lasts time.Duration) {
	p, leader := a.running(), h.c.currentLeader()
	if p == nil || leader == nil {
		return
	}
	crashed := make(chan struct{})
	p.store.CrashAtValue(h.intn(3), h.intn(2) == 0, func() {
		h.stop(a)
		close(crashed)
	})
	for _, name := range h.c.others(leader.name) {
		h.c.net.Cut(leader.name, name)
	}
	h.pause(lasts)
	h.c.net.HealAll()
	select {
	case <-crashed:
		h.mu.Lock()
		h.elections++
		h.mu.Unlock()
	default:
		h.stop(a)
	}
	h.start(a)
}

// restartMajority restarts everybody, of whom only a majority comes back, and
// that must be able to go on alone.
func (h *history) restartMajority() {
	h.mu.Lock()
	h.restarts++
	order := h.rand.Perm(h.size)
	h.mu.Unlock()
	for _, name := range h.c.names {
		h.stop(h.c.members[name])
	}
	h.c.net.HealAll()
	h.c.bodies.Network.HealAll()
	back := order[:h.size/2+1]
	for _, i := range back {
		h.start(h.c.members[h.c.names[i]])
	}
	if !h.c.eventually(patience, func() bool {
		for _, i := range back {
			// One that ended itself is started by the supervisor, if that still runs.
			m := h.c.members[h.c.names[i]]
			if p := m.running(); p == nil {
				h.start(m)
			}
		}
		leader := h.c.currentLeader()
		return leader != nil && leader.propose(time.Second, []byte{commandNothing}, nil) == nil
	}) {
		h.c.oracle.violation("a majority that returned cannot go on alone")
	}
	for _, i := range order[h.size/2+1:] {
		h.start(h.c.members[h.c.names[i]])
	}
}

// run lives one history and judges it.
func runHistory(t *testing.T, size int, seed uint64, on controls.Set, judge func(*oracle)) *history {
	return newHistory(size, seed).run(t, seed, on, judge)
}

func newHistory(size int, seed uint64) *history {
	return &history{size: size, rand: rand.New(rand.NewPCG(seed, 1))}
}

func (h *history) run(t *testing.T, seed uint64, on controls.Set, judge func(*oracle)) *history {
	size := h.size
	inCluster(t, size, clusterOptions{
		seed: seed, controls: on, housekeeping: true,
		trailing: 8, threshold: 30, interval: 5 * time.Second,
	}, func(t *testing.T, c *testCluster) {
		h.c, h.calm, h.starting = c, make(chan struct{}), make(chan struct{}, 1) // made inside the bubble
		c.up()
		if h.changing {
			c.bootstrapWith(c.names[:size-1]...)
			h.tasks.Go(h.registrar)
		} else {
			c.bootstrap()
		}
		c.leader()
		h.tasks.Go(h.client)
		h.tasks.Go(h.client)
		h.tasks.Go(h.finisher)
		h.tasks.Go(h.nemesis)
		done := make(chan struct{})
		var supervisor sync.WaitGroup
		supervisor.Go(func() { h.supervise(done) })
		time.Sleep(historyTime)
		close(h.calm)
		h.tasks.Wait()
		c.net.HealAll()
		c.bodies.Network.HealAll()
		for _, name := range c.names {
			c.members[name].bodyDisk.SetFull(false)
		}
		c.eventually(patience, func() bool {
			for _, name := range c.names {
				if c.members[name].running() == nil {
					h.start(c.members[name])
				}
			}
			return !slices.ContainsFunc(c.names, func(name string) bool { return c.members[name].running() == nil })
		})
		if h.changing {
			h.admitAll()
		}
		c.oracle.conclude()
		close(done)
		supervisor.Wait()
		h.commits = len(c.oracle.applied)
		for _, name := range c.names {
			h.stop(c.members[name])
		}
		judge(c.oracle)
	})
	return h
}

func (h *history) String() string {
	return fmt.Sprintf("%d nodes: %d commits, %d acknowledged, %d exempt, %d gate waits, %d refused, %d raised, %d kills, %d of them in an election, %d full restarts, %d snapshots installed, %d entries cut at a start, %d changes of the voters",
		h.size, h.commits, h.acks, h.stats.Exempt, h.stats.GateWaits, h.stats.GateRefusals, h.stats.FloorRaises, h.kills, h.elections, h.restarts, h.installs, h.stats.CutAtStart, h.changes)
}

// TestRandomHistories is the append rule under everything at once.
func TestRandomHistories(t *testing.T) {
	for i := range *histories + *histories/3 {
		size, seed := 3, *seedFlag+uint64(i)
		if i >= *histories {
			size = 5
		}
		t.Run(fmt.Sprintf("%d nodes seed %d", size, seed), func(t *testing.T) {
			t.Log(runHistory(t, size, seed, controls.Set{}, (*oracle).clean))
		})
	}
}

// TestRandomHistoriesOfChangingVoters: beside everything else, members are taken
// out and taken in again.
func TestRandomHistoriesOfChangingVoters(t *testing.T) {
	for i := range *histories {
		seed := *seedFlag + uint64(i)
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			h := newHistory(4, seed)
			h.changing = true
			t.Log(h.run(t, seed, controls.Set{}, (*oracle).clean))
		})
	}
}

// TestControlRuleOff: a random history, in which every committed entry has its body
// at a majority.
func TestControlRuleOff(t *testing.T) {
	trial.Run(t, controls.RuleOff, func(t *testing.T, on controls.Set) (broken error) {
		runHistory(t, 3, *seedFlag, on, func(o *oracle) {
			if found := o.found(); len(found) > 0 {
				broken = errors.New(found[0])
			}
		})
		return broken
	})
}

// TestRandomHistoriesFindABrokenRule shows that the histories would notice.
func TestRandomHistoriesFindABrokenRule(t *testing.T) {
	for _, test := range []struct {
		name     string
		controls []controls.Switch
		what     string
	}{
		{"rule off", []controls.Switch{controls.RuleOff, controls.StartCheckOff}, "committed with"},
		{"rule off", []controls.Switch{controls.RuleOff, controls.StartCheckOff}, "I1"},
		{"without floor", []controls.Switch{controls.FloorOff, controls.StartCheckOff}, "I1"},
	} {
		t.Run(test.name+", "+test.what, func(t *testing.T) {
			t.Log(runHistory(t, 3, *seedFlag, trial.On(t, test.controls...), func(o *oracle) { o.caught(test.what) }))
		})
	}
	t.Run("nonvoters spared, I1", func(t *testing.T) {
		h := newHistory(4, *seedFlag)
		h.changing = true
		t.Log(h.run(t, *seedFlag, trial.On(t, controls.NonvotersSpared, controls.StartCheckOff), func(o *oracle) { o.caught("I1") }))
	})
}
