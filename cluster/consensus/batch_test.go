package consensus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// proposeAll proposes a batch at a member for at most a time.
func (m *testMember) proposeAll(limit time.Duration, proposals ...Proposal) []Answer {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	answers := m.node().ProposeAll(ctx, proposals)
	for i, a := range answers {
		if a.Err == nil {
			m.c.oracle.acknowledged(proposals[i].Data)
		}
	}
	return answers
}

// accepting is the proposal of a message, nothing that of nothing.
func accepting(ref mail.BodyRef) Proposal { return Proposal{Data: acceptCommand(ref), Body: &ref} }
func nothing() Proposal                   { return Proposal{Data: []byte{commandNothing}} }

// batchOf is a batch of commands without effect, of which the oracle knows the
// order.
func batchOf(batch uint64, size int) []Proposal {
	proposals := make([]Proposal, size)
	for i := range proposals {
		proposals[i].Data = batchCommand(batch, byte(i))
	}
	return proposals
}

// takePlaces takes all places for proposals but some.
func takePlaces(n *Node, but int) (giveBack func(places int)) {
	for range proposalsMax - but {
		n.proposals <- struct{}{}
	}
	return func(places int) {
		for range places {
			<-n.proposals
		}
	}
}

// certain and open tell of an answer whether it is exactly that.
func certain(a Answer) bool {
	return a.Value == nil && errors.Is(a.Err, ErrNotAppended) && !errors.Is(a.Err, ErrOutcomeUnknown)
}

func open(a Answer) bool {
	return a.Value == nil && errors.Is(a.Err, ErrOutcomeUnknown) && !errors.Is(a.Err, ErrNotAppended)
}

// TestBatchesKeepTheirOrder, however many are under way, and each entry has its
// own answer.
func TestBatchesKeepTheirOrder(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		var all sync.WaitGroup
		for batch := range 12 {
			proposals := batchOf(uint64(batch), 1+9*batch) // more than Raft takes at once, too
			for i := 1; i < len(proposals); i += 5 {
				ref := c.mint()
				c.put(ref, c.names...)
				proposals = slices.Insert(proposals, i, accepting(ref))
			}
			all.Go(func() {
				last := uint64(0)
				for i, answer := range a.proposeAll(patience, proposals...) {
					index, ok := answer.Value.(uint64)
					if !ok || answer.Err != nil || index <= last {
						t.Errorf("batch %d: entry %d has index %v after %d, %v", batch, i, answer.Value, last, answer.Err)
						continue
					}
					last = index
					if got := c.oracle.commandAt(index); got != string(proposals[i].Data) {
						t.Errorf("batch %d: entry %d is answered for %x", batch, i, got)
					}
				}
			})
		}
		all.Wait()
		c.must("all level", c.level)
		c.oracle.conclude()
		c.oracle.clean()
	})
}

// TestBatchWithEntriesRefused: what can never be appended is refused by itself.
func TestBatchWithEntriesRefused(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		held, missing := c.mint(), c.mint()
		c.put(held, c.names...)
		last := a.node().LastIndex()
		answers := a.proposeAll(patience,
			Proposal{Data: make([]byte, EntryBytesMax+1)}, nothing(), accepting(missing), accepting(held),
			Proposal{Data: make([]byte, EntryBytesMax), Body: &held}, nothing())
		for i, cause := range []error{ErrTooLarge, nil, ErrBodyNotHeld, nil, ErrTooLarge, nil} {
			if cause == nil && answers[i].Err != nil || cause != nil && (!certain(answers[i]) || !errors.Is(answers[i].Err, cause)) {
				t.Errorf("entry %d: %+v, want %v", i, answers[i], cause)
			}
		}
		if got := a.node().LastIndex(); got != last+3 {
			t.Errorf("the log went from %d to %d", last, got)
		}
		c.must("all level", c.level)
		for _, name := range c.names {
			if fsm := c.members[name].running().fsm; fsm.knows(missing) || !fsm.knows(held) {
				t.Errorf("%s: knows %s: %v, knows %s: %v", name, missing, fsm.knows(missing), held, fsm.knows(held))
			}
		}
		if doomed := a.running().bodies.Doom([]mail.BodyRef{held}); len(doomed) != 1 {
			t.Error("still pinned")
		}
		for i, answer := range c.members[c.others(a.name)[0]].proposeAll(patience, nothing(), accepting(held)) {
			if !certain(answer) || !errors.Is(answer.Err, ErrNotLeader) {
				t.Errorf("entry %d at a follower: %+v", i, answer)
			}
		}
		if got := a.proposeAll(patience); len(got) != 0 {
			t.Errorf("of none: %v", got)
		}
		c.oracle.clean()
	})
}

// TestRegressionBatchLargerThanThePlaces: the places of entries that have ended serve the
// later ones of the same batch.
//
// It holds this defect: a batch with more entries than there were free places waited for
// places which its own committed entries held, until all of it was called unknown.
func TestRegressionBatchLargerThanThePlaces(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		giveBack := takePlaces(a.node(), 3)
		defer giveBack(proposalsMax - 3)
		var all sync.WaitGroup
		for batch := range 3 {
			all.Go(func() {
				for i, answer := range a.proposeAll(patience, batchOf(uint64(batch), 20)...) {
					if answer.Err != nil {
						t.Errorf("batch %d: entry %d: %v", batch, i, answer.Err)
					}
				}
			})
		}
		all.Wait()
		c.oracle.clean()
	})
}

// TestBatchWhoseTimeEnds: what Raft was given is unknown, goes on and stays
// pinned; the rest is in no log, never will be, and is free.
func TestBatchWhoseTimeEnds(t *testing.T) {
	const size, given = 6, 4
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		c.must("all level", c.level)
		for _, name := range c.others(a.name) {
			c.bodies.Network.Cut(a.name, name) // nobody may append what names a body
		}
		var refs []mail.BodyRef
		var proposals []Proposal
		for range size {
			ref := c.mint()
			c.put(ref, a.name)
			refs, proposals = append(refs, ref), append(proposals, accepting(ref))
		}
		last := a.node().LastIndex()
		giveBack := takePlaces(a.node(), given)
		for i, answer := range a.proposeAll(time.Second, proposals...) {
			if i < given && !open(answer) || i >= given && !certain(answer) {
				t.Errorf("entry %d: %+v", i, answer)
			}
		}
		giveBack(proposalsMax - given)
		synctest.Wait()
		if got := a.node().LastIndex(); got != last+given {
			t.Errorf("the log went from %d to %d, want %d more", last, got, given)
		}
		bodies := a.running().bodies
		for i, ref := range refs {
			if doomed := bodies.Doom([]mail.BodyRef{ref}); (len(doomed) == 0) != (i < given) {
				t.Errorf("body %d is pinned: %v", i, len(doomed) == 0)
			} else if len(doomed) > 0 {
				bodies.Spare(doomed)
			}
		}
		if got := a.node().Stats().Proposals; got != given {
			t.Errorf("%d proposals pending, want %d", got, given)
		}
		c.bodies.Network.HealAll()
		c.must("what was given is committed", func() bool { return a.running().fsm.knows(refs[given-1]) })
		c.must("no proposals", func() bool { return a.node().Stats().Proposals == 0 })
		c.commit(a)
		for i, ref := range refs {
			if knows := a.running().fsm.knows(ref); knows != (i < given) {
				t.Errorf("entry %d has had an effect: %v", i, knows)
			}
			if doomed := bodies.Doom([]mail.BodyRef{ref}); len(doomed) != 1 {
				t.Errorf("body %d is still pinned", i)
			} else {
				bodies.Spare(doomed)
			}
		}
		// A batch whose time has ended before it began has been given nothing.
		for range 50 {
			ended, cancel := context.WithCancel(context.Background())
			cancel()
			for _, answer := range a.node().ProposeAll(ended, []Proposal{nothing(), nothing()}) {
				if !certain(answer) {
					t.Fatalf("ended before: %+v", answer)
				}
			}
		}
		c.oracle.clean()
	})
}

// TestNothingIsGivenBehindTheAnswer: an entry that was answered as in no log is
// not given to Raft later, however long the goroutine that would do it sleeps.
func TestNothingIsGivenBehindTheAnswer(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		n := c.leader().node()
		c.commit(c.leader())
		last := n.LastIndex()
		b := &batch{node: n, term: n.Term(), decided: make(chan decision, 3)}
		for i := range 3 {
			if err := b.add(i, nothing(), true); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.ask(context.Background(), &b.entries[0]); err != nil {
			t.Fatal(err)
		}
		answers := make([]Answer, 3)
		b.giveUp(errors.New("time is up"), answers, make([]bool, 3))
		if !open(answers[0]) || !certain(answers[1]) || !certain(answers[2]) {
			t.Errorf("one of three given: %v", answers)
		}
		if err := b.ask(context.Background(), &b.entries[1]); err == nil {
			t.Error("given to Raft after it was answered")
		}
		if err := b.entries[0].future.Error(); err != nil {
			t.Error(err)
		}
		<-n.proposals
		if got := n.LastIndex(); got != last+1 {
			t.Errorf("the log went from %d to %d", last, got)
		}
	})
}

// TestBatchCountsInOneTermOnly: a leader is deposed in the middle of a batch, its
// first entry is cut off, and the node leads again when Raft is given the second
// one. Nobody applies that one, whether it comes by the log, by a restart or
// beside a snapshot.
func TestBatchCountsInOneTermOnly(t *testing.T) {
	inCluster(t, 3, clusterOptions{trailing: 4}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.elect("a")
		c.must("all level", c.level)
		first, second, third := c.mint(), c.mint(), c.mint()
		for _, ref := range []mail.BodyRef{first, second, third} {
			c.put(ref, c.names...)
		}
		c.net.Cut("a", "b")
		c.net.Cut("a", "c")

		// The first entry gets a place; the next place that becomes free is ours,
		// so the second entry waits until we give ours back.
		giveBack := takePlaces(a.node(), 0)
		answers := make(chan []Answer, 1)
		term := a.node().Term()
		go func() { answers <- a.proposeAll(time.Hour, accepting(first), accepting(second), accepting(third)) }()
		synctest.Wait()
		go func() { a.node().proposals <- struct{}{} }()
		synctest.Wait()
		last := a.node().LastIndex()
		giveBack(1)
		c.must("the first entry is in the leader's log", func() bool { return a.node().LastIndex() == last+1 })

		c.must("a is deposed", func() bool { now := c.currentLeader(); return now != nil && now != a && !a.node().IsLeader() })
		b := c.leader()
		c.commit(b)
		c.net.HealAll()
		c.must("all level", c.level)
		c.must("a leads again", func() bool {
			if leader := c.currentLeader(); leader != nil && leader != a {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_, _ = leader.node().HandOver(ctx, func(id ServerID) bool { return id == a.id() })
			}
			return a.node().IsLeader()
		})
		// Cut off for the time being, to have a snapshot installed.
		c.down("c")
		giveBack(proposalsMax)
		got := <-answers
		if !open(got[0]) || !certain(got[1]) || !certain(got[2]) {
			t.Errorf("entries of term %d, the later ones appended in term %d: %+v", term, a.node().Term(), got)
		}
		voids := 0
		for _, last := a.disk.Bounds(); last > 0; last-- {
			if l, ok := a.disk.Entry(last); ok {
				if x, err := extensionOf(&l); err != nil || x.term != 0 && x.term != l.Term {
					voids++
				}
			}
		}
		if voids != 2 {
			t.Fatalf("%d void entries in the log: nothing is tested", voids)
		}
		nobodyKnows := func(when string, names ...string) {
			t.Helper()
			c.must("all level "+when, c.level)
			for _, name := range names {
				for i, ref := range []mail.BodyRef{first, second, third} {
					if c.members[name].running().fsm.knows(ref) {
						t.Errorf("%s: %s knows message %d, and the first one was cut off", when, name, i+1)
					}
				}
			}
		}
		nobodyKnows("by the log", "a", "b")
		c.down("a", "b")
		c.up("a", "b")
		c.commit(c.leader())
		nobodyKnows("after a restart", "a", "b")
		leader := c.leader()
		for range 10 {
			c.commit(leader)
		}
		if err := leader.node().Snapshot(context.Background()); err != nil {
			t.Fatal(err)
		}
		c.up("c")
		nobodyKnows("after a snapshot", c.names...)
		if got := c.members["c"].running().fsm.restores(); got == 0 {
			t.Error("c was given no snapshot")
		}
		c.down()
		c.up()
		nobodyKnows("after a restart from a snapshot", c.names...)
		// What was refused for certain may be proposed again.
		leader = c.leader()
		for i, answer := range leader.proposeAll(patience, accepting(second), accepting(third)) {
			if answer.Err != nil {
				t.Errorf("proposed again, message %d: %v", i+2, answer.Err)
			}
		}
		c.must("all level", c.level)
		c.oracle.conclude()
		c.oracle.clean()
	})
}

// TestEntryThatIsAloneCountsInAnyTerm: its proposer need not be told that it was
// late, since nothing of it hangs on another entry. And old logs are full of
// those.
func TestEntryThatIsAloneCountsInAnyTerm(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		ref := c.mint()
		c.put(ref, a.name)
		for _, answer := range append(a.proposeAll(patience, accepting(ref)), a.proposeAll(patience, nothing(), accepting(ref))...) {
			index, _ := answer.Value.(uint64)
			l, ok := a.disk.Entry(index)
			x, err := extensionOf(&l)
			if !ok || err != nil || answer.Err != nil {
				t.Fatalf("entry %d: %v, %v", index, err, answer.Err)
			}
			stamped := index > 0 && x.term == l.Term
			if _, last := a.disk.Bounds(); stamped != (index > last-2) {
				t.Errorf("entry %d of term %d: counts in term %d only", index, l.Term, x.term)
			}
		}
	})
}

// TestShutdownEndsBatches at any point of their way.
func TestShutdownEndsBatches(t *testing.T) {
	for seed := range uint64(12) {
		inCluster(t, 3, clusterOptions{seed: seed}, func(t *testing.T, c *testCluster) {
			c.up()
			c.bootstrap()
			a := c.leader()
			c.commit(a)
			n := a.node()
			ref := c.mint()
			c.put(ref, a.name) // a batch with it is not committed
			var pending atomic.Int64
			for client := range uint64(10) {
				pending.Add(1)
				go func() {
					defer pending.Add(-1)
					for round := uint64(0); ; round++ {
						proposals := batchOf(client<<32|round, 40)
						if seed%3 == 2 && client == 0 {
							proposals = slices.Insert(proposals, 20, accepting(ref))
						}
						ended := false
						for i, answer := range n.ProposeAll(context.Background(), proposals) {
							if answer.Err != nil && !certain(answer) && !open(answer) {
								t.Errorf("entry %d: %+v", i, answer)
							}
							ended = ended || answer.Err != nil
						}
						if ended {
							return
						}
					}
				}()
			}
			if seed%3 == 1 {
				for _, name := range c.others(a.name) {
					c.net.Cut(a.name, name)
				}
			}
			time.Sleep(time.Duration(seed) * 5 * time.Millisecond)
			a.kill()
			synctest.Wait()
			if pending.Load() != 0 {
				t.Errorf("%d batches wait", pending.Load())
			}
			if got := len(n.proposals); got != 0 {
				t.Errorf("%d places taken", got)
			}
			for i, answer := range n.ProposeAll(context.Background(), []Proposal{nothing(), accepting(ref), nothing()}) {
				if !certain(answer) {
					t.Errorf("after shutdown, entry %d: %+v", i, answer)
				}
			}
		})
	}
}

// TestAskBehindTheShutdown: Raft still takes entries then, half of the time, and
// never answers (docs/known-issues.md, BatchApplyCh).
func TestAskBehindTheShutdown(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		n := c.leader().node()
		b := &batch{node: n, term: n.Term()}
		for i := range 60 {
			if err := b.add(i, nothing(), true); err != nil {
				t.Fatal(err)
			}
		}
		c.down()
		n.closing = make(chan struct{}) // as seen by who looked just before
		taken := 0
		for i := range b.entries {
			e := &b.entries[i]
			if err := b.ask(context.Background(), e); err != nil {
				continue
			}
			taken++
			if a := answerOf(e.future, e.future.Error()); !open(a) {
				t.Errorf("entry %d: %+v", i, a)
			}
		}
		if taken == 0 {
			t.Error("Raft took nothing: nothing is tested")
		}
	})
}

// TestBatchesUnderElections: while leaders come and go, no batch has a gap, and
// what each leader said of an entry is true in the end.
func TestBatchesUnderElections(t *testing.T) {
	for seed := range uint64(1) {
		inCluster(t, 3, clusterOptions{seed: seed}, func(t *testing.T, c *testCluster) {
			c.up()
			c.bootstrap()
			c.commit(c.leader())
			calm := make(chan struct{})
			var clients sync.WaitGroup
			var mu sync.Mutex
			certainly, surely := make(map[string]bool), make(map[string]bool)
			for client := range uint64(4) {
				clients.Go(func() {
					for round := uint64(0); ; round++ {
						select {
						case <-calm:
							return
						case <-time.After(time.Duration(90+17*client) * time.Millisecond):
						}
						m := c.members[c.names[(client+round)%3]]
						if leader := c.currentLeader(); leader != nil && round%4 > 0 {
							m = leader
						}
						proposals := batchOf(client<<32|round, 2+int(round%30))
						answers := m.proposeAll(time.Duration(100+round%10*300)*time.Millisecond, proposals...)
						mu.Lock()
						for i, answer := range answers {
							switch {
							case answer.Err == nil:
								surely[string(proposals[i].Data)] = true
							case certain(answer):
								certainly[string(proposals[i].Data)] = true
							case !open(answer):
								t.Errorf("%+v", answer)
							}
						}
						mu.Unlock()
					}
				})
			}
			for _, name := range []string{"b", "c", "a", "b"} {
				if leader := c.currentLeader(); leader != nil && leader.name != name {
					c.net.Cut(leader.name, name)
					time.Sleep(100 * time.Millisecond)
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					_, _ = leader.node().HandOver(ctx, nil)
					cancel()
				}
				time.Sleep(2 * time.Second)
				c.net.HealAll()
				time.Sleep(time.Second)
			}
			close(calm)
			clients.Wait()
			c.commit(c.leader())
			c.must("all level", c.level)
			applied := c.oracle.commands()
			for data := range surely {
				if !applied[data] {
					t.Errorf("%x was answered and is not there", data)
				}
			}
			for data := range certainly {
				if applied[data] {
					t.Errorf("%x was certainly not appended, and is there", data)
				}
			}
			if len(surely) == 0 || len(certainly) == 0 {
				t.Errorf("%d committed, %d refused: nothing is tested", len(surely), len(certainly))
			}
			c.oracle.clean()
		})
	}
}
