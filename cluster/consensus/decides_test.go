package consensus

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestRegressionFirstEntryOfATerm: what a leader has of older terms counts only under an
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
//
// It holds this defect: a leader counted the first entry of its term before that was on
// its disk, so that after its crash a message with a 250 was replaced by another entry.
func TestRegressionFirstEntryOfATerm(t *testing.T) {
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

// TestRegressionOneChangeAtATime: the configuration changes by one server at a time, and so
// any two majorities meet. A leader whose disk hangs, and which asks for a second
// change before the first one is committed, must not get it: after a crash of the
// leader a majority that knows of neither and one that knows of both would not
// meet.
//
// It holds this defect: Raft took a second change of the members while the first was in
// the leader's memory alone.
func TestRegressionOneChangeAtATime(t *testing.T) {
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

// lateBodies are on their way until they are let through.
type lateBodies struct {
	Bodies
	on chan struct{}
}

func (b lateBodies) Await(mail.BodyRef) error {
	<-b.on
	return nil
}

func (b lateBodies) Hasten() {}

func (b lateBodies) Held(mail.BodyRef) bool { return false }

func namingBodies(first, last, term uint64) []*raft.Log {
	logs := commandsOf(first, last, term)
	for _, l := range logs {
		l.Extensions = mail.NewBody([]byte{byte(l.Index)}).Ref(mail.QueueID{byte(l.Index)}).Encode()
	}
	return logs
}

// patientBodies go to the disk when they are hastened.
type patientBodies struct {
	lateBodies
	hastened *[]uint64 // the last entry on the disk at each Hasten
	disk     *clustertest.RaftDisk
}

func (b patientBodies) Hasten() {
	_, last := b.disk.Bounds()
	*b.hastened = append(*b.hastened, last)
}

// TestBodiesAreWrittenWithTheirEntries: who writes entries has the bodies that they
// name written meanwhile, not behind them.
func TestBodiesAreWrittenWithTheirEntries(t *testing.T) {
	disk := clustertest.NewRaftDisk(1, 0)
	on := make(chan struct{})
	close(on)
	var hastened []uint64
	s := &logStore{store: disk.Open(), latch: newLatch(), bodies: patientBodies{lateBodies{on: on}, &hastened, disk}, floor: &floor{}}
	for _, logs := range [][]*raft.Log{namingBodies(1, 2, 1), commandsOf(3, 3, 1), namingBodies(4, 4, 1)} {
		if err := s.StoreLogs(logs); err != nil {
			t.Fatal(err)
		}
	}
	if want := []uint64{0, 3}; !slices.Equal(hastened, want) {
		t.Errorf("hastened when the log ended with %d, want %d: once before each batch that names bodies", hastened, want)
	}
}

// TestRegressionSettleIsOfOneBatch: who waited for the bodies of a batch that was cut off and
// sent again, together with more, does not settle the new one.
//
// It holds this defect: the wait for a batch that was cut off settled the one that came
// in its place.
func TestRegressionSettleIsOfOneBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bodies := lateBodies{on: make(chan struct{})}
		s := &logStore{store: clustertest.NewRaftDisk(1, 0).Open(), latch: newLatch(), bodies: bodies, floor: &floor{}}
		if err := s.write(namingBodies(1, 1, 1)); err != nil {
			t.Fatal(err)
		}
		settled := make(chan error)
		go func() { settled <- s.settle() }()
		synctest.Wait()
		// The first one settles, is cut off, and comes again with another.
		again := namingBodies(1, 2, 2)
		s.mu.Lock()
		s.unsettled = nil
		for _, l := range again {
			ref, err := bodyOf(l)
			if err != nil {
				t.Fatal(err)
			}
			s.unsettled = append(s.unsettled, namedBody{l.Index, *ref})
		}
		s.mu.Unlock()
		close(bodies.on)
		if err := <-settled; err != nil {
			t.Fatal(err)
		}
		if got := s.settled(2); got != 0 {
			t.Errorf("settled up to %d, and nobody has waited for the second body", got)
		}
	})
}

// TestBatchWaitsForTheOneBefore: no batch is written before the one before it is
// settled, or the start could not tell where what is not settled begins.
func TestBatchWaitsForTheOneBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := clustertest.NewRaftDisk(1, 0)
		bodies := lateBodies{on: make(chan struct{})}
		s := &logStore{store: disk.Open(), latch: newLatch(), bodies: bodies, floor: &floor{}, leads: func() bool { return true }}
		for index := uint64(1); index <= 2; index++ {
			if err := s.StoreLogs(namingBodies(index, index, 1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		written := make(chan error, 1)
		go func() { written <- s.write(namingBodies(2, 2, 1)) }()
		time.Sleep(time.Minute)
		if _, last := disk.Bounds(); last != 1 || len(written) > 0 {
			t.Errorf("entries up to %d are on the disk, and the body of the first is not", last)
		}
		close(bodies.on)
		if err := errors.Join(<-written, s.awaitAll()); err != nil {
			t.Error(err)
		}
		s.end()
	})
}

// TestBarrierIsAnsweredWhenSettled: what the FSM never sees, and so cannot hold
// back, is answered when it is settled, and a snapshot that counts it is taken then.
func TestBarrierIsAnsweredWhenSettled(t *testing.T) {
	inCluster(t, 3, clusterOptions{stallMax: time.Hour}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		a.running().store.Block()
		barrier, err := start(a.node(), t.Context(), func(timeout time.Duration) raft.Future { return a.node().raft.Barrier(timeout) })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		snapshot := make(chan error, 1)
		go func() { snapshot <- a.node().raft.Snapshot().Error() }()
		time.Sleep(time.Minute)
		select {
		case <-barrier.done:
			t.Error("the barrier is answered, and not on the leader's disk")
		default:
		}
		if len(snapshot) > 0 {
			t.Error("a snapshot counts what is not on the leader's disk")
		}
		a.running().store.Unblock()
		<-barrier.done
		if err := errors.Join(barrier.err, <-snapshot); err != nil {
			t.Error(err)
		}
	})
}

// TestRegressionCoveredSnapshotIsAnsweredWhenSettled: what a snapshot covers was acknowledged
// then, and so it must not be lost in a crash.
//
// It holds this defect: a snapshot that the log covers was answered before what it covers
// was on the disk, and a crash then made the node one that is refused as outdated.
func TestRegressionCoveredSnapshotIsAnsweredWhenSettled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bodies := lateBodies{on: make(chan struct{})}
		s := &logStore{store: clustertest.NewRaftDisk(1, 0).Open(), latch: newLatch(), bodies: bodies, floor: &floor{}}
		if err := s.StoreLogs(namingBodies(1, 2, 1)); err != nil {
			t.Fatal(err)
		}
		g := newGate(Config{}, &floor{latch: newLatch()}, s)
		g.applied = func() uint64 { return 0 }
		req := &raft.InstallSnapshotRequest{Term: 1, LastLogIndex: 2, LastLogTerm: 1}
		if !g.covers(req) {
			t.Fatal("not covered")
		}
		answer := make(chan raft.RPCResponse, 1)
		go g.answerCovered(raft.RPC{RespChan: answer, Reader: bytes.NewReader(nil)}, req)
		time.Sleep(time.Minute)
		if len(answer) > 0 {
			t.Fatal("it says that it has what is not settled")
		}
		close(bodies.on)
		if a := <-answer; a.Error != nil {
			t.Error(a.Error)
		}
	})
}

// TestRegressionQuestionForAnEntryIsAnsweredWhenSettled: a request without entries that asks
// for the entry before is answered only when that one is settled, also where it
// came while the entry was being stored. Who is told yes will later know this
// server as one that has the entry, and refuse it as outdated where it has not.
//
// It holds this defect: a request without entries was answered while the body of the
// entry before was still being written, and a crash then made the node one that is
// refused as outdated.
func TestRegressionQuestionForAnEntryIsAnsweredWhenSettled(t *testing.T) {
	inCluster(t, 3, clusterOptions{stallMax: time.Hour}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		leader := c.leader()
		c.commit(leader)
		c.must("all level", c.level)
		f := c.members[c.others(leader.name)[0]]
		f.kill()
		f.bodyDisk = clustertest.NewBodyDisk(9, 2*time.Hour)
		c.up(f.name)
		c.commit(leader)
		c.must("all level", c.level)
		ref := c.mint()
		c.put(ref, leader.name)
		f.running().tasks.Go(func() { _ = f.running().bodies.Put(ref) })
		synctest.Wait()
		f.running().store.Block()
		index := leader.node().LastIndex() + 1
		leader.running().tasks.Go(func() { _ = leader.accept(patience, ref) })
		time.Sleep(time.Second) // Raft at f stores it.
		c.net.Cut(leader.name, f.name)
		s, _ := c.outside()
		sender := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
			Stream: s, Logger: newLogger(testLogger("outside")), MaxPool: 1, Timeout: 10 * time.Second, MsgpackUseNewTimeFormat: true,
		})
		defer sender.Close()
		var resp raft.AppendEntriesResponse
		asked := make(chan error, 1)
		go func() {
			asked <- sender.AppendEntries(raft.ServerID(f.id()), raftAddress(f.id(), f.address()), &raft.AppendEntriesRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader.id()), Addr: []byte(leader.id())},
				Term:      f.node().Term(), PrevLogEntry: index, PrevLogTerm: leader.node().Term(),
			}, &resp)
		}()
		time.Sleep(time.Second)
		f.running().store.Unblock()
		err := <-asked
		if _, stored := f.disk.Entry(index); !stored || f.bodyDisk.Has(ref) {
			t.Fatalf("entry stored %v, body %v", stored, f.bodyDisk.Has(ref))
		}
		if err == nil && resp.Success {
			t.Error("it says that it has an entry whose body is not on its disk")
		}
	})
}

// TestSnapshotAttests: the log is not cut off before the end of a snapshot, which
// was taken of what was settled. A body that is missing there was lost.
func TestSnapshotAttests(t *testing.T) {
	for _, test := range []struct {
		name         string
		snapshot     uint64
		acknowledged uint64
		left         uint64
	}{
		{"nothing", 0, 0, 2},
		{"a snapshot", 4, 0, 4},
		{"others", 0, 5, 5},
		{"both", 4, 3, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			store := clustertest.NewRaftDisk(1, 0).Open()
			if err := store.StoreLogs(namingBodies(1, 6, 1)); err != nil {
				t.Fatal(err)
			}
			if test.snapshot > 0 {
				sink, err := store.Create(1, test.snapshot, 1, raft.Configuration{}, 0, nil)
				if err := errors.Join(err, sink.Close()); err != nil {
					t.Fatal(err)
				}
			}
			s := &logStore{store: store, latch: newLatch(), floor: &floor{}}
			if _, err := s.names.scan(store, 0, nil); err != nil {
				t.Fatal(err)
			}
			c := Config{Bodies: heldUpTo(2), Logger: testLogger("a"), Stores: Stores{Snapshots: store}, Acknowledged: test.acknowledged}
			if err := cutUnsettled(c, s, s.floor); err != nil {
				t.Fatal(err)
			}
			if last, _ := s.LastIndex(); last != test.left {
				t.Errorf("the log ends at %d, want %d", last, test.left)
			}
		})
	}
}

// heldUpTo holds the bodies of namingBodies up to an index.
func heldUpTo(index byte) Bodies { return heldBelow{last: index} }

type heldBelow struct {
	Bodies
	last byte
}

func (b heldBelow) Held(ref mail.BodyRef) bool { return ref.ID[0] <= b.last }
