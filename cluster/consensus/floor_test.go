package consensus

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// reclaimAll waits until everybody running has applied all, then reclaims there.
func (c *testCluster) reclaimAll() {
	c.t.Helper()
	c.must("all level", c.level)
	for _, name := range c.names {
		if p := c.members[name].running(); p != nil {
			p.reclaim(time.Hour)
		}
	}
}

// goesOn reports whether a new entry is committed within a time.
func (c *testCluster) goesOn(limit time.Duration) bool {
	return c.eventually(limit, func() bool {
		leader := c.currentLeader()
		return leader != nil && leader.propose(time.Second, []byte{commandNothing}, nil) == nil
	})
}

// TestFullRestartAfterBodiesAreGone: two of three commit and finish messages
// and delete the bodies; all stop, and the third comes back with one of them.
// Its log needs entries whose bodies nobody has any more.
func TestFullRestartAfterBodiesAreGone(t *testing.T) {
	for _, test := range []struct {
		name     string
		controls []controls.Switch
		goesOn   bool
	}{
		{"with the floor", nil, true},
		{"control: without the floor", []controls.Switch{controls.FloorOff, controls.StartCheckOff}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 3, clusterOptions{controls: trial.On(t, test.controls...)}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				c.must("all level", c.level)
				behind := c.others(a.name)[0]
				c.down(behind)
				refs := c.deliver(a, 30)
				c.reclaimAll()
				for _, ref := range refs {
					if a.bodyDisk.Has(ref) {
						t.Fatalf("%s was not reclaimed", ref)
					}
				}
				c.down()
				c.up(a.name, behind)
				if got := c.goesOn(patience); got != test.goesOn {
					t.Fatalf("goes on: %v", got)
				}
				if !test.goesOn {
					return
				}
				c.must("all level", c.level)
				for _, ref := range refs {
					if !c.members[behind].running().fsm.knows(ref) {
						t.Errorf("%s is not known to %s", ref, behind)
					}
				}
				if s := c.members[behind].node().Stats(); s.Exempt == 0 {
					t.Errorf("%s: %+v, want exempt entries", behind, s)
				}
				c.oracle.clean()
			})
		})
	}
}

// TestExemptMemberLeadsAfterRestart: a member that received committed entries
// without their bodies, and had not hydrated, leads after a full restart and
// has to bring others up to date, while the one that has the bodies cannot be
// reached for them.
func TestExemptMemberLeadsAfterRestart(t *testing.T) {
	for _, test := range []struct {
		name     string
		controls []controls.Switch
		goesOn   bool
	}{
		{"with the floor", nil, true},
		{"control: without the floor", []controls.Switch{controls.FloorOff, controls.StartCheckOff}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 5, clusterOptions{controls: trial.On(t, test.controls...)}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				c.must("all level", c.level)
				rest := c.others(a.name)
				b, source, exempt, behind := rest[0], rest[1], rest[2], rest[3]
				// a, b and source have the bodies and commit; exempt gets the
				// entries late, from a leader that says they are committed.
				c.down(exempt, behind)
				for range 10 {
					ref := c.mint()
					c.put(ref, a.name, b, source)
					if err := a.accept(patience, ref); err != nil {
						t.Fatal(err)
					}
				}
				for _, name := range c.others(exempt) {
					c.bodies.Network.Cut(exempt, name)
				}
				c.up(exempt)
				c.must("all level", c.level)
				if s := c.members[exempt].node().Stats(); s.Exempt == 0 {
					t.Fatalf("%s: %+v, want exempt entries", exempt, s)
				}
				c.down()
				// The source votes, but no body comes from it, and it is too slow to
				// stand for election itself.
				for _, name := range c.others(source) {
					c.bodies.Network.Cut(source, name)
				}
				c.members[source].heartbeat = time.Hour
				c.up(exempt, behind, source)
				goesOn := c.goesOn(patience)
				if leader := c.currentLeader(); goesOn && (leader == nil || leader.name != exempt) {
					t.Errorf("%v leads, not %s", leader, exempt)
				}
				if goesOn != test.goesOn {
					t.Errorf("goes on: %v", goesOn)
				}
			})
		})
	}
}

// TestDeposedLeaderMustNotTellTheLiveFloor is the race of the comment at
// floor.atStart, told step by step.
func TestDeposedLeaderMustNotTellTheLiveFloor(t *testing.T) {
	for _, test := range []struct {
		name     string
		controls []controls.Switch
		judge    func(*oracle)
	}{
		{"floor of the start", nil, (*oracle).clean},
		{"control: live floor", []controls.Switch{controls.LiveFloor}, func(o *oracle) { o.caught("applied term") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			// A hanging write must not stop the deposed leader's sender here.
			inCluster(t, 5, clusterOptions{controls: trial.On(t, test.controls...), stallMax: time.Hour}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				c.must("all level", c.level)
				b := c.members[c.others(a.name)[0]]
				majority := c.others(a.name)[1:]
				// 1. a and b are cut off; a's entries reach b and are not committed.
				c.net.Partition([]string{a.name, b.name}, majority)
				c.bodies.Network.Partition([]string{a.name, b.name}, majority)
				before := a.node().LastIndex()
				for range 5 {
					ref := c.mint()
					c.put(ref, a.name, b.name)
					go func() { _ = a.accept(patience, ref) }()
				}
				c.must("the entries at b", func() bool { return b.node().LastIndex() == before+5 })
				// a's main loop hangs in a write, so that it cannot step down; its
				// replication goes on.
				a.running().store.Block()
				for range 2 * tailOctetsMax / (32 << 10) { // until the tail is full, and more
					go func() { _ = a.propose(patience, append(batchCommand(7, 0), make([]byte, 32<<10)...), nil) }()
				}
				// 2. The majority elects a leader and commits others.
				var next *testMember
				c.must("a new leader", func() bool {
					next = c.currentLeader()
					return next != nil && next != a
				})
				for range 5 {
					ref := c.mint()
					c.put(ref, majority...)
					if err := next.accept(patience, ref); err != nil {
						t.Fatal(err)
					}
				}
				committed := next.node().CommitIndex()
				// It reaches a, which has none of the bodies: its gate makes the
				// floor cover the commit index before Raft sees the request.
				// It is the first request that arrives: a heartbeat before it would
				// wait for a's main loop, and the request behind that.
				request := &raft.AppendEntriesRequest{
					RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(next.id()), Addr: []byte(next.id())},
					Term:      next.node().Term(), PrevLogEntry: before, LeaderCommitIndex: committed,
				}
				predecessor, _ := next.disk.Entry(before)
				request.PrevLogTerm = predecessor.Term
				for index := before + 1; index <= committed; index++ {
					l, _ := next.disk.Entry(index)
					request.Entries = append(request.Entries, &l)
				}
				answered := make(chan struct{})
				go func() {
					defer close(answered)
					_, _ = sendDirectly(c, a, request)
				}()
				c.must("the floor of the deposed leader", func() bool { return a.node().Floor() >= committed })
				if !a.node().IsLeader() {
					t.Fatal("the deposed leader has stepped down")
				}
				// 3. Meanwhile a goes on telling b.
				time.Sleep(3 * time.Second)
				if b.node().Term() >= next.node().Term() {
					t.Fatal("b heard of the new term")
				}
				if len(test.controls) > 0 {
					test.judge(c.oracle)
					c.down()
					<-answered
					return
				}
				a.running().store.Unblock()
				<-answered
				c.net.HealAll()
				c.bodies.Network.HealAll()
				c.must("all level", c.level)
				test.judge(c.oracle)
			})
		})
	}
}

// TestEntriesOfAnOlderTermAfterRestart: entries that a leader could not commit
// before everybody stopped. When it leads again they are committed with their
// bodies on a majority; when another leads they are cut off and their bodies
// reclaimed.
func TestEntriesOfAnOlderTermAfterRestart(t *testing.T) {
	for _, same := range []bool{true, false} {
		name := "another leads"
		if same {
			name = "the same leads"
		}
		t.Run(name, func(t *testing.T) {
			inCluster(t, 3, clusterOptions{housekeeping: true}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				c.must("all level", c.level)
				for _, other := range c.others(a.name) {
					c.net.Cut(a.name, other)
				}
				// Nor do they elect anybody: an entry of a newer term would win.
				c.net.Cut(c.others(a.name)[0], c.others(a.name)[1])
				var refs []mail.BodyRef
				for range 5 {
					ref := c.mint()
					refs = append(refs, ref)
					c.put(ref, a.name)
					go func() { _ = a.accept(time.Second, ref) }()
				}
				time.Sleep(2 * time.Second)
				c.down()
				time.Sleep(2 * orphanAge)
				c.net.HealAll()
				if same {
					c.up(a.name, c.others(a.name)[0])
				} else {
					c.up(c.others(a.name)...)
				}
				if !c.goesOn(patience) {
					t.Fatal("does not go on")
				}
				if !same {
					c.up(a.name)
				}
				time.Sleep(3 * orphanAge)
				c.must("all level", c.level)
				for _, ref := range refs {
					if got := a.running().fsm.knows(ref); got != same {
						t.Errorf("%s known: %v", ref, got)
					}
					if got := a.bodyDisk.Has(ref); got != same {
						t.Errorf("%s held: %v", ref, got)
					}
				}
				c.oracle.clean()
			})
		})
	}
}

// TestRaiseFloor: the floor grows, lasts, and takes no index that is not known
// to be committed.
func TestRaiseFloor(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		n := a.node()
		committed := n.CommitIndex()
		if err := n.RaiseFloor(committed + 1); !errors.Is(err, ErrNotCommitted) {
			t.Errorf("raise above the commit index: %v", err)
		}
		for _, index := range []uint64{committed, committed - 1, 0} {
			if err := n.RaiseFloor(index); err != nil {
				t.Errorf("raise to %d: %v", index, err)
			}
			if n.Floor() != committed {
				t.Errorf("floor %d after raising to %d", n.Floor(), index)
			}
		}
		if n.FloorAtStart() != 0 {
			t.Errorf("floor at start %d", n.FloorAtStart())
		}
		a.kill()
		if err := a.start(); err != nil {
			t.Fatal(err)
		}
		if got := a.node().FloorAtStart(); got != committed {
			t.Errorf("floor after a restart %d, want %d", got, committed)
		}
		f, err := openFloor(failingStable{}, newLatch())
		if err != nil {
			t.Fatal(err)
		}
		if err := f.raise(5); err == nil || f.value.Load() != 0 || f.latch.Err() == nil {
			t.Errorf("a write that failed: %v, floor %d", err, f.value.Load())
		}
	})
}

type failingStable struct{ raft.StableStore }

func (failingStable) GetUint64([]byte) (uint64, error) { return 0, errors.New("not found") }
func (failingStable) SetUint64([]byte, uint64) error   { return errors.New("disk") }
