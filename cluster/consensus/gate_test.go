package consensus

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestFollowerWithoutTheBodyNeverAcknowledges: with the body on the leader
// alone, nothing is committed, and no follower stores the entry; once the body
// gets through, it is committed without being proposed again.
func TestFollowerWithoutTheBodyNeverAcknowledges(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		term := a.node().Term()
		for _, other := range c.others(a.name) {
			c.bodies.Network.Cut(a.name, other)
		}
		ref := c.mint()
		c.put(ref, a.name)
		before := a.node().CommitIndex()
		if err := a.accept(20*time.Second, ref); !errors.Is(err, ErrOutcomeUnknown) || errors.Is(err, ErrNotAppended) {
			t.Errorf("accept: %v, want an unknown outcome", err)
		}
		_, last := a.disk.Bounds()
		for _, other := range c.others(a.name) {
			if _, ok := c.members[other].disk.Entry(last); ok {
				t.Errorf("%s stored the entry without its body", other)
			}
			if s := c.members[other].node().Stats(); s.GateRefusals == 0 || s.RefusingSince.IsZero() {
				t.Errorf("%s: %+v, want refusals", other, s)
			}
		}
		if got := a.node().CommitIndex(); got != before {
			t.Errorf("commit index went from %d to %d", before, got)
		}
		if got := a.node().Term(); got != term || !a.node().IsLeader() {
			t.Errorf("term %d, was %d: a waiting gate must not cost an election", got, term)
		}
		c.bodies.Network.HealAll()
		c.must("the entry committed", func() bool { return a.running().fsm.knows(ref) })
		c.must("all level", c.level)
		if s := c.members[c.others(a.name)[0]].node().Stats(); !s.RefusingSince.IsZero() {
			t.Errorf("still refusing: %+v", s)
		}
		c.oracle.clean()
	})
}

// TestGateWakesOnArrival: a body that comes by push, not by the gate's own
// fetch, lets the waiting request through; nothing is refused.
func TestGateWakesOnArrival(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		for _, other := range c.others(a.name) {
			c.bodies.Network.Cut(a.name, other)
		}
		ref := c.mint()
		c.put(ref, a.name)
		done := make(chan error, 1)
		go func() { done <- a.accept(patience, ref) }()
		time.Sleep(gateWait / 2)
		c.put(ref, c.others(a.name)...)
		began := time.Now()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited >= gateWait/2 { // by the bubble's clock
			t.Errorf("committed %v after the body had arrived", waited)
		}
		for _, other := range c.others(a.name) {
			if s := c.members[other].node().Stats(); s.GateRefusals != 0 || s.GateWaits == 0 {
				t.Errorf("%s: %+v", other, s)
			}
		}
		c.oracle.clean()
	})
}

// TestFollowerThatCannotStore: one member's disk takes no bodies for a minute.
// Nobody is elected, the others commit, and it is level soon after the cure.
func TestFollowerThatCannotStore(t *testing.T) {
	inCluster(t, 3, clusterOptions{housekeeping: true}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		term := a.node().Term()
		full := c.members[c.others(a.name)[0]]
		full.bodyDisk.SetFull(true)
		for range 120 {
			ref := c.mint()
			for _, name := range c.names {
				if name != full.name {
					c.put(ref, name)
				}
			}
			if err := a.accept(patience, ref); err != nil {
				t.Fatal(err)
			}
			time.Sleep(500 * time.Millisecond)
		}
		if got := a.node().Term(); got != term {
			t.Errorf("term %d, was %d", got, term)
		}
		full.bodyDisk.SetFull(false)
		c.oracle.conclude()
		if got := a.node().Term(); got != term {
			t.Errorf("term %d, was %d", got, term)
		}
		c.oracle.clean()
	})
}

// TestUnreadableNameIsAnError: entries whose Extensions this version cannot
// read are refused whole, by the gate and by the log.
func TestUnreadableNameIsAnError(t *testing.T) {
	ref := mail.NewBody([]byte("body")).Ref(mail.MintQueueID(1, [10]byte{}))
	next := ref.Encode()
	next[0]++
	for _, test := range []struct {
		name  string
		entry raft.Log
	}{
		{"next version", raft.Log{Type: raft.LogCommand, Extensions: next}},
		{"longer", raft.Log{Type: raft.LogCommand, Extensions: append(ref.Encode(), 0)}},
		{"shorter", raft.Log{Type: raft.LogCommand, Extensions: ref.Encode()[:20]}},
		{"one byte", raft.Log{Type: raft.LogCommand, Extensions: []byte{0}}},
		{"no command", raft.Log{Type: raft.LogNoop, Extensions: ref.Encode()}},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				c.must("all level", c.level)
				b, other := c.members[c.others(a.name)[0]], c.members[c.others(a.name)[1]]
				_, last := b.disk.Bounds()
				prev, _ := b.disk.Entry(last)
				good, bad := raft.Log{Index: last + 1, Term: 100, Type: raft.LogNoop}, test.entry
				bad.Index, bad.Term = last+2, 100
				resp, err := sendDirectly(c, b, &raft.AppendEntriesRequest{
					RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(other.id()), Addr: []byte(other.id())},
					Term:      100, PrevLogEntry: last, PrevLogTerm: prev.Term,
					Entries: []*raft.Log{&good, &bad},
					// Known to be committed or not makes no difference.
					LeaderCommitIndex: last + 2,
				})
				if err == nil || !strings.HasPrefix(err.Error(), errRefused) || resp.Success {
					t.Errorf("answer %+v, %v; want a refusal", resp, err)
				}
				if _, ok := b.disk.Entry(last + 1); ok {
					t.Error("the request was shortened")
				}
				var s logStore
				s.latch = newLatch()
				if err := s.StoreLogs([]*raft.Log{&bad}); err == nil {
					t.Error("the log stores it")
				}
				if got := b.node().Floor(); got != 0 {
					t.Errorf("floor %d", got)
				}
			})
		})
	}
}

// TestCommittedEntryThatCannotBeUnderstoodStopsTheNode: with a log that a newer
// version wrote, the node does not start; and an FSM adapter that meets such an
// entry applies nothing any more.
func TestCommittedEntryThatCannotBeUnderstoodStopsTheNode(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		a := c.members["a"]
		if err := a.disk.Open().StoreLogs([]*raft.Log{{Index: 1, Term: 1, Type: raft.LogCommand, Extensions: []byte{9}}}); err != nil {
			t.Fatal(err)
		}
		if err := a.start(); err == nil || !strings.Contains(err.Error(), "entry 1") {
			t.Errorf("start: %v", err)
		}
		p := &process{member: a}
		fsm := &fsmAdapter{fsm: newTestFSM(p), latch: newLatch(), log: &logStore{}}
		fsm.Apply(&raft.Log{Index: 1, Type: raft.LogCommand, Data: []byte{commandNothing}, Extensions: []byte{9}})
		if fsm.latch.Err() == nil {
			t.Error("the adapter went on")
		}
		if r, ok := fsm.Apply(&raft.Log{Index: 2, Type: raft.LogCommand, Data: []byte{commandNothing}}).(error); !ok {
			t.Errorf("applied entry 2 after it: %v", r)
		}
		if _, err := fsm.Snapshot(); err == nil {
			t.Error("took a snapshot that claims it")
		}
	})
}

// fakeBodies are bodies whose every answer the test gives.
type fakeBodies struct {
	Bodies
	mu      sync.Mutex
	held    map[mail.BodyRef]bool
	pins    int
	wanted  []mail.BodyRef
	arrived map[mail.BodyRef]chan struct{}
}

func (f *fakeBodies) Pin(ref mail.BodyRef) (func(), bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.held[ref] {
		return nil, false
	}
	f.pins++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pins--
	}, true
}

func (f *fakeBodies) Want(ref mail.BodyRef, _ ServerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wanted = append(f.wanted, ref)
}

func (f *fakeBodies) Arrived(ref mail.BodyRef) <-chan struct{} { return f.arrived[ref] }

// arrive makes a body held.
func (f *fakeBodies) arrive(ref mail.BodyRef) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held[ref] = true
	close(f.arrived[ref])
}

func (f *fakeBodies) pinned() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.pins
}

func testGate(b Bodies) (*gate, chan struct{}) {
	stop := make(chan struct{})
	g := newGate(Config{Bodies: b}, &floor{latch: newLatch(), writing: make(chan struct{}, 1)}, &logStore{store: raft.NewInmemStore(), latch: newLatch()})
	g.applied = func() uint64 { return 0 }
	g.floor.store = raft.NewInmemStore()
	g.stop = stop
	return g, stop
}

func named(index uint64, ref mail.BodyRef) *raft.Log {
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Extensions: ref.Encode()}
}

// TestGatePinsUntilRaftHasAnswered, also when the node stops meanwhile: Raft may
// be storing the entries. The answer is passed on.
func TestGatePinsUntilRaftHasAnswered(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		t.Run(fmt.Sprintf("stopped %v", stopped), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ref := mail.NewBody(nil).Ref(mail.QueueID{1})
				bodies := &fakeBodies{held: map[mail.BodyRef]bool{ref: true}}
				g, stop := testGate(bodies)
				answer := make(chan raft.RPCResponse, 1)
				req := &raft.AppendEntriesRequest{Entries: []*raft.Log{named(1, ref)}}
				ended := make(chan struct{})
				go func() {
					g.handle(raft.RPC{Command: req, RespChan: answer}, req)
					close(ended)
				}()
				rpc := <-g.passed
				if stopped {
					close(stop)
				}
				synctest.Wait()
				if bodies.pinned() != 1 || len(answer) != 0 {
					t.Errorf("while Raft has it: %d pins, %d answers", bodies.pinned(), len(answer))
				}
				rpc.Respond("answer", nil)
				<-ended
				if bodies.pinned() != 0 {
					t.Errorf("afterwards: %d pins", bodies.pinned())
				}
				if a := <-answer; a.Response != "answer" {
					t.Errorf("answer %v", a)
				}
			})
		})
	}
}

// TestRegressionGateAnswersNothingOnStop: what waits, for a body or for Raft, ends
// without an answer.
//
// It holds this defect: a gate that stopped let go of the bodies of a request which Raft
// might still be storing.
func TestRegressionGateAnswersNothingOnStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held, missing := mail.NewBody(nil).Ref(mail.QueueID{1}), mail.NewBody(nil).Ref(mail.QueueID{2})
		bodies := &fakeBodies{held: map[mail.BodyRef]bool{held: true}, arrived: map[mail.BodyRef]chan struct{}{missing: make(chan struct{})}}
		g, stop := testGate(bodies)
		answers := make(chan raft.RPCResponse, 2)
		var running sync.WaitGroup
		for _, ref := range []mail.BodyRef{held, missing} {
			req := &raft.AppendEntriesRequest{Entries: []*raft.Log{named(1, ref)}}
			g.admit(&running, raft.RPC{Command: req, RespChan: answers}, req)
		}
		synctest.Wait()
		close(stop)
		running.Wait()
		if len(answers) != 0 || bodies.pinned() != 0 {
			t.Errorf("%d answers, %d pins", len(answers), bodies.pinned())
		}
	})
}

// TestGateHoldsAllOrNothing: bodies that arrive one after the other share one
// wait; what was pinned is released when one of them does not come.
func TestGateHoldsAllOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x, y := mail.NewBody(nil).Ref(mail.QueueID{1}), mail.NewBody(nil).Ref(mail.QueueID{2})
		bodies := &fakeBodies{held: make(map[mail.BodyRef]bool), arrived: map[mail.BodyRef]chan struct{}{x: make(chan struct{}), y: make(chan struct{})}}
		g, _ := testGate(bodies)
		req := &raft.AppendEntriesRequest{Entries: []*raft.Log{named(5, x), named(6, y)}, LeaderCommitIndex: 4}
		go func() {
			time.Sleep(gateWait - time.Millisecond)
			bodies.arrive(x)
		}()
		answer := make(chan raft.RPCResponse, 1)
		g.handle(raft.RPC{Command: req, RespChan: answer}, req)
		if a := <-answer; a.Error == nil || bodies.pinned() != 0 || len(bodies.wanted) != 2 {
			t.Errorf("answer %v, %d pins, wanted %v", a, bodies.pinned(), bodies.wanted)
		}
		if got := g.floor.value.Load(); got != 0 {
			t.Errorf("floor %d without an exempt entry", got)
		}
		// With the commit index at 6 both are exempt, held or not.
		req.LeaderCommitIndex = 9
		release, err := g.hold(req)
		if err != nil || bodies.pinned() != 1 {
			t.Errorf("exempt: %v, %d pins", err, bodies.pinned())
		}
		release()
		if got := g.floor.value.Load(); got != 9 {
			t.Errorf("floor %d, want the request's commit index", got)
		}
		// A floor that cannot be written refuses.
		g.floor.latch.fail(errors.New("disk"))
		req.LeaderCommitIndex = 10
		if _, err := g.hold(req); err == nil {
			t.Error("exempt without a durable floor")
		}
	})
}

// TestGateBoundsWhoWaits: the request after the last place is refused at once.
func TestGateBoundsWhoWaits(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		ref := c.mint()
		bodies := &fakeBodies{arrived: map[mail.BodyRef]chan struct{}{ref: make(chan struct{})}}
		g, stop := testGate(bodies)
		tr := &transport{gate: g, stop: stop}
		req := &raft.AppendEntriesRequest{Entries: []*raft.Log{named(1, ref)}}
		answers := make(chan raft.RPCResponse, gateRequestsMax+1)
		for range gateRequestsMax {
			g.admit(&tr.running, raft.RPC{Command: req, RespChan: answers}, req)
			synctest.Wait()
		}
		if len(answers) != 0 {
			t.Errorf("%d answers", len(answers))
		}
		g.admit(&tr.running, raft.RPC{Command: req, RespChan: answers}, req)
		if len(answers) != 1 {
			t.Errorf("%d answers, want one refusal at once", len(answers))
		}
		close(stop)
		tr.running.Wait()
	})
}

// TestNothingElseWaitsBehindTheGate: while a request waits for its body,
// heartbeats and votes are handed on.
func TestNothingElseWaitsBehindTheGate(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		b, other := c.members[c.others(a.name)[0]], c.members[c.others(a.name)[1]]
		_, last := b.disk.Bounds()
		prev, _ := b.disk.Entry(last)
		header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(other.id()), Addr: []byte(other.id())}
		waiting := make(chan error, 1)
		go func() {
			listener, err := c.net.Host("slow").Listen(raftPort)
			if err != nil {
				waiting <- err
				return
			}
			s := newStream(testStream{listener, c.net.Host("slow")})
			sender := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: s, Logger: newLogger(testLogger("slow")), Timeout: patience})
			defer sender.Close()
			waiting <- sender.AppendEntries(raft.ServerID(b.id()), raftAddress(b.id(), b.address()), &raft.AppendEntriesRequest{
				RPCHeader: header, Term: 1, PrevLogEntry: last, PrevLogTerm: prev.Term,
				Entries: []*raft.Log{named(last+1, c.mint())},
			}, &raft.AppendEntriesResponse{})
		}()
		time.Sleep(gateWait / 4)
		began := time.Now()
		if _, err := sendDirectly(c, b, &raft.AppendEntriesRequest{RPCHeader: header, Term: 1}); err != nil {
			t.Errorf("heartbeat: %v", err)
		}
		if waited := time.Since(began); waited > gateWait/4 {
			t.Errorf("the heartbeat waited %v", waited)
		}
		if len(waiting) != 0 {
			t.Errorf("the request did not wait: %v", <-waiting)
		} else if err := <-waiting; err == nil || !strings.HasPrefix(err.Error(), errRefused) {
			t.Errorf("the request: %v", err)
		}
	})
}
