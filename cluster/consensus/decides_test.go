package consensus

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
)

// TestFirstEntryOfATerm: what a leader has of older terms counts only under an
// entry of its own term (section 5.4.2 of the extended Raft paper, figure 8). Where
// that one is not on the leader's disk, a server with a later entry may still be
// elected, by the leader itself after a crash, and replace them.
//
//  1. Term 1: a appends a message, on its own disk only.
//  2. Term 2: the others elect one of them, which appends an entry, on its own disk
//     only, and stops.
//  3. Term 3: a leads again. Its disk hangs. The third has the message and a's first
//     entry of the term.
//  4. a stops, and has lost that entry. The one of step 2 comes back, is elected by
//     a, and replaces the message.
//
// So in step 3 nobody must hear that the message is committed.
func TestFirstEntryOfATerm(t *testing.T) {
	inCluster(t, 3, clusterOptions{stallMax: time.Hour}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		others := c.others(a.name)
		for _, name := range others {
			c.members[name].running().store.Block()
			c.net.Cut(a.name, name)
		}
		ref := c.mint()
		c.put(ref, c.names...)
		index := a.node().LastIndex() + 1
		a.running().tasks.Go(func() { _ = a.accept(patience, ref) })
		c.must("the message on a's disk", func() bool {
			_, ok := a.disk.Entry(index)
			return ok
		})

		var rival *testMember
		c.must("a rival leads", func() bool {
			for _, name := range others {
				if c.members[name].node().IsLeader() {
					rival = c.members[name]
				}
			}
			return rival != nil
		})
		third := c.members[others[0]]
		if third == rival {
			third = c.members[others[1]]
		}
		rival.running().store.Unblock()
		c.must("the rival's entry on its disk", func() bool {
			_, ok := rival.disk.Entry(index)
			return ok
		})
		c.down(third.name, rival.name)

		a.running().store.Block()
		c.net.HealAll()
		c.up(third.name)
		if c.leader() != a {
			t.Fatal("the third leads, without the message")
		}
		time.Sleep(10 * time.Second)
		if a.running().fsm.knows(ref) {
			t.Error("a has applied what may still be replaced")
			c.oracle.acknowledged(acceptCommand(ref)) // whoever asks a is told
		}
		if third.running().fsm.knows(ref) {
			t.Error("the third has applied what may still be replaced")
		}
		c.down(a.name, third.name)
		c.up(a.name, rival.name)
		c.commit(c.leader())
		c.up(third.name)
		c.must("all level", c.level)
		c.oracle.conclude()
		c.oracle.clean()
	})
}

// TestOneChangeAtATime: the configuration changes by one server at a time, and so
// any two majorities meet. A leader whose disk hangs, and which asks for a second
// change before the first one is committed, must not get it: after a crash of the
// leader a majority that knows of neither and one that knows of both would not
// meet.
func TestOneChangeAtATime(t *testing.T) {
	inCluster(t, 5, clusterOptions{stallMax: time.Hour}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrapWith("a", "b", "c")
		for c.leader().name != "a" {
			c.elect("a")
		}
		a := c.members["a"]
		change := func(limit time.Duration, change func(ctx context.Context, id ServerID, address string) error, name string) error {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			return change(ctx, c.members[name].id(), c.members[name].address())
		}
		for _, name := range []string{"d", "e"} {
			if err := change(patience, a.node().AddNonvoter, name); err != nil {
				t.Fatal(err)
			}
		}
		c.commit(a)
		c.must("all level", c.level)
		c.net.Cut("a", "c")
		a.running().store.Block()
		for _, name := range []string{"d", "e"} {
			if err := change(3*time.Second, a.node().AddVoter, name); err == nil {
				t.Errorf("%s is a voter, says a leader that has not written it", name)
			}
		}
		time.Sleep(time.Second)
		c.down("a")
		c.up("a")
		// Two majorities that do not meet, if the second change was made.
		c.net.Partition([]string{"a", "c"}, []string{"b", "d", "e"})
		time.Sleep(time.Minute)
		var leaders []string
		for i, side := range [][]string{{"a", "c"}, {"b", "d", "e"}} {
			for _, name := range side {
				m := c.members[name]
				if m.node().IsLeader() && m.propose(10*time.Second, batchCommand(uint64(i+1), 0), nil) == nil {
					leaders = append(leaders, name)
				}
			}
		}
		if len(leaders) > 1 {
			t.Errorf("%v commit apart from each other", leaders)
		}
	})
}

// TestWhatDecidesWaitsForTheDisk: a leader's first entry of a term and a
// configuration are on its disk, with all that was before them, when it has them.
func TestWhatDecidesWaitsForTheDisk(t *testing.T) {
	for _, kind := range []raft.LogType{raft.LogNoop, raft.LogConfiguration} {
		t.Run(kind.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := clustertest.NewRaftDisk(1, time.Millisecond)
				store := disk.Open()
				s := &logStore{store: store, latch: newLatch(), leads: func() bool { return true }}
				store.Block()
				if err := s.StoreLogs(commandsOf(1, 2, 1)); err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() { ended <- s.StoreLog(&raft.Log{Index: 3, Term: 2, Type: kind}) }()
				time.Sleep(time.Hour)
				if len(ended) > 0 {
					t.Fatal("it has not waited for the disk")
				}
				store.Unblock()
				if err := <-ended; err != nil {
					t.Error(err)
				}
				if _, last := disk.Bounds(); last != 3 || s.settled(3) != 3 {
					t.Errorf("%d on the disk, settled %d", last, s.settled(3))
				}
				s.end()
			})
		})
	}
}
