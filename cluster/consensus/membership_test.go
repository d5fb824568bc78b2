package consensus

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func (c *testCluster) addVoter(leader, m *testMember) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := leader.node().AddVoter(ctx, m.id(), m.address()); err != nil {
		c.t.Fatalf("add voter %s: %v", m.name, err)
	}
}

func (c *testCluster) addNonvoter(leader, m *testMember) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := leader.node().AddNonvoter(ctx, m.id(), m.address()); err != nil {
		c.t.Fatalf("add nonvoter %s: %v", m.name, err)
	}
}

// TestNonvotersKeepTheRule: a nonvoter that appended an entry without its body
// would be counted for it the moment it is promoted, by matching alone.
func TestNonvotersKeepTheRule(t *testing.T) {
	for _, test := range []struct {
		name     string
		controls []controls.Switch
		acked    bool
		judge    func(*oracle)
	}{
		{"not spared", nil, false, (*oracle).clean},
		{"control: spared", []controls.Switch{controls.NonvotersSpared}, true, func(o *oracle) { o.caught("acknowledged with") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 3, clusterOptions{controls: trial.On(t, test.controls...)}, func(t *testing.T, c *testCluster) {
				// a is the only voter, b becomes one, c votes but is away when it
				// matters.
				c.up()
				c.bootstrapWith("a")
				a, b, third := c.members["a"], c.members["b"], c.members["c"]
				if c.leader() != a {
					t.Fatal("not the only voter leads")
				}
				c.addNonvoter(a, b)
				c.addVoter(a, third)
				c.oracle.setVoters("a", "b", "c")
				c.must("all level", c.level)
				// The third goes away, so that an entry stays uncommitted; b must
				// not take it without its body.
				third.kill()
				for _, name := range []string{"b", "c"} {
					c.bodies.Network.Cut("a", name)
				}
				ref := c.mint()
				c.put(ref, "a")
				acked := make(chan error, 1)
				go func() { acked <- a.accept(20*time.Second, ref) }()
				time.Sleep(time.Second)
				// The promotion cannot be committed before the entry: it takes an
				// answer from b for both.
				go func() {
					ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					defer cancel()
					_ = a.node().AddVoter(ctx, b.id(), b.address())
				}()
				if err := <-acked; (err == nil) != test.acked {
					t.Errorf("accept: %v", err)
				}
				test.judge(c.oracle)
			})
		})
	}
}

// TestSnapshotToANewMember: it is added as a nonvoter, gets a snapshot, fetches
// the live bodies, is promoted, leads, and the cluster survives a full restart.
func TestSnapshotToANewMember(t *testing.T) {
	inCluster(t, 4, clusterOptions{trailing: 8, housekeeping: true}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrapWith("a", "b", "c")
		leader := c.leader()
		var live []mail.BodyRef
		for range 60 {
			ref := c.mint()
			live = append(live, ref)
			c.put(ref, "a", "b", "c")
			if err := leader.accept(patience, ref); err != nil {
				t.Fatal(err)
			}
		}
		if err := leader.node().Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if first, _ := leader.disk.Bounds(); first < 40 {
			t.Fatalf("log begins at %d after the snapshot", first)
		}
		d := c.members["d"]
		if d.node().HasState() {
			t.Error("a new member has state")
		}
		c.addNonvoter(leader, d)
		c.must("the snapshot installed", func() bool { return d.running().fsm.restores() == 1 })
		c.must("the bodies fetched", func() bool {
			return !slices.ContainsFunc(live, func(ref mail.BodyRef) bool { return !d.bodyDisk.Has(ref) })
		})
		if !d.node().HasState() {
			t.Error("no state after the snapshot")
		}
		c.addVoter(leader, d)
		c.oracle.setVoters("a", "b", "c", "d")
		for _, s := range leader.node().Servers() {
			if want := c.members[s.ID.Name()]; s.Address != want.address() || !s.Voter || s.ID != want.id() {
				t.Errorf("server %+v", s)
			}
		}
		c.elect("d")
		c.deliver(d, 3)
		c.down()
		c.up()
		c.leader()
		c.oracle.conclude()
		c.oracle.clean()
	})
}

// TestReturnUnderANewIncarnation: a member that lost its disk stands beside
// its old server id, at the same address, until that one is removed.
func TestReturnUnderANewIncarnation(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		leader := c.leader()
		c.commit(leader)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		m := c.members[c.others(leader.name)[0]]
		anew := ServerID(m.name + "/2")
		if err := leader.node().AddNonvoter(ctx, anew, m.address()); err != nil {
			t.Fatalf("add %s: %v", anew, err)
		}
		if err := leader.node().RemoveServer(ctx, m.id()); err != nil {
			t.Fatalf("remove %s: %v", m.id(), err)
		}
		var ids []ServerID
		for _, s := range leader.node().Servers() {
			ids = append(ids, s.ID)
			if s.ID == anew && (s.Voter || s.Address != m.address()) {
				t.Errorf("server %+v", s)
			}
		}
		if len(ids) != 3 || slices.Contains(ids, m.id()) || !slices.Contains(ids, anew) {
			t.Errorf("servers %v", ids)
		}
		follower := c.members[c.others(leader.name)[1]]
		if err := follower.node().RemoveServer(ctx, anew); !errors.Is(err, ErrNotAppended) || !errors.Is(err, ErrNotLeader) {
			t.Errorf("a change at a follower: %v", err)
		}
	})
}

// TestPreVoteSurvivesTheWrapper: a member that was cut off comes back without
// having raised the term, which it would have done without pre-vote.
func TestPreVoteSurvivesTheWrapper(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		term := a.node().Term()
		away := c.others(a.name)[0]
		for _, name := range c.others(away) {
			c.net.Cut(away, name)
		}
		time.Sleep(patience)
		c.net.HealAll()
		c.must("all level", c.level)
		if got := a.node().Term(); got != term || !a.node().IsLeader() {
			t.Errorf("term %d, was %d", got, term)
		}
	})
}

// TestBootstrapOnce: not on a node with state, and not without our own vote.
func TestBootstrapOnce(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		a, b := c.members["a"], c.members["b"]
		if a.node().HasState() || len(a.node().Servers()) != 0 {
			t.Error("a new node has state")
		}
		if err := a.node().Bootstrap([]Server{{ID: b.id(), Address: b.address(), Voter: true}}); err == nil {
			t.Error("bootstrapped a cluster without itself")
		}
		c.bootstrap()
		c.leader()
		if !a.node().HasState() {
			t.Error("no state after bootstrap")
		}
		if err := a.node().Bootstrap([]Server{{ID: a.id(), Address: a.address(), Voter: true}}); err == nil {
			t.Error("bootstrapped twice")
		}
	})
}

// TestSnapshotOfWhatWeHave: a snapshot that ends inside our log, in agreement
// with it, is answered with success and changes nothing. Raft itself would drop
// the log, with entries that we acknowledged.
func TestSnapshotOfWhatWeHave(t *testing.T) {
	inCluster(t, 3, clusterOptions{trailing: 100}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		for range 20 {
			c.commit(a)
		}
		if err := a.node().Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 10 {
			c.commit(a)
		}
		c.must("all level", c.level)
		b := c.members[c.others(a.name)[0]]
		metas, _ := a.running().store.List()
		meta, source, err := a.running().store.Open(metas[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		_, before := b.disk.Bounds()
		if meta.Index >= before {
			t.Fatalf("the snapshot ends at %d, the log at %d", meta.Index, before)
		}
		var resp raft.InstallSnapshotResponse
		err = a.node().transport.InstallSnapshot(raft.ServerID(b.id()), raftAddress(b.id(), b.address()), &raft.InstallSnapshotRequest{
			RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(a.id()), Addr: []byte(a.id())},
			SnapshotVersion: meta.Version, Term: a.node().Term(), LastLogIndex: meta.Index, LastLogTerm: meta.Term,
			Configuration: raft.EncodeConfiguration(meta.Configuration), ConfigurationIndex: meta.ConfigurationIndex, Size: meta.Size,
		}, &resp, source)
		if err != nil || !resp.Success {
			t.Errorf("answer %+v, %v", resp, err)
		}
		if first, last := b.disk.Bounds(); first != 1 || last < before {
			t.Errorf("the log is now %d to %d, it went to %d", first, last, before)
		}
		if b.running().fsm.restores() != 0 || b.node().Err() != nil {
			t.Errorf("%d restores, %v", b.running().fsm.restores(), b.node().Err())
		}
		c.commit(a)
		c.must("all level", c.level)
		c.oracle.clean()
	})
}

// TestSnapshotOverALogThatConflicts holds us to hashicorp/raft#697: a member
// whose uncommitted entries go beyond a snapshot that conflicts with them would
// ask for that snapshot for ever. It ends itself once, and is level after its
// restart.
func TestSnapshotOverALogThatConflicts(t *testing.T) {
	inCluster(t, 3, clusterOptions{trailing: 1}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		for _, name := range c.others(a.name) {
			c.net.Cut(a.name, name)
		}
		for range 100 {
			go func() { _ = a.propose(time.Second, []byte{commandNothing}, nil) }()
		}
		var next *testMember
		c.must("another leader", func() bool {
			next = c.currentLeader()
			return next != nil && next != a && !a.node().IsLeader()
		})
		for range 20 {
			c.commit(next)
		}
		if err := next.node().Snapshot(t.Context()); err != nil {
			t.Fatal(err)
		}
		if first, _ := next.disk.Bounds(); first < 10 || a.node().LastIndex() < next.node().LastIndex() {
			t.Fatalf("log of %s begins at %d, that of %s ends at %d", next, first, a, a.node().LastIndex())
		}
		c.net.HealAll()
		c.must("the end of the node", func() bool { return a.node().Err() != nil })
		if err := a.node().Err(); !errors.Is(err, errLogReplaced) {
			t.Errorf("failed with %v", err)
		}
		a.kill()
		c.up(a.name)
		c.must("all level", c.level)
		c.oracle.clean()
	})
}
