package consensus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func proposeFor(n *Node, limit time.Duration, data []byte, ref *mail.BodyRef) (any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return n.Propose(ctx, data, ref)
}

// TestProposeSaysWhatIsCertain: what was never appended, and why; what the FSM
// answered.
func TestProposeSaysWhatIsCertain(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		n := a.node()
		nothing := []byte{commandNothing}
		missing := c.mint()
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		last := n.LastIndex()
		for _, test := range []struct {
			name  string
			cause error
			call  func() (any, error)
		}{
			{"not the leader", ErrNotLeader, func() (any, error) {
				return proposeFor(c.members[c.others(a.name)[0]].node(), patience, nothing, nil)
			}},
			{"body not held", ErrBodyNotHeld, func() (any, error) { return proposeFor(n, patience, acceptCommand(missing), &missing) }},
			{"too large", ErrTooLarge, func() (any, error) { return proposeFor(n, patience, make([]byte, EntryBytesMax+1), nil) }},
			{"too large with the name", ErrTooLarge, func() (any, error) { return proposeFor(n, patience, make([]byte, EntryBytesMax), &missing) }},
			{"ended before", nil, func() (any, error) { return n.Propose(ended, nothing, nil) }},
		} {
			r, err := test.call()
			if r != nil || !errors.Is(err, ErrNotAppended) || errors.Is(err, ErrOutcomeUnknown) || test.cause != nil && !errors.Is(err, test.cause) {
				t.Errorf("%s: %v, %v", test.name, r, err)
			}
		}
		if got := n.LastIndex(); got != last {
			t.Errorf("the log went from %d to %d", last, got)
		}
		if r, err := proposeFor(n, patience, append(nothing, make([]byte, EntryBytesMax-1)...), nil); err != nil || r != last+1 {
			t.Errorf("the largest entry: %v, %v", r, err)
		}
		c.must("all level", c.level)
		c.oracle.clean()
	})
}

// TestClassify: Raft's answers, sorted.
func TestClassify(t *testing.T) {
	for _, err := range []error{raft.ErrNotLeader, raft.ErrEnqueueTimeout, raft.ErrLeadershipTransferInProgress, raft.ErrAbortedByRestore} {
		if got := classify(err); !errors.Is(got, ErrNotAppended) || errors.Is(got, ErrOutcomeUnknown) {
			t.Errorf("%v: %v", err, got)
		}
	}
	for _, err := range []error{raft.ErrLeadershipLost, raft.ErrRaftShutdown, errors.New("disk")} {
		if got := classify(err); errors.Is(got, ErrNotAppended) || !errors.Is(got, ErrOutcomeUnknown) || !errors.Is(got, err) {
			t.Errorf("%v: %v", err, got)
		}
	}
	if classify(nil) != nil {
		t.Error("nil is an error")
	}
}

// TestPinLastsAsLongAsTheProposal, not as long as the proposer's patience. And
// an entry whose leader has gone on alone is unknown, then gone or committed.
func TestPinLastsAsLongAsTheProposal(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		for _, name := range c.others(a.name) {
			c.bodies.Network.Cut(a.name, name)
		}
		ref := c.mint()
		c.put(ref, a.name)
		if _, err := proposeFor(a.node(), time.Second, acceptCommand(ref), &ref); !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("propose: %v", err)
		}
		bodies := a.running().bodies
		if doomed := bodies.Doom([]mail.BodyRef{ref}); len(doomed) != 0 {
			t.Error("not pinned")
		}
		if got := a.node().BodiesNamedAbove(0); len(got) != 1 || got[0] != ref {
			t.Errorf("named by the log: %v", got)
		}
		c.bodies.Network.HealAll()
		c.must("the entry committed", func() bool { return a.running().fsm.knows(ref) })
		c.must("unpinned", func() bool { return a.node().Stats().Proposals == 0 })
		if doomed := bodies.Doom([]mail.BodyRef{ref}); len(doomed) != 1 {
			t.Error("still pinned")
		}
		bodies.Spare([]mail.BodyRef{ref})
	})
}

// TestProposeBoundsItself: when all places are taken, a proposal waits for one
// within its ctx, and is certainly not appended.
func TestProposeBoundsItself(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		n := c.leader().node()
		for range proposalsMax {
			n.proposals <- struct{}{}
		}
		if _, err := proposeFor(n, time.Second, []byte{commandNothing}, nil); !errors.Is(err, ErrNotAppended) {
			t.Errorf("propose: %v", err)
		}
		for range proposalsMax {
			<-n.proposals
		}
		c.commit(c.leader())
	})
}

// TestShutdownEndsWhatWaits: pending proposals, with Raft stopped in the middle
// of whatever it does; calls after it return at once; no goroutine is left, or
// the bubble would fail.
func TestShutdownEndsWhatWaits(t *testing.T) {
	for seed := range uint64(30) {
		inCluster(t, 3, clusterOptions{seed: seed}, func(t *testing.T, c *testCluster) {
			c.up()
			c.bootstrap()
			a := c.leader()
			c.commit(a)
			n := a.node()
			var pending, wrong atomic.Int64
			for range 50 {
				pending.Add(1)
				go func() {
					defer pending.Add(-1)
					for {
						_, err := proposeFor(n, time.Hour, []byte{commandNothing}, nil)
						switch {
						case err == nil:
							continue
						case !errors.Is(err, ErrNotAppended) && !errors.Is(err, ErrOutcomeUnknown):
							wrong.Add(1)
						}
						return
					}
				}()
			}
			if seed%2 == 0 { // some that cannot be committed
				for _, name := range c.others(a.name) {
					c.net.Cut(a.name, name)
				}
			}
			time.Sleep(time.Duration(seed) * 7 * time.Millisecond)
			a.kill()
			synctest.Wait()
			if pending.Load() != 0 || wrong.Load() != 0 {
				t.Errorf("%d proposals wait, %d ended with neither error", pending.Load(), wrong.Load())
			}
			ctx := context.Background() // never ends by itself
			if _, err := n.Propose(ctx, []byte{commandNothing}, nil); !errors.Is(err, ErrNotAppended) {
				t.Errorf("propose after shutdown: %v", err)
			}
			if err := n.RemoveServer(ctx, "x/1"); err == nil {
				t.Error("remove after shutdown succeeded")
			}
			if err := n.Snapshot(ctx); err == nil {
				t.Error("snapshot after shutdown succeeded")
			}
			if err := n.Bootstrap([]Server{{ID: a.id(), Address: "x", Voter: true}}); err == nil {
				t.Error("bootstrap after shutdown succeeded")
			}
			n.WhileLeader(func(context.Context) { t.Error("leads after shutdown") })
			if err := n.Shutdown(ctx); err != nil {
				t.Errorf("second shutdown: %v", err)
			}
		})
	}
}

// TestShutdownWithCommandsQueued: entries that are committed and wait for the
// FSM when Raft shuts down are never answered by it. Their proposals end.
func TestShutdownWithCommandsQueued(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		a.running().fsm.hold()
		const proposals = 100
		answers := make(chan error, proposals)
		for range proposals {
			go func() {
				_, err := proposeFor(a.node(), time.Hour, []byte{commandNothing}, nil)
				answers <- err
			}()
			time.Sleep(50 * time.Millisecond) // each its own batch
		}
		go func() {
			time.Sleep(time.Second)
			a.running().fsm.letGo()
		}()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := a.node().Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		unknown := 0
		for range proposals {
			if err := <-answers; errors.Is(err, ErrOutcomeUnknown) {
				unknown++
			} else if err != nil {
				t.Errorf("propose: %v", err)
			}
		}
		if unknown == 0 {
			t.Error("all were answered: nothing was queued")
		}
	})
}

// TestEndWith holds the library to the field that endWith sets: without it, a
// proposal that is committed while Raft shuts down is never answered.
func TestEndWith(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		n := c.leader().node()
		done := make(chan struct{})
		close(done)
		for name, f := range map[string]raft.Future{
			"apply":         n.raft.ApplyLog(raft.Log{Data: []byte{commandNothing}}, time.Second),
			"barrier":       n.raft.Barrier(time.Second),
			"configuration": n.raft.AddNonvoter("x/1", "x/1@x:1", 0, time.Second),
		} {
			if !endWith(f, done) {
				t.Errorf("%s: %T has no such field", name, f)
			}
			if err := f.Error(); err != nil && !errors.Is(err, raft.ErrRaftShutdown) {
				t.Errorf("%s: %v", name, err)
			}
		}
		c.down()
		// Afterwards Raft refuses, or queues what nobody will take out any more.
		f := n.raft.Barrier(time.Second)
		endWith(f, done)
		if err := f.Error(); !errors.Is(err, raft.ErrRaftShutdown) {
			t.Errorf("%T: %v", f, err)
		}
	})
}

// TestWhileLeader: each leadership runs it once, after everything that was
// committed before has been applied here; its ctx ends with the leadership; it
// never runs twice at the same time.
func TestWhileLeader(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		var running, runs atomic.Int64
		var committed atomic.Int64
		for _, name := range c.names {
			m := c.members[name]
			for range 2 { // two functions of each member
				var mine atomic.Int64
				p := m.running()
				p.node.WhileLeader(func(ctx context.Context) {
					if mine.Add(1) != 1 {
						t.Error("runs twice at the same time")
					}
					running.Add(1)
					runs.Add(1)
					if got := p.fsm.count(); int64(got) < committed.Load() {
						t.Errorf("%s leads with %d commands applied of %d", m.name, got, committed.Load())
					}
					<-ctx.Done()
					time.Sleep(50 * time.Millisecond) // slow to end
					mine.Add(-1)
					running.Add(-1)
				})
			}
		}
		c.bootstrap()
		for _, name := range []string{"a", "b", "c", "a"} {
			m := c.elect(name)
			for range 20 {
				c.commit(m)
				committed.Store(int64(m.running().fsm.count()))
			}
			c.must("one leader's functions run", func() bool { return running.Load() == 2 })
		}
		if runs.Load() < 8 {
			t.Errorf("%d runs", runs.Load())
		}
		// One that is registered late runs at once.
		late := make(chan struct{})
		m := c.leader()
		m.node().WhileLeader(func(context.Context) { close(late) })
		<-late
		c.down()
		if running.Load() != 0 {
			t.Errorf("%d functions run after shutdown", running.Load())
		}
		c.oracle.clean()
	})
}

// TestConcurrentProposals: all answered, each with its own result.
func TestConcurrentProposals(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		results := make(chan any, 500)
		for i := range 500 {
			go func() {
				r, err := proposeFor(a.node(), patience, fmt.Appendf([]byte{commandNothing}, "%d", i), nil)
				if err != nil {
					t.Errorf("propose: %v", err)
				}
				results <- r
			}()
		}
		seen := make(map[any]bool)
		for range 500 {
			r := <-results
			if seen[r] {
				t.Errorf("result %v twice", r)
			}
			seen[r] = true
		}
		c.must("all level", c.level)
		c.oracle.clean()
	})
}

// TestSnapshotRoundTrip: a member restarts from its own snapshot.
func TestSnapshotRoundTrip(t *testing.T) {
	inCluster(t, 1, clusterOptions{trailing: 4}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		refs := c.deliver(a, 20)
		for range 2 { // the second finds nothing new
			if err := a.node().Snapshot(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if got := len(a.node().BodiesNamedAbove(0)); got > 3 {
			t.Errorf("%d bodies named by 4 trailing entries", got)
		}
		c.down()
		c.up()
		c.leader()
		for _, ref := range refs {
			if !a.running().fsm.knows(ref) {
				t.Errorf("%s is not known", ref)
			}
		}
		var out bytes.Buffer
		s, err := a.running().fsm.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.WriteTo(&out); err != nil || out.Len() == 0 {
			t.Errorf("%v, %d octets", err, out.Len())
		}
	})
}
