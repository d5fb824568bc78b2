package consensus

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// commandsOf returns entries as a leader's clients propose them.
func commandsOf(first, last, term uint64) []*raft.Log {
	logs := entriesOf(first, last, term)
	for _, l := range logs {
		l.Type = raft.LogCommand
	}
	return logs
}

// TestTail: a leader's entries are there before they are on its disk, and count
// when they are.
func TestTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewRaftDisk(1, time.Millisecond)
		store := disk.Open()
		leads := false
		s := &logStore{store: store, latch: newLatch(), leads: func() bool { return leads }}
		if err := s.StoreLogs(commandsOf(1, 3, 1)); err != nil {
			t.Fatal(err)
		}
		if _, last := disk.Bounds(); last != 3 {
			t.Fatalf("a follower's entries: %d on the disk", last)
		}
		leads = true
		store.Block()
		for _, logs := range [][]*raft.Log{commandsOf(4, 5, 2), commandsOf(6, 6, 2)} {
			if err := s.StoreLogs(logs); err != nil {
				t.Fatal(err)
			}
		}
		first, _ := s.FirstIndex()
		if last, err := s.LastIndex(); first != 1 || last != 6 || err != nil {
			t.Fatalf("entries %d to %d, %v", first, last, err)
		}
		for index := uint64(1); index <= 6; index++ {
			var l raft.Log
			if err := s.GetLog(index, &l); err != nil || l.Index != index {
				t.Errorf("entry %d: %+v, %v", index, l, err)
			}
		}
		if got := s.settled(6); got != 3 {
			t.Errorf("durable up to %d", got)
		}
		if err := s.await(3); err != nil {
			t.Errorf("await what is durable: %v", err)
		}
		waits := map[string]func() error{
			"await":     func() error { return s.await(4) },
			"await all": s.awaitAll,
			"follow": func() error {
				leads = false
				return s.StoreLogs(commandsOf(7, 7, 3))
			},
		}
		ended := make(chan error, len(waits))
		for _, wait := range waits {
			go func() { ended <- wait() }()
		}
		time.Sleep(time.Hour)
		if len(ended) > 0 {
			t.Fatal("somebody has not waited for the disk")
		}
		store.Unblock()
		for range waits {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		if _, last := disk.Bounds(); last != 7 || s.settled(7) != 7 || s.tail != nil || s.tailOctets != 0 {
			t.Errorf("%d on the disk, durable %d, tail %v of %d octets", last, s.settled(7), s.tail, s.tailOctets)
		}
		if err := s.DeleteRange(1, 7); err != nil {
			t.Error(err)
		}
		s.end()
	})
}

// TestTailIsBounded: Raft waits for the disk when the tail is full, and a failed
// write ends every wait.
func TestTailIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := clustertest.NewRaftDisk(1, time.Millisecond).Open()
		s := &logStore{store: store, latch: newLatch(), leads: func() bool { return true }}
		store.Block()
		store.FailNext(1)
		var last uint64
		stopped := make(chan error)
		go func() {
			for {
				l := &raft.Log{Index: last + 1, Term: 1, Data: make([]byte, 64<<10)}
				if err := s.StoreLog(l); err != nil {
					stopped <- err
					return
				}
				last++
			}
		}()
		synctest.Wait()
		if octets := last * 64 << 10; octets < tailOctetsMax || octets > tailOctetsMax+128<<10 {
			t.Errorf("%d octets in the tail", octets)
		}
		store.Unblock()
		if err := <-stopped; !errors.Is(err, ErrDisk) {
			t.Error(err)
		}
		if err := s.await(1); !errors.Is(err, ErrDisk) {
			t.Errorf("await: %v", err)
		}
		if got := s.settled(last); got != 0 {
			t.Errorf("durable up to %d", got)
		}
		s.end()
	})
}

// TestLeaderWritesBesideTheFollowers: an entry of a leader whose disk hangs is on
// the followers' disks, and nobody has applied it or heard of it.
func TestLeaderWritesBesideTheFollowers(t *testing.T) {
	inCluster(t, 3, clusterOptions{stallMax: time.Hour}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		before := a.running().fsm.count()
		a.running().store.Block()
		answered := make(chan error, 2)
		index := a.node().LastIndex() + 1
		go func() { answered <- a.propose(2*time.Hour, []byte{commandNothing}, nil) }()
		for _, name := range c.others(a.name) {
			c.must(name+" has it", func() bool {
				_, last := c.members[name].disk.Bounds()
				return last == index
			})
		}
		go func() {
			_, err := start(a.node(), t.Context(), func(timeout time.Duration) raft.Future { return a.node().raft.Barrier(timeout) })
			answered <- err
		}()
		if err := <-answered; err != nil { // start only asks
			t.Fatal(err)
		}
		snapshot := make(chan error, 1)
		go func() { snapshot <- a.node().raft.Snapshot().Error() }()
		time.Sleep(time.Minute)
		for _, name := range c.names {
			if n := c.members[name].running().fsm.count(); n != before {
				t.Errorf("%s has applied it", name)
			}
			if commit := c.members[name].node().CommitIndex(); commit >= index {
				t.Errorf("%s: committed up to %d", name, commit)
			}
		}
		if len(answered) > 0 || len(snapshot) > 0 {
			t.Error("answered")
		}
		a.running().store.Unblock()
		if err := <-answered; err != nil {
			t.Error(err)
		}
		if err := <-snapshot; err != nil {
			t.Errorf("snapshot: %v", err)
		}
		c.must("all level", c.level)
		c.oracle.clean()
	})
}

// TestLeaderDiesBeforeItsWrite: a leader and one follower are a majority for Raft,
// and the leader dies before its own copy is on its disk. The other follower and
// it go on without the entry. So nobody must have seen it.
func TestLeaderDiesBeforeItsWrite(t *testing.T) {
	run := func(t *testing.T, o controls.Set, check func(c *testCluster)) {
		inCluster(t, 3, clusterOptions{stallMax: time.Hour, controls: o}, func(t *testing.T, c *testCluster) {
			c.up()
			c.bootstrap()
			a := c.leader()
			c.commit(a)
			c.must("all level", c.level)
			with, without := c.members[c.others(a.name)[0]], c.members[c.others(a.name)[1]]
			without.kill()
			a.running().store.Block()
			lost := batchCommand(1, 0)
			index := a.node().LastIndex() + 1
			a.running().tasks.Go(func() { _ = a.propose(patience, lost, nil) })
			c.must(with.name+" has it", func() bool {
				_, ok := with.disk.Entry(index)
				return ok
			})
			time.Sleep(5 * time.Second) // time enough to commit it by mistake
			c.down(a.name, with.name)
			if _, ok := a.disk.Entry(index); ok {
				t.Fatal("the entry is on the leader's disk")
			}
			c.up(a.name, without.name)
			c.commit(c.leader())
			c.up(with.name)
			c.must("all level", c.level)
			check(c)
		})
	}
	run(t, controls.Set{}, func(c *testCluster) { c.oracle.clean() })
	t.Run("control: what is not durable counts", func(t *testing.T) {
		run(t, trial.On(t, controls.WrittenCounts), func(c *testCluster) { c.oracle.caught("has not got it on its disk") })
	})
}

// TestDeposedLeaderAnswersWhenItHasWritten: a leader that was deposed while its
// disk hung has the next leader's entries in its log, and not on its disk.
func TestDeposedLeaderAnswersWhenItHasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := clustertest.NewRaftDisk(1, time.Millisecond).Open()
		s := &logStore{store: store, latch: newLatch(), leads: func() bool { return true }}
		store.Block()
		if err := s.StoreLogs(entriesOf(1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		g := newGate(Config{}, &floor{latch: newLatch()}, s)
		g.applied = func() uint64 { return 0 }
		g.stop = stop
		answer := make(chan raft.RPCResponse, 1)
		go g.relay(raft.RPC{RespChan: answer})
		(<-g.passed).RespChan <- raft.RPCResponse{Response: &raft.AppendEntriesResponse{Success: true}}
		time.Sleep(time.Minute)
		if len(answer) > 0 {
			t.Fatal("it says that it has what is not on its disk")
		}
		store.Unblock()
		if a := <-answer; a.Error != nil {
			t.Error(a.Error)
		}
		s.end()
		close(stop)
	})
}

// bodyTime is how long it takes at most to write a body in the tests in which
// that takes long.
const bodyTime = 2 * time.Second

// slowBodies makes the members' disks slow for bodies, not for entries.
func slowBodies(c *testCluster) {
	for i, name := range c.names {
		c.members[name].bodyDisk = clustertest.NewBodyDisk(uint64(i), bodyTime)
	}
}

// acceptWhileWritten accepts messages until there is one whose entry is on all
// disks and its body on none.
func acceptWhileWritten(c *testCluster, leader *testMember) (ref mail.BodyRef, index uint64, answer chan error) {
	c.t.Helper()
	for range 20 {
		ref, index, answer = acceptAtOnce(c, leader)
		if !slices.ContainsFunc(c.names, func(name string) bool { return c.members[name].bodyDisk.Has(ref) }) {
			return ref, index, answer
		}
		if err := <-answer; err != nil {
			c.t.Fatal(err)
		}
	}
	c.t.Fatal("some body was always faster than the entries")
	return
}

// acceptAtOnce accepts a message whose body all running members are only about to
// write, and returns once its entry is on all their disks.
func acceptAtOnce(c *testCluster, leader *testMember) (ref mail.BodyRef, index uint64, answer chan error) {
	c.t.Helper()
	ref = c.mint()
	for _, name := range c.names {
		if p := c.members[name].running(); p != nil {
			p.tasks.Go(func() { _ = p.bodies.Put(ref) })
		}
	}
	synctest.Wait()
	index = leader.node().LastIndex() + 1
	answer = make(chan error, 1)
	go func() { answer <- leader.accept(patience, ref) }()
	c.must("the entry on the disks", func() bool {
		for _, name := range c.names {
			if _, ok := c.members[name].disk.Entry(index); !ok && c.members[name].running() != nil {
				return false
			}
		}
		return true
	})
	return ref, index, answer
}

// TestBodyAndEntryAreWrittenAtOnce: the entry does not wait for the body that it
// names, and nobody hears of it before a majority has both.
func TestBodyAndEntryAreWrittenAtOnce(t *testing.T) {
	run := func(t *testing.T, o controls.Set, check func(c *testCluster)) {
		inCluster(t, 3, clusterOptions{controls: o}, func(t *testing.T, c *testCluster) {
			slowBodies(c)
			c.up()
			c.bootstrap()
			leader := c.leader()
			c.commit(leader)
			c.must("all level", c.level)
			for range 5 {
				_, _, answer := acceptWhileWritten(c, leader)
				if err := <-answer; err != nil {
					t.Error(err)
				}
			}
			c.must("all level", c.level)
			check(c)
		})
	}
	run(t, controls.Set{}, func(c *testCluster) {
		c.oracle.conclude()
		c.oracle.clean()
	})
	t.Run("control: what is not durable counts", func(t *testing.T) {
		run(t, trial.On(t, controls.WrittenCounts), func(c *testCluster) { c.oracle.caught("committed with") })
	})
}

// TestCrashBetweenEntryAndBody: entries are left whose bodies nobody has. Nobody
// was told of them, so they are cut off, and all goes on.
func TestCrashBetweenEntryAndBody(t *testing.T) {
	for _, all := range []bool{true, false} {
		name := "one"
		if all {
			name = "all"
		}
		t.Run(name, func(t *testing.T) {
			inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
				slowBodies(c)
				c.up()
				c.bootstrap()
				leader := c.leader()
				c.commit(leader)
				c.must("all level", c.level)
				ref, index, answer := acceptWhileWritten(c, leader)
				dies := []string{c.others(leader.name)[0]}
				if all {
					dies = c.names
				}
				c.down(dies...)
				for _, name := range dies {
					if _, ok := c.members[name].disk.Entry(index); !ok || c.members[name].bodyDisk.Has(ref) {
						t.Fatalf("%s: entry on the disk %v, body %v", name, ok, c.members[name].bodyDisk.Has(ref))
					}
				}
				if err := <-answer; all && err == nil {
					t.Error("acknowledged")
				} else if !all && err != nil {
					t.Error(err)
				}
				began := time.Now()
				c.up(dies...)
				if took := time.Since(began); took > repairPatience/2 {
					t.Errorf("the start took %v: it has asked for what nobody has", took)
				}
				for _, name := range dies {
					if cut := c.members[name].node().Stats().CutAtStart; cut != 1 {
						t.Errorf("%s cut off %d entries", name, cut)
					}
				}
				if !all {
					c.put(ref, dies...) // what its hydration or its gate would fetch
				}
				c.commit(c.leader())
				c.must("all level", c.level)
				if all && leader.running().fsm.knows(ref) {
					t.Error("a message without a body")
				}
				c.oracle.conclude()
				c.oracle.clean()
			})
		})
	}
}

// TestCutsOnlyWhatNobodyWasToldOf: an entry that was acknowledged here keeps the
// member from starting when its body is lost, unless somebody has it.
func TestCutsOnlyWhatNobodyWasToldOf(t *testing.T) {
	run := func(t *testing.T, o controls.Set, judge func(t *testing.T, c *testCluster, start error), conclude func(*oracle)) {
		inCluster(t, 3, clusterOptions{controls: o, housekeeping: true}, func(t *testing.T, c *testCluster) {
			c.up()
			c.bootstrap()
			a := c.leader()
			b, absent := c.members[c.others(a.name)[0]], c.members[c.others(a.name)[1]]
			c.commit(a)
			absent.kill()
			ref := c.mint()
			c.put(ref, a.name, b.name)
			if err := a.accept(patience, ref); err != nil {
				t.Fatal(err)
			}
			c.commit(a) // in another batch
			c.must("level", c.level)
			c.down()
			b.bodyDisk.Lose(ref)
			c.up(absent.name)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			judge(t, c, b.startWithin(ctx))
			if b.running() != nil {
				c.commit(c.leader())
			}
			c.up(a.name)
			if b.running() == nil {
				c.up(b.name) // a has the body
			}
			c.oracle.conclude()
			conclude(c.oracle)
		})
	}
	run(t, controls.Set{}, func(t *testing.T, c *testCluster, err error) {
		if !errors.Is(err, ErrBodyLost) {
			t.Errorf("start: %v", err)
		}
	}, (*oracle).clean)
	t.Run("control: cut off all the same", func(t *testing.T) {
		run(t, trial.On(t, controls.CutsAll), func(t *testing.T, c *testCluster, err error) {
			if err != nil {
				t.Errorf("start: %v", err)
			}
		}, func(o *oracle) { o.caught("does not know the acknowledged") })
	})
}
