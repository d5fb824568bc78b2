package consensus

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
)

// TestTail: a leader's entries are there before they are on its disk, and count
// when they are.
func TestTail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewRaftDisk(1, time.Millisecond)
		store := disk.Open()
		leads := false
		s := &logStore{store: store, latch: newLatch(), leads: func() bool { return leads }}
		if err := s.StoreLogs(entriesOf(1, 3, 1)); err != nil {
			t.Fatal(err)
		}
		if _, last := disk.Bounds(); last != 3 {
			t.Fatalf("a follower's entries: %d on the disk", last)
		}
		leads = true
		store.Block()
		for _, logs := range [][]*raft.Log{entriesOf(4, 5, 2), entriesOf(6, 6, 2)} {
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
		if got := s.durable(6); got != 3 {
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
				return s.StoreLogs(entriesOf(7, 7, 3))
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
		if _, last := disk.Bounds(); last != 7 || s.durable(7) != 7 || s.tail != nil || s.tailOctets != 0 {
			t.Errorf("%d on the disk, durable %d, tail %v of %d octets", last, s.durable(7), s.tail, s.tailOctets)
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
		if got := s.durable(last); got != 0 {
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
		go func() { answered <- a.propose(2*time.Hour, []byte{commandNothing}, nil) }()
		index := a.node().LastIndex() + 1
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
	run := func(t *testing.T, o controls, check func(c *testCluster)) {
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
			a.running().tasks.Go(func() { _ = a.propose(patience, lost, nil) })
			index := a.node().LastIndex() + 1
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
	run(t, controls{}, func(c *testCluster) { c.oracle.clean() })
	t.Run("control: the tail counts", func(t *testing.T) {
		run(t, controls{tailCounts: true}, func(c *testCluster) { c.oracle.caught("has not got it on its disk") })
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
		g := newGate(Config{controls: &controls{}}, &floor{latch: newLatch()}, s)
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
