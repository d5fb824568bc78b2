package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A scriptedLeader applies what is proposed to a replica of its own, entry by
// entry, and sometimes loses its leadership on the way.
type scriptedLeader struct {
	t *testing.T

	mu      sync.Mutex
	random  *rand.Rand
	failing bool
	replica *replica
	index   uint64
	most    int // proposals in one call
}

func newScriptedLeader(t *testing.T) *scriptedLeader {
	l := &scriptedLeader{t: t, random: rand.New(rand.NewPCG(1, 2)), replica: quietReplica()}
	l.apply(consensus.Proposal{Data: entry(t, fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}})})
	return l
}

func (l *scriptedLeader) apply(p consensus.Proposal) outcome {
	l.index++
	got, ok := l.replica.Apply(l.index, p.Data, p.Body).(applied)
	if !ok {
		l.t.Errorf("entry %d cannot be applied", l.index)
	}
	return outcome{applied: got}
}

// propose is consensus.ProposeAll over there: of the proposals a first part is
// applied, the answers to some of it are lost, and the rest is in no log.
func (l *scriptedLeader) propose(proposals []consensus.Proposal) []outcome {
	l.mu.Lock()
	pause := time.Duration(1+l.random.IntN(20)) * time.Millisecond
	l.mu.Unlock()
	time.Sleep(pause)
	l.mu.Lock()
	defer l.mu.Unlock()
	bytes := 0
	for _, p := range proposals {
		bytes += len(p.Data) + mail.BodyRefBytes
	}
	if len(proposals) > peer.ProposalsMax || bytes > peer.ProposalsBytesMax {
		l.t.Errorf("%d proposals of %d octets in one call", len(proposals), bytes)
	}
	l.most = max(l.most, len(proposals))
	appended, answered := len(proposals), len(proposals)
	if l.failing && l.random.IntN(4) == 0 {
		appended = l.random.IntN(len(proposals) + 1)
		answered = l.random.IntN(appended + 1)
	}
	outcomes := make([]outcome, len(proposals))
	for i, p := range proposals {
		if i >= appended {
			outcomes[i].err = fmt.Errorf("%w: not leading", ErrNotAccepted)
			continue
		}
		outcomes[i] = l.apply(p)
		if i >= answered {
			outcomes[i] = outcome{err: fmt.Errorf("%w: leadership lost", ErrOutcomeUnknown)}
		}
	}
	return outcomes
}

// acceptedBy has a message accepted, asking again as a Submit does.
func acceptedBy(t *testing.T, p *proposer, a fsm.Accept) fsm.Result {
	ref := a.Body
	for {
		ctx, cancel := context.WithTimeout(t.Context(), attemptTimeout)
		got, err := p.do(ctx, entry(t, a), &ref)
		cancel()
		if err == nil {
			return got.result
		}
		if !errors.Is(err, ErrNotAccepted) && !errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("%v", err)
		}
		time.Sleep(retryPause)
	}
}

// TestReadThenTheSameAgainIsANewMessage: whoever has read the 250 of a message
// and sends the same octets again through the same node sends another message,
// however many do so at once and whatever becomes of the leader.
func TestReadThenTheSameAgainIsANewMessage(t *testing.T) {
	for _, failing := range []bool{false, true} {
		t.Run(fmt.Sprintf("failing=%v", failing), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				leader := newScriptedLeader(t)
				leader.failing = failing
				var settled settledSet
				p := &proposer{propose: func(batch []*errand) []outcome {
					return proposeBehind(&settled, "n1", batch, leader.propose)
				}}
				const clients, rounds = 600, 4
				var all sync.WaitGroup
				for client := range clients {
					all.Go(func() {
						accept, _ := acceptOf(t, client)
						accept.Body = mail.NewBody(fmt.Append(nil, "of client ", client)).Ref(idOf(0))
						for round := range rounds {
							id := idOf(client*rounds + round + 1)
							accept.Body.ID = id
							if got := acceptedBy(t, p, accept); got.ID != id {
								t.Errorf("client %d, message %d: answered with %s, %v; the message before it was read and settled", client, round, got.ID, got.Verdict)
							}
							settled.add(id)
						}
					})
				}
				all.Wait()
				if got := leader.replica.view().Totals().Accepted; got != clients*rounds {
					t.Errorf("%d messages, want %d", got, clients*rounds)
				}
				if leader.most < peer.ProposalsMax/2 {
					t.Errorf("no batch had more than %d proposals", leader.most)
				}
			})
		})
	}
}

// TestRegressionManySettledBeforeTheSameAgain: more ids may wait than one call carries.
//
// It holds this defect: a batch carried the newest 256 settled ids, and where more waited
// the next identical message was taken for a repeat: accepted, and never delivered.
func TestRegressionManySettledBeforeTheSameAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leader := newScriptedLeader(t)
		var settled settledSet
		p := &proposer{propose: func(batch []*errand) []outcome {
			return proposeBehind(&settled, "n1", batch, leader.propose)
		}}
		accept, _ := acceptOf(t, 1)
		if got := acceptedBy(t, p, accept); got.ID != accept.Body.ID {
			t.Fatalf("%+v", got)
		}
		settled.add(accept.Body.ID)
		for n := range 3 * settledPerCommand {
			settled.add(idOf(1000 + n)) // what many others have read since
		}
		accept.Body.ID = idOf(2)
		if got := acceptedBy(t, p, accept); got.ID != accept.Body.ID {
			t.Errorf("answered with %s, whose 250 was read and settled before", got.ID)
		}
		if ids, _ := settled.oldest(); len(ids) > 0 {
			t.Errorf("%d settled ids wait, and all were committed", len(ids))
		}
	})
}

// TestSettledIDsThatAreNotCommitted come again, and of a batch behind ids that
// could not be committed nothing is proposed.
func TestSettledIDsThatAreNotCommitted(t *testing.T) {
	for _, failure := range []error{ErrNotAccepted, ErrOutcomeUnknown} {
		var settled settledSet
		for n := range settledPerCommand + 1 {
			settled.add(idOf(n))
		}
		calls := 0
		refuse := func(proposals []consensus.Proposal) []outcome {
			calls++
			if len(proposals) != 1 {
				t.Errorf("%d proposals beside ids that are not committed", len(proposals))
			}
			return sameOutcome(len(proposals), failure)
		}
		batch := []*errand{{data: []byte("a")}, {data: []byte("b")}}
		for _, o := range proposeBehind(&settled, "n1", batch, refuse) {
			if !errors.Is(o.err, ErrNotAccepted) || errors.Is(o.err, ErrOutcomeUnknown) {
				t.Errorf("%v, and nothing was proposed", o.err)
			}
		}
		if calls != 1 {
			t.Errorf("%d calls", calls)
		}
		if len(settled.waiting) != settledPerCommand+1 {
			t.Errorf("%d ids wait", len(settled.waiting))
		}
	}
	var settled settledSet
	for n := range carriedMax {
		settled.add(idOf(n + 1))
	}
	for _, failure := range []error{ErrNotAccepted, ErrOutcomeUnknown} {
		got := proposeBehind(&settled, "n1", []*errand{{}, {data: []byte("a")}}, func(p []consensus.Proposal) []outcome {
			if len(p) != 2 || string(p[1].Data) != "a" {
				t.Errorf("%d proposals, want the ids and one more behind them", len(p))
			}
			return []outcome{{err: failure}, {}}
		})
		if !errors.Is(got[0].err, failure) || got[1].err != nil || settled.empty() {
			t.Errorf("%v, %v; the ids are waiting: %v", got[0].err, got[1].err, !settled.empty())
		}
	}
}

// TestFewSettledIDsStandInEachCommand: so whichever of them gets into the log, it has
// them; and they come again until one is committed.
func TestFewSettledIDsStandInEachCommand(t *testing.T) {
	var settled settledSet
	ids := []mail.QueueID{idOf(1), idOf(2)}
	for _, id := range ids {
		settled.add(id)
	}
	tick := entry(t, fsm.Tick{Elapsed: 7})
	before := slices.Clone(tick)
	long := make([]byte, carriedBytesMax+1)
	for _, c := range []struct {
		batch    []*errand
		outcomes []outcome // of the commands
		own      bool      // the ids have an entry of their own
		waiting  int       // ids, behind it
	}{
		{[]*errand{{data: tick}}, []outcome{{err: ErrNotAccepted}}, false, 2},
		{[]*errand{{data: tick}, {data: tick}}, []outcome{{err: ErrOutcomeUnknown}, {err: ErrOutcomeUnknown}}, false, 2},
		{[]*errand{{data: tick}, {data: long}}, []outcome{{}, {}}, true, 2},
		{slices.Repeat([]*errand{{data: tick}}, carriedMax/2+1), slices.Repeat([]outcome{{}}, carriedMax/2+1), true, 2},
		{[]*errand{{}}, nil, true, 2},
		{slices.Repeat([]*errand{{data: tick}}, carriedMax/2), append([]outcome{{err: ErrNotAccepted}}, slices.Repeat([]outcome{{}}, carriedMax/2-1)...), false, 0},
		{[]*errand{{data: tick}}, []outcome{{}}, false, 0}, // no ids, and no entry for them
	} {
		waiting := len(settled.waiting)
		got := proposeBehind(&settled, "n1", c.batch, func(proposals []consensus.Proposal) []outcome {
			commands := proposals
			if c.own {
				commands = proposals[1:]
				if settles, err := fsm.DecodeCommand(proposals[0].Data); err != nil || !slices.Equal(settles.Settled, ids) {
					t.Errorf("the first is %+v, %v", settles, err)
				}
			}
			for _, p := range commands {
				if len(p.Data) > carriedBytesMax {
					continue
				}
				command, err := fsm.DecodeCommand(p.Data)
				if err != nil || command.Action != (fsm.Tick{Elapsed: 7}) || (len(command.Settled) == 0) != (c.own || waiting == 0) {
					t.Errorf("%+v, %v; of %d ids, in an entry of their own: %v", command, err, waiting, c.own)
				}
			}
			if len(commands) != len(c.outcomes) {
				t.Errorf("%d commands, want %d", len(commands), len(c.outcomes))
			}
			if c.own {
				return append([]outcome{{err: ErrOutcomeUnknown}}, c.outcomes...)
			}
			return c.outcomes
		})
		if len(got) != len(c.batch) || len(settled.waiting) != c.waiting {
			t.Errorf("%d outcomes of %d errands; %d ids wait, want %d", len(got), len(c.batch), len(settled.waiting), c.waiting)
		}
	}
	if !slices.Equal(tick, before) {
		t.Error("the command itself has changed")
	}
}

// heldUp is a proposer whose calls wait, each for a word on the channel.
func heldUp() (p *proposer, calls chan []*errand, goOn chan error) {
	calls, goOn = make(chan []*errand, 100), make(chan error)
	p = &proposer{propose: func(batch []*errand) []outcome {
		calls <- batch
		return sameOutcome(len(batch), <-goOn)
	}}
	return p, calls, goOn
}

// TestProposerGathers: what waits while the calls are under way goes together,
// in its order, within the limits of a call.
func TestProposerGathers(t *testing.T) {
	for name, size := range map[string]int{"many": 10, "large": 60 << 10, "largest": consensus.EntryBytesMax} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, calls, goOn := heldUp()
				var answered sync.WaitGroup
				propose := func(n int) {
					data := make([]byte, size)
					data[0], data[1] = byte(n>>8), byte(n)
					answered.Go(func() {
						if _, err := p.do(t.Context(), data, nil); err != nil {
							t.Errorf("%d: %v", n, err)
						}
					})
					synctest.Wait()
				}
				const all = 600
				for n := range all {
					propose(n)
				}
				if len(calls) != batchesMax {
					t.Fatalf("%d calls under way, want %d", len(calls), batchesMax)
				}
				var batches [][]*errand
				seen := 0
				for seen < all {
					batch := <-calls
					for _, e := range batch {
						if got := int(e.data[0])<<8 | int(e.data[1]); got != seen {
							t.Fatalf("proposal %d comes when %d should", got, seen)
						}
						seen++
					}
					batches = append(batches, batch)
					goOn <- nil
					synctest.Wait()
				}
				answered.Wait()
				limit := min(peer.ProposalsMax-1, (peer.ProposalsBytesMax-settledBytesMax)/(size+mail.BodyRefBytes))
				full := slices.MaxFunc(batches, func(a, b []*errand) int { return len(a) - len(b) })
				if len(full) != limit {
					t.Errorf("the largest batch has %d proposals, want %d", len(full), limit)
				}
				if len(p.waiting) != 0 || p.underway != 0 {
					t.Errorf("%d wait, %d calls under way", len(p.waiting), p.underway)
				}
			})
		})
	}
}

// TestProposerIsLeft: who leaves before his command is on its way knows that it
// never will be; who leaves later knows nothing.
func TestProposerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, calls, goOn := heldUp()
		leave := make(map[int]context.CancelFunc)
		errs := make([]error, 2*batchesMax)
		var answered sync.WaitGroup
		for n := range errs {
			ctx, cancel := context.WithCancel(t.Context())
			leave[n] = cancel
			answered.Go(func() { _, errs[n] = p.do(ctx, []byte{byte(n)}, nil) })
			synctest.Wait()
		}
		leave[0]()            // under way
		leave[batchesMax]()   // in line
		leave[batchesMax+1]() // in line
		synctest.Wait()
		for n, want := range map[int]error{0: ErrOutcomeUnknown, batchesMax: ErrNotAccepted, batchesMax + 1: ErrNotAccepted} {
			if !errors.Is(errs[n], want) || errors.Is(errs[n], ErrNotAccepted) == errors.Is(errs[n], ErrOutcomeUnknown) {
				t.Errorf("%d: %v, want %v", n, errs[n], want)
			}
		}
		for range batchesMax {
			<-calls
			goOn <- nil
		}
		for _, e := range <-calls {
			if n := int(e.data[0]); n == batchesMax || n == batchesMax+1 {
				t.Errorf("%d is proposed, and was told that it never would be", n)
			}
		}
		goOn <- nil
		answered.Wait()
		for n, cancel := range leave {
			cancel()
			if n != 0 && n != batchesMax && n != batchesMax+1 && errs[n] != nil {
				t.Errorf("%d: %v", n, errs[n])
			}
		}
	})
}
